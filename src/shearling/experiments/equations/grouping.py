"""Which layers are alike."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from shearling.experiments.equations.parts import present_value
from shearling.experiments.equations.writing import subscript
from shearling.models.layers.attention import Attention

NUMBER = re.compile(r"(?<!\w)\d+(?:\.\d+)?(?:e[-+]?\d+)?")
MACHINERY = vars(nn.Module()).keys() - {"training"}
"""Attributes that every module has."""
MOST_VALUES = 12
"""Numbers of a list that are all shown even in short."""

Lines = tuple[str, ...]


def signature(block: nn.Module) -> Any:
    """Equal for two blocks only if they do the same: by classes, attributes, shapes, shown values, sharing."""
    parts: list[Any] = []
    order: dict[int, int] = {}
    for path, module in block.named_modules():
        attributes = {key: value for key, value in vars(module).items() if key not in MACHINERY}
        if isinstance(module, Attention):
            del attributes["layer"]  # where its cache lies, no part of what it computes
        plain = [(key, value if _plain(value) else id(value)) for key, value in sorted(attributes.items())]
        tensors = [*module._parameters.items(), *module._buffers.items()]
        parts.append((path, type(module), tuple(plain), tuple(_tensor(key, tensor, order) for key, tensor in tensors)))
    return tuple(parts)


def _tensor(key: str, tensor: torch.Tensor | None, order: dict[int, int]) -> Any:
    if tensor is None:
        return key
    number = order.setdefault(id(tensor), len(order))
    return key, number, tensor.shape, tensor.dtype, present_value(key, tensor)


def _plain(value: Any) -> bool:
    simple = value is None or isinstance(value, int | float | str)
    return simple or (isinstance(value, tuple) and all(map(_plain, value)))


def families(layers: Sequence[Lines], whole: bool) -> list[tuple[str, list[str]]]:
    """Groups of layers with equal lines, or with lines that are equal but for numbers, in the order of their first.

    Args:
        whole: whether a list of more than MOST_VALUES numbers is told in full.
    """
    by_shape: dict[Any, list[int]] = {}
    for index, lines in enumerate(layers):
        by_shape.setdefault(tuple(NUMBER.sub("#", line) for line in lines), []).append(index)
    return [
        (_label([index + 1 for index in members], len(layers)), _common([layers[index] for index in members], whole))
        for members in by_shape.values()
    ]


def _common(alike: Sequence[Lines], whole: bool) -> list[str]:
    """The lines of all, with a symbol for each number that differs between layers, and its values below."""
    numbers = [[number for line in lines for number in NUMBER.findall(line)] for lines in alike]
    columns = list(zip(*numbers, strict=True))
    varying = list(dict.fromkeys(column for column in columns if len(set(column)) > 1))
    symbols = {column: f"c{subscript(i)}" if len(varying) > 1 else "c" for i, column in enumerate(varying, start=1)}
    written = iter([symbols.get(column, column[0]) for column in columns])
    lines = [NUMBER.sub(lambda _: next(written), line) for line in alike[0]]
    return [*lines, *(f"where {symbols[column]} = {_listed(column, whole)}, layer by layer" for column in varying)]


def _listed(values: Sequence[str], whole: bool) -> str:
    shown = values if whole or len(values) <= MOST_VALUES else (*values[:4], "…", values[-1])
    return ", ".join(shown)


def _label(numbers: Sequence[int], total: int) -> str:
    """`layers 1–3 of 12`."""
    if len(numbers) == total:
        return f"every layer ({total})" if total > 1 else "the layer"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    spans = ", ".join(f"{first}–{last}" if last > first else str(first) for first, last in runs)
    return f"{'layer' if len(numbers) == 1 else 'layers'} {spans} of {total}"
