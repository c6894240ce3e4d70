"""Parameters by role and layer, each group with a learning rate and a decay of its own."""

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from shearling.models.roles import Role, role
from shearling.training.optimizer_spec import OptimizerSpec

ROLES: tuple[Role, ...] = ("embedding", "head", "matrix", "vector")
_LAYER = re.compile(r"layers\.(\d+)\.")


def parameter_groups(model: nn.Module, spec: OptimizerSpec, roles: Iterable[Role] = ROLES) -> list[dict[str, Any]]:
    """Groups of the trainable parameters of some roles, in the model's order, for PyTorch's optimizers.

    Besides `params` each holds `share`, the factor of the learning rate, and `decay`, its peak weight decay: none for
    vectors. Blocks are counted from the last, which has the full rate; tables count with the first block, and what
    follows the last block with it.
    """
    layers = len(model.layers)  # type: ignore[arg-type]
    groups: dict[tuple[Role, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        kind = role(name)
        if kind not in roles or not parameter.requires_grad:
            continue
        below = _layers_above(name, kind, layers) if spec.layer_decay < 1 else 0
        empty = {
            "params": [],
            "share": getattr(spec.rates, kind) * spec.layer_decay**below,
            "decay": 0.0 if kind == "vector" else spec.weight_decay,
        }
        groups.setdefault((kind, below), empty)["params"].append(parameter)
    return list(groups.values())


def _layers_above(name: str, kind: Role, layers: int) -> int:
    found = _LAYER.match(name)
    if found:
        return layers - 1 - int(found[1])
    return layers if kind == "embedding" else 0
