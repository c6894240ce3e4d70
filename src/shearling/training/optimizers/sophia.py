"""Sophia-G (arXiv 2305.14342)."""

from typing import Any

import torch
from torch import nn

from shearling.training.optimizer_spec import SophiaSpec
from shearling.training.optimizers.groups import parameter_groups
from shearling.training.optimizers.updates import Updates


class SophiaG(torch.optim.Optimizer):
    """θ ← θ − lr · λ · θ, then θ ← θ − lr · clip(m / max(ρ · h, ε), 1): algorithm 3 of the paper.

    m is the momentum of the gradients; h that of the Gauss-Newton-Bartlett estimates of the Gauss-Newton matrix's
    diagonal (algorithm 2), 0 before the first.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], rho: float, eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._betas, self._rho, self._eps = betas, rho, eps

    @torch.no_grad()
    def note_curvature(self, n_targets: int) -> None:
        """ĥ = B · ĝ ⊙ ĝ with the gradient ĝ of the mean loss against B drawn labels; none where it is not finite."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not all(bool(p.grad.isfinite().all()) for p in parameters):
            return
        for parameter in parameters:
            curvature = self._state(parameter)["curvature"]
            curvature.mul_(self._betas[1])
            curvature.addcmul_(parameter.grad, parameter.grad, value=(1 - self._betas[1]) * n_targets)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state(parameter)
                momentum = state["exp_avg"].lerp_(parameter.grad, 1 - self._betas[0])
                scale = (self._rho * state["curvature"]).clamp_(min=self._eps)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_((momentum / scale).clamp_(-1, 1), alpha=group["lr"])

    def _state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["exp_avg"], state["curvature"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state


class SophiaUpdates(Updates):
    """Estimates the curvature every few steps."""

    spec: SophiaSpec
    parts: list[SophiaG]  # type: ignore[assignment]

    def curvature_due(self, step: int) -> bool:
        return step % self.spec.every == 0

    def note_curvature(self, n_targets: int) -> None:
        for part in self.parts:
            part.note_curvature(n_targets)


def sophia(model: nn.Module, spec: SophiaSpec) -> Updates:
    """As the paper has it, for all parameters."""
    part = SophiaG(parameter_groups(model, spec), spec.betas, spec.rho, spec.eps)
    return SophiaUpdates(model, spec, [part])
