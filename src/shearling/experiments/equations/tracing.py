"""Runs a model's own code on tensors without data, and keeps what was done to them as a graph.

Tensors on the meta device have shapes and no values: whatever module is there computes as it does in training, and a
branch that depends on values cannot pass unnoticed. Norms and projections are written by name and not entered.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from shearling.experiments.equations.nodes import Node, UntraceableError, call, name, number, raw
from shearling.experiments.equations.operations import READS, meaning

Leaf = Callable[..., Any]

RESHAPES = {"view", "view_as", "reshape", "reshape_as", "flatten", "unflatten"}
SAMPLE = (2, 3)
"""Sequences and tokens of what is traced: neither is 1, which would look like one number a token."""
HEADS = "heads"
"""A branch's vectors as heads."""

MOVES = {"transpose", "swapaxes", "swapdims", "permute", "movedim", "mT", "T", "t"}


class Recorder(TorchFunctionMode):
    """While it is active, every call of torch on a known tensor makes the result known.

    Attributes:
        heads: whether what is run moves dimensions only to part and to join heads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = False
        self.known: dict[int, Node] = {}
        self.kept: list[torch.Tensor] = []  # an id is a tensor's for as long as the tensor lives

    def bind(self, tensor: torch.Tensor, node: Node) -> torch.Tensor:
        """From here on `tensor` is the value `node`."""
        self.known[id(tensor)] = node
        self.kept.append(tensor)
        return tensor

    def node(self, value: Any) -> Node:
        """The node of an argument."""
        if isinstance(value, torch.Tensor):
            if id(value) not in self.known:
                constant = value.ndim == 0 and not value.is_meta
                self.bind(value, number(value.item()) if constant else name("constant"))
            return self.known[id(value)]
        if isinstance(value, list | tuple) and any(isinstance(item, torch.Tensor) for item in value):
            return Node("tuple", tuple(map(self.node, value)))
        return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else raw(str(value))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        function = getattr(func, "__name__", type(func).__name__)
        if function == "__get__":  # a property, such as x.mT
            function = func.__self__.__name__
        known = any(id(tensor) in self.known for tensor in _tensors([args, options]))
        if known:
            _check(function, args)
        result = func(*map(self._without_data, args), **{key: self._without_data(options[key]) for key in options})
        if known and isinstance(result, torch.Tensor):
            self.bind(result, self._meaning(function, args, options, result))
        elif known and isinstance(result, list | tuple) and _any(result):
            self._bind_items(result, function, args, options)
        return result

    def _meaning(self, function: str, args: tuple[Any, ...], options: dict[str, Any], result: torch.Tensor) -> Node:
        """What a call makes, movements between dimensions included where they are not those of heads."""
        reshapes = function in RESHAPES and result.shape != args[0].shape
        if self.heads and reshapes and result.ndim > args[0].ndim and result.shape[-1] != args[0].shape[-1]:
            return call(HEADS, self.node(args[0]))
        if self.heads or not (reshapes or function in MOVES):
            return meaning(function, self.node, args, options)
        return call("reshape" if reshapes else function, self.node(args[0]), raw(_in_words(result.shape)))

    def _bind_items(self, results: Any, function: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Several results: the parts of the first argument along its first dimension, or numbered results of a call."""
        along_first = function == "unbind" and (args[1:] or (options.get("dim", 0),)) == (0,)
        whole = self.node(args[0]) if along_first else meaning(function, self.node, args, options)
        for index, result in enumerate(results):
            if isinstance(result, torch.Tensor):
                self.bind(result, Node("item", (whole,), str(index)))

    def _without_data(self, value: Any) -> Any:
        """A tensor that some code keeps beside its parameters has to meet tensors of the meta device."""
        if isinstance(value, list | tuple) and _any(value):
            return type(value)(map(self._without_data, value)) if type(value) in (list, tuple) else value
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or value.is_meta:
            return value
        return self.bind(value.to("meta"), self.node(value))


def _in_words(shape: torch.Size) -> str:
    """`…×4×8` behind sequences and tokens, `tokens×8` where these are one dimension."""
    if shape[:1] == (math.prod(SAMPLE),):
        return "×".join(map(str, ["tokens", *shape[1:]]))
    return "×".join(map(str, ["…", *(shape[2:] or shape[-1:])]))


def _check(function: str, args: tuple[Any, ...]) -> None:
    """Refuse what a graph of values does not show."""
    first = next(_tensors(args), None)
    if first is None:
        return
    if function in READS and first.is_meta:
        raise UntraceableError("what it does depends on the values of a tensor")
    in_place = function.endswith("_") and not function.startswith("_")
    if function == "__setitem__" or (in_place and first._is_view()):
        raise UntraceableError("it writes into a part of a tensor")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _any(value: Any) -> bool:
    return next(_tensors(value), None) is not None


@contextmanager
def traced(
    recorder: Recorder, leaf: Callable[[nn.Module], Leaf | None], functions: Iterable[tuple[Any, str, Any]]
) -> Iterator[None]:
    """Record what runs inside.

    Args:
        leaf: gives what stands in for a module's call, or None: then the module's own code is run.
        functions: (where it is looked up, its name, what stands in for it) of plain functions.
    """
    original = nn.Module.__call__

    def enter(module: nn.Module, *args: Any, **options: Any) -> Any:
        stand_in = leaf(module)
        return original(module, *args, **options) if stand_in is None else stand_in(module, *args, **options)

    with ExitStack() as stack:
        stack.enter_context(_replaced(nn.Module, "__call__", enter))
        for owner, function, stand_in_function in functions:
            stack.enter_context(_replaced(owner, function, stand_in_function))
        stack.enter_context(torch.no_grad())
        stack.enter_context(recorder)
        yield


@contextmanager
def _replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    own = attribute in vars(owner)
    before = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, before) if own else delattr(owner, attribute)
