"""What the training loop knows of an optimizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from shearling.training.optimizer_spec import OptimizerSpec

COUNTED = {"step", "lr_max", "weight_sum"}
"""Numbers that optimizers keep in their groups, and that grow as they step."""

OF_GROUPS, NUMBER, ITEM = "group.", "number.", "item."
"""What begins the names of state that is no tensor of a parameter: numbers of groups, of parameters, and lists."""


class Updates:
    """Moves the weights of a model by one or several of PyTorch's optimizers, each with some of its parameters.

    Args:
        model: whose parameters they are.
        spec: the options.
        parts: the optimizers; their groups hold `share` and `decay`, as `parameter_groups` makes them, and may hold a
            peak learning rate of their own as `peak`.
    """

    def __init__(self, model: nn.Module, spec: OptimizerSpec, parts: list[torch.optim.Optimizer]) -> None:
        self.spec = spec
        self.parts = parts
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def prepare(self, factor: float, done: float) -> None:
        """Set the rates and decays of one step.

        Args:
            factor: share of the peak learning rates.
            done: share of the horizon behind us.
        """
        fading = 1 + (self.spec.weight_decay_end - 1) * done
        for group in self.groups:
            group["lr"] = group.get("peak", self.spec.learning_rate) * group["share"] * factor
            group["weight_decay"] = 0.0 if self.spec.cautious_decay else group["decay"] * fading

    def curvature_due(self, step: int) -> bool:
        """Whether `note_curvature` is to be called before the gradients of a step are made."""
        return False

    def note_curvature(self, n_targets: int) -> None:
        """Take what the gradients now are: of the mean loss against labels that the model drew for so many targets."""

    def step(self) -> None:
        """Move the weights against their gradients."""
        before = self._decaying() if self.spec.cautious_decay else []
        for part in self.parts:
            part.step()
        for parameter, old, shrink in before:
            moved = (old - parameter.data) * old > 0  # towards zero
            parameter.data.sub_(old.mul_(shrink).mul_(moved))

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Meanwhile the model has the weights that it is judged and saved by: its own, but for those who average."""
        yield

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state by name: `exp_avg/layers.0…weight`. Names, not numbers, survive another arrangement."""
        found = {}
        for parameter, state in self._states():
            for key, value in state.items():
                for path, tensor in _flat(key, value):
                    found[f"{path}/{self._names[id(parameter)]}"] = tensor
        for number, group in enumerate(self.groups):
            for key in COUNTED & group.keys():
                found[f"{OF_GROUPS}{key}/{number}"] = _number(group[key])
        return found

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what `tensors` gave; each tensor keeps its dtype and goes to its parameter's device."""
        owners = {
            self._names[id(parameter)]: (part, parameter)
            for part in self.parts
            for group in part.param_groups
            for parameter in group["params"]
        }
        for path, tensor in tensors.items():
            key, name = path.split("/", 1)
            if key.startswith(OF_GROUPS):
                self.groups[int(name)][key.removeprefix(OF_GROUPS)] = tensor.item()
                continue
            part, parameter = owners[name]
            _put(part.state[parameter], key, tensor.to(parameter.device))

    def _states(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    yield parameter, part.state.get(parameter, {})

    def _decaying(self) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """What decays, a copy of it, and by how much."""
        return [
            (parameter, parameter.detach().clone(), group["lr"] * group["decay"])
            for group in self.groups
            if group["decay"]
            for parameter in group["params"]
            if parameter.grad is not None
        ]


def _number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _flat(key: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What a parameter keeps under a key, as tensors: SOAP keeps lists, and some keep numbers."""
    if isinstance(value, torch.Tensor):
        yield key, value
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield f"{ITEM}{place}.{key}", each if isinstance(each, torch.Tensor) else torch.empty(0)
    else:
        yield f"{NUMBER}{key}", _number(value)


def _put(state: dict[str, Any], key: str, tensor: torch.Tensor) -> None:
    if key.startswith(NUMBER):
        state[key.removeprefix(NUMBER)] = tensor.item()
    elif key.startswith(ITEM):
        place, _, key = key.removeprefix(ITEM).partition(".")
        items = state.setdefault(key, [])
        items.extend([torch.empty(0)] * (int(place) + 1 - len(items)))
        items[int(place)] = tensor
    else:
        state[key] = tensor
