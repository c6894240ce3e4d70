"""Optimizers, made from their options."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shearling.training.optimizer_spec import AdafactorSpec, OptimizerSpec
from shearling.training.optimizers.groups import parameter_groups
from shearling.training.optimizers.kept import KEPT
from shearling.training.optimizers.muon import muon
from shearling.training.optimizers.sophia import sophia
from shearling.training.optimizers.updates import Updates


def _of_pytorch(kind: type[torch.optim.Optimizer], *options: str, **fixed: Any) -> Callable[..., Updates]:
    """PyTorch's optimizer `kind`, with the `options` of its spec that PyTorch calls by the same name."""

    def make(model: nn.Module, spec: Any) -> Updates:
        given = {option: getattr(spec, option) for option in options}
        return Updates(model, spec, [kind(parameter_groups(model, spec), lr=spec.learning_rate, **given, **fixed)])  # type: ignore[call-arg]

    return make


def adafactor(model: nn.Module, spec: AdafactorSpec) -> Updates:
    """PyTorch's Adafactor."""
    groups = parameter_groups(model, spec)
    part = torch.optim.Adafactor(groups, lr=spec.learning_rate, beta2_decay=spec.beta2_decay, d=spec.update_clip)
    return Updates(model, spec, [part])


__all__ = ["OPTIMIZERS", "Updates", "build_optimizer", "parameter_groups"]

OPTIMIZERS: dict[str, Callable[[nn.Module, Any], Updates]] = {
    "adamw": _of_pytorch(torch.optim.AdamW, "betas", "eps", fused=True),  # fused: one pass over memory a step
    "adam": _of_pytorch(torch.optim.Adam, "betas", "eps", fused=True),
    "sgd": _of_pytorch(torch.optim.SGD, "momentum", "nesterov", fused=True),
    "adafactor": adafactor,
    "muon": muon,
    "sophia": sophia,
    **KEPT,
}


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> Updates:
    """What moves the trainable weights of `model`, as `spec` says.

    Raises:
        UserError: a library that it needs is not installed.
    """
    return OPTIMIZERS[spec.kind](model, spec)  # type: ignore[attr-defined]
