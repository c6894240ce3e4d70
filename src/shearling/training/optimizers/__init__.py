"""Optimizers, made from their options."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shearling.training.optimizer_spec import AdafactorSpec, AdamSpec, AdamWSpec, OptimizerSpec, SGDSpec
from shearling.training.optimizers.groups import parameter_groups
from shearling.training.optimizers.kept import KEPT
from shearling.training.optimizers.muon import muon
from shearling.training.optimizers.sophia import sophia
from shearling.training.optimizers.updates import Updates


def adamw(model: nn.Module, spec: AdamWSpec) -> Updates:
    """PyTorch's AdamW in its fused form: one pass over memory a step."""
    groups = parameter_groups(model, spec)
    part = torch.optim.AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, fused=True)
    return Updates(model, spec, [part])


def adam(model: nn.Module, spec: AdamSpec) -> Updates:
    """PyTorch's Adam, fused."""
    groups = parameter_groups(model, spec)
    part = torch.optim.Adam(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, fused=True)
    return Updates(model, spec, [part])


def sgd(model: nn.Module, spec: SGDSpec) -> Updates:
    """PyTorch's SGD, fused."""
    groups = parameter_groups(model, spec)
    part = torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=spec.nesterov, fused=True)
    return Updates(model, spec, [part])


def adafactor(model: nn.Module, spec: AdafactorSpec) -> Updates:
    """PyTorch's Adafactor."""
    groups = parameter_groups(model, spec)
    part = torch.optim.Adafactor(groups, lr=spec.learning_rate, beta2_decay=spec.beta2_decay, d=spec.update_clip)
    return Updates(model, spec, [part])


__all__ = ["OPTIMIZERS", "Updates", "build_optimizer", "parameter_groups"]

OPTIMIZERS: dict[str, Callable[[nn.Module, Any], Updates]] = {
    "adamw": adamw,
    "adam": adam,
    "sgd": sgd,
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
