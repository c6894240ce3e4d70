"""The equations of a whole model: layers that do the same are said once."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from shearling.experiments.equations.grouping import families, signature
from shearling.experiments.equations.initial import initial_weights
from shearling.experiments.equations.layers import block, ends, folded
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

MOST_GROUPS = 3
"""Groups of layers that the short text shows before it only counts them."""

Group = tuple[str, list[str]]


def model_equations(spec: ModelSpec, whole: bool = False) -> str:
    """What `equation_groups` says of a model made from `spec`, as text.

    Args:
        whole: whether nothing is left out. In short, of more than MOST_GROUPS groups of layers the others are only
            counted, and long lists of numbers are told by their ends.

    Raises:
        UserError: a class of the user's own is not found, or does not take its options.
    """
    before, *layers, after, at_first = equation_groups(spec, whole)
    if not whole and len(layers) > MOST_GROUPS:
        layers = [*layers[:MOST_GROUPS], (f"… ({len(layers)} groups of layers)", [])]
    groups = [before, *layers, after, at_first]
    return "\n".join("\n".join([label, *(f"  {line}" for line in lines)]) for label, lines in groups)


def equation_groups(spec: ModelSpec, whole: bool = True) -> list[Group]:
    """`block_equations` and, as `at first`, `initial_weights` of a model made from `spec`.

    Raises:
        UserError: a class of the user's own is not found, or does not take its options.
    """
    model = outline(spec)
    return [*block_equations(model, whole), ("at first", initial_weights(model, whole))]


def block_equations(model: Transformer, whole: bool = True) -> list[Group]:
    """Labelled lines of equations: before the blocks, one group for each kind of layer, after the blocks.

    Layers that differ in numbers alone are one group, with c standing for a number that differs and its values listed.
    The mode that the model is in counts: dropout is there in training.

    Args:
        whole: whether a long list of values is told in full.
    """
    before, after, called_with = ends(model)
    known: dict[Any, tuple[str, ...]] = {}
    lines = []
    for layer in model.blocks if called_with else []:
        kind = signature(layer)
        if kind not in known:
            known[kind] = tuple(block(layer, model.spec.d_model, *called_with))
        lines.append(known[kind])
    groups = [("before the layers", before), *families(lines, whole), ("after the layers", after)]
    return [(label, [part for line in lines for part in folded(line)]) for label, lines in groups]


def outline(spec: ModelSpec) -> Transformer:
    """A model without its matrices' values, which takes neither memory nor time; scalars and vectors have theirs."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _VectorsWithData():
        return Transformer(spec)


class _VectorsWithData(TorchFunctionMode):
    """On the meta device, makes vectors and scalars on the CPU all the same."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        made = isinstance(result, torch.Tensor) and result.is_meta and not any(map(torch.is_tensor, args))
        if made and result.numel() == max(result.shape, default=1):
            return func(*args, **{**options, "device": "cpu"})
        return result
