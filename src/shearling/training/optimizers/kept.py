"""Optimizers of the kept library `pytorch-optimizer` (the extra `[optimizers]`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from shearling.errors import UserError
from shearling.training.optimizer_spec import (
    AdEMAMixSpec,
    ADOPTSpec,
    LionSpec,
    MARSSpec,
    OptimizerSpec,
    ScheduleFreeSpec,
    SOAPSpec,
)
from shearling.training.optimizers.groups import parameter_groups
from shearling.training.optimizers.updates import Updates

TRAINED = "trained"
"""Key of the weights that steps go on from, beside the average that the model is saved with."""


def library_optimizer(model: nn.Module, spec: OptimizerSpec, name: str, **options: Any) -> torch.optim.Optimizer:
    """One of the library's, with our groups.

    Raises:
        UserError: the library is not installed.
    """
    try:
        import pytorch_optimizer
    except ImportError:
        kind = spec.kind  # type: ignore[attr-defined]
        raise UserError(
            f"training.optimizer.kind {kind}: it is pytorch-optimizer's, which is missing: "
            "pip install 'shearling[optimizers]'"
        ) from None
    found: torch.optim.Optimizer = getattr(pytorch_optimizer, name)(
        parameter_groups(model, spec), lr=spec.learning_rate, **options
    )
    return found


def lion(model: nn.Module, spec: LionSpec) -> Updates:
    return Updates(model, spec, [library_optimizer(model, spec, "Lion", betas=spec.betas, weight_decouple=True)])


def soap(model: nn.Module, spec: SOAPSpec) -> Updates:
    part = library_optimizer(
        model, spec, "SOAP", betas=spec.betas, eps=spec.eps, precondition_frequency=spec.every,
        max_precondition_dim=spec.largest,
    )  # fmt: skip
    return Updates(model, spec, [part])


def ademamix(model: nn.Module, spec: AdEMAMixSpec) -> Updates:
    part = library_optimizer(
        model, spec, "AdEMAMix", betas=spec.betas, alpha=spec.alpha, t_alpha_beta3=spec.growth, eps=spec.eps,
        weight_decouple=True,
    )  # fmt: skip
    return Updates(model, spec, [part])


def mars(model: nn.Module, spec: MARSSpec) -> Updates:
    part = library_optimizer(
        model, spec, "MARS", betas=spec.betas, gamma=spec.gamma, eps=spec.eps, weight_decouple=True,
        optimize_1d=True, betas_1d=spec.betas,
    )  # fmt: skip
    return Updates(model, spec, [part])


def adopt(model: nn.Module, spec: ADOPTSpec) -> Updates:
    part = library_optimizer(model, spec, "ADOPT", betas=spec.betas, eps=spec.eps, weight_decouple=True)
    return Updates(model, spec, [part])


class AveragedUpdates(Updates):
    """Steps from weights y of which x, an average, is what counts."""

    def __init__(self, model: nn.Module, spec: OptimizerSpec, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__(model, spec, parts)
        self._held: dict[torch.Tensor, torch.Tensor] = {}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        held = {p: p.detach().clone() for group in self.groups for p in group["params"]}
        for part in self.parts:
            part.eval()  # type: ignore[attr-defined]
        self._held = held
        try:
            yield
        finally:
            for part in self.parts:
                part.train()  # type: ignore[attr-defined]
            with torch.no_grad():
                for parameter, value in held.items():  # to the last bit, which the way back does not give
                    parameter.copy_(value)
            self._held = {}

    def tensors(self) -> dict[str, torch.Tensor]:
        trained = {f"{TRAINED}/{self._names[id(p)]}": value for p, value in self._held.items()}
        return super().tensors() | trained

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        named = {self._names[id(p)]: p for group in self.groups for p in group["params"]}
        with torch.no_grad():
            for path, value in tensors.items():
                key, _, name = path.partition("/")
                if key == TRAINED:
                    named[name].copy_(value)
        super().load({path: value for path, value in tensors.items() if not path.startswith(f"{TRAINED}/")})


def schedule_free(model: nn.Module, spec: ScheduleFreeSpec) -> Updates:
    part = library_optimizer(model, spec, "ScheduleFreeAdamW", betas=spec.betas, eps=spec.eps)
    return AveragedUpdates(model, spec, [part])


KEPT: dict[str, Callable[[nn.Module, Any], Updates]] = {
    "lion": lion,
    "soap": soap,
    "ademamix": ademamix,
    "mars": mars,
    "adopt": adopt,
    "schedule_free": schedule_free,
}
