"""Optimizers, made from their options, and the roles of the parameters they act on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shearling.models.roles import role
from shearling.training.spec import AdamWSpec


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices and tables, which decay, and vectors (gains, biases, gates), which do not."""
    named = [(role(name) != "vector", p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for decays, p in named if decays], "weight_decay": weight_decay},
        {"params": [p for decays, p in named if not decays], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, spec: AdamWSpec) -> torch.optim.Optimizer:
    """PyTorch's AdamW (arXiv 1711.05101) in its fused form: one pass over memory a step."""
    return torch.optim.AdamW(
        decay_groups(model, spec.weight_decay), lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, fused=True
    )


OPTIMIZERS: dict[str, Callable[[nn.Module, Any], torch.optim.Optimizer]] = {"adamw": adamw}


def build_optimizer(model: nn.Module, spec: AdamWSpec) -> torch.optim.Optimizer:
    """The optimizer that `spec` names, over the trainable parameters of `model`."""
    return OPTIMIZERS[spec.kind](model, spec)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state by name: `exp_avg/layers.0…weight`. Names, not numbers, survive another arrangement."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave; each tensor keeps its dtype and goes to its parameter's device."""
    parameters = dict(model.named_parameters())
    for path, tensor in tensors.items():
        key, name = path.split("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][key] = tensor.to(parameter.device)
