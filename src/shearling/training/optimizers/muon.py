"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), all matrices of one shape at once.

PyTorch's takes one matrix after the other; small models have many small ones, and their products run faster together.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shearling.training.optimizer_spec import MuonSpec
from shearling.training.optimizers.groups import parameter_groups
from shearling.training.optimizers.updates import Updates

SAFETY = 1.02
"""What the largest singular value is divided by before the second, as rounding to bf16 may have left it above 1."""

COEFFICIENTS = {
    "quintic": [(3.4445, -4.7750, 2.0315)],
    "polar_express": [
        (8.156554524902461 / SAFETY, -22.48329292557795 / SAFETY**3, 15.878769915207462 / SAFETY**5),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ],
}
"""Of x, x³ and x⁵ in each iteration, the last row's from there on. After Jordan's, the first, singular values lie
between 0.7 and 1.2. The second (arXiv 2505.16932, the numbers of modded-nanogpt) is the best for five iterations."""

ADJUSTMENTS: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
"""Factor of an update by the matrix's sides; the second is arXiv 2502.16982's."""


def orthogonalize(matrices_NRC: torch.Tensor, spec: MuonSpec) -> torch.Tensor:
    """U Vᵀ, about, of each matrix U Σ Vᵀ, by Newton and Schulz in bf16; rows at most as many as columns."""
    rows = COEFFICIENTS[spec.iteration]
    x = matrices_NRC.bfloat16()
    x = x / x.float().norm(dim=(1, 2), keepdim=True).clamp_(min=1e-7).to(x.dtype)
    for step in range(spec.ns_steps):
        a, b, c = rows[min(step, len(rows) - 1)]
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """W ← (1 − lr · λ) W − lr · adjustment · orthogonalize(momentum)."""

    def __init__(self, groups: list[dict[str, Any]], spec: MuonSpec) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._spec = spec

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_sides: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._update(parameter)
                    wide = update.mT if update.size(0) > update.size(1) else update
                    by_sides.setdefault(tuple(wide.shape), []).append((parameter, wide))
            for alike in by_sides.values():
                directions = orthogonalize(torch.stack([wide for _, wide in alike]), self._spec)
                for (parameter, wide), direction in zip(alike, directions.float(), strict=True):
                    along = direction if wide.shape == parameter.shape else direction.mT
                    adjusted = group["lr"] * ADJUSTMENTS[self._spec.adjust](*parameter.shape)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(along, alpha=adjusted)

    def _update(self, parameter: torch.Tensor) -> torch.Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: torch.Tensor = state["momentum_buffer"].lerp_(gradient, 1 - self._spec.momentum)
        return gradient.lerp(momentum, self._spec.momentum) if self._spec.nesterov else momentum


def muon(model: nn.Module, spec: MuonSpec) -> Updates:
    """Muon for the blocks' matrices, PyTorch's AdamW for all else."""
    others = parameter_groups(model, spec, ["embedding", "head", "vector"])
    for group in others:
        group["peak"] = spec.rate_of_others
    rest = torch.optim.AdamW(
        others, lr=spec.rate_of_others, betas=spec.betas_of_others, eps=spec.eps_of_others, fused=True
    )
    return Updates(model, spec, [Muon(parameter_groups(model, spec, ["matrix"]), spec), rest])
