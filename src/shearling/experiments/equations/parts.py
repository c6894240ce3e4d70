"""Traces the parts of a model: a block, a norm, what comes before and after the blocks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from shearling.experiments.equations.nodes import Node, call, name, number, raw
from shearling.experiments.equations.operations import ONE_MORE
from shearling.experiments.equations.tracing import HEADS, Leaf, Recorder, traced
from shearling.models.layers import attention
from shearling.models.layers.attention import Context
from shearling.models.layers.placement import Placement
from shearling.models.layers.position import Position
from shearling.models.transformer import Block

GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "lamb": "λ", "lam": "λ", "lambda_": "λ", "tau": "τ"}
GREATEST_VECTOR = 2**16
"""Numbers in a vector up to which it is looked at whether they are all the same."""


class Tracer:
    """Traces parts of one module; what it finds stays in its attributes.

    Args:
        root: the module whose parts are to be known by name.
        enter_norms: whether norms are run too, and not only written by name.

    Attributes:
        equations: (target, value) in the order in which they were computed.
        norms: for each norm that was called by name, its calls and the shape of what it was called on.
        called_with: of a whole model's blocks, the stream's shape and the other arguments.
    """

    def __init__(self, root: nn.Module, enter_norms: bool = False) -> None:
        self.root = root
        self.recorder = Recorder()
        self.equations: list[tuple[str, Node]] = []
        self.norms: dict[nn.Module, tuple[list[Node], torch.Size]] = {}
        self.called_with: tuple[Any, ...] = ()
        self.paths = {module: path for path, module in root.named_modules()}
        placements = [module for module in self.paths if isinstance(module, Placement)]
        self.branches = {placement.branch for placement in placements}
        beside = {child for placement in placements for child in placement.children()} - self.branches
        called_norm = {module for module, path in self.paths.items() if "norm" in path.rpartition(".")[2]}
        self.named = set() if enter_norms else beside | called_norm

    def run(self, body: Callable[[], Any]) -> None:
        """Call `body`, with all of the root's parameters on the meta device and its modules as `leaf` says."""
        stand_ins: dict[int, torch.Tensor] = {}
        tensors = {}
        for path, tensor in _named_tensors(self.root):
            if id(tensor) not in stand_ins:
                known_as = name(_name_of(self.root, path), present_value(path.rpartition(".")[2], tensor))
                stand_ins[id(tensor)] = self.recorder.bind(_without_data(tensor), known_as)
            tensors[f"root.{path}"] = stand_ins[id(tensor)]
        stand_in_functions = [
            (attention, "attend", self.attend),
            (attention, "rotate", self.rotate),
            *((module, "embedding", self.position(module)) for module in self.paths if isinstance(module, Position)),
        ]
        with traced(self.recorder, self.leaf, stand_in_functions):
            functional_call(_Body(self.root, body), tensors, ())

    def input(self, text: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A tensor without data that is written `text`."""
        return self.recorder.bind(torch.empty(shape, dtype=dtype, device="meta"), name(text))

    def close(self, target: str, value: torch.Tensor) -> torch.Tensor:
        """Write down how `target` was made, unless that is its name already; from here on it is called that.

        A 1 that stands behind it for the head's bias is not written.
        """
        node, called = self.recorder.node(value), name(target)
        if node.text == ONE_MORE:
            node, called = node.inputs[0], call(ONE_MORE, called)
        if (node.kind, node.text) != ("name", target):
            self.equations.append((target, node))
        return self.recorder.bind(value, called)

    def whole(self, x: torch.Tensor) -> Node:
        """A value without the mention of its heads, for what says itself how it takes them."""
        node = self.recorder.node(x)
        return node.inputs[0] if node.text == HEADS else node

    def leaf(self, module: nn.Module) -> Leaf | None:
        """What stands in for a call of `module`."""
        if module in self.named:
            return self.norm
        if isinstance(module, nn.Linear):
            return self.linear
        if isinstance(module, Placement):
            return self.placement
        if isinstance(module, Block) and module is not self.root:
            return self.block
        return self.branch if module in self.branches else None

    def placement(self, module: Placement, stream: torch.Tensor, *args: Any) -> torch.Tensor:
        """One sublayer: an equation of its own."""
        stream = self.close("x", stream)
        try:
            return self.close("x", module.forward(stream, *args))
        except Exception as error:  # whatever a user's code raises without data is said in the equation's place
            self.equations.append(("x", raw(untraced(module, error))))
            return self.recorder.bind(torch.empty_like(stream), name("x"))

    def branch(self, module: nn.Module, *args: Any) -> torch.Tensor:
        """A sublayer's F."""
        self.recorder.heads = True
        try:
            result: torch.Tensor = module.forward(*args)
        finally:
            self.recorder.heads = False
        self.recorder.node(result).hint = "f"
        return result

    def norm(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """A norm; what it is called is settled when all are known."""
        node = Node("call", (self.whole(x),), hint="n")
        self.norms.setdefault(module, ([], x.shape))[0].append(node)
        return self.recorder.bind(torch.empty_like(x), node)

    def linear(self, module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """W x, + b where there is one."""
        node = Node("apply", (self.recorder.node(module.weight), self.recorder.node(x)))
        if module.bias is not None:
            node = Node("add", (node, self.recorder.node(module.bias)))
        return self.recorder.bind(x.new_empty(*x.shape[:-1], module.out_features), node)

    def block(self, module: nn.Module, stream: torch.Tensor, *args: Any) -> torch.Tensor:
        """A block of a whole model, whose equations stand elsewhere; what it is called with is kept."""
        self.close("x", stream)
        self.called_with = (stream.shape, *args)
        return self.recorder.bind(torch.empty_like(stream), name("x"))

    def rotate(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        """Rotary positions, by name."""
        return self.recorder.bind(torch.empty_like(x), call("RoPE", self.whole(x)))

    def attend(
        self, q: Any, k: Any, v: Any, context: Context, *, scale: float, dropout: float, **_: Any
    ) -> torch.Tensor:
        """softmax(q kᵀ · scale + what the mask adds) v."""
        biased = context.mask is not None and context.mask.is_floating_point()
        added = (" + bias" if biased else "") + (" + mask" if context.causal else "")
        node = Node("attend", tuple(map(self.whole, (q, k, v))), _scaled(scale) + added)
        node.value = number(dropout).text if dropout else ""
        return self.recorder.bind(torch.empty_like(q), node)

    def position(self, module: Position) -> Callable[..., torch.Tensor | None]:
        """A position's vectors, by name."""
        embedding = module.embedding

        def stand_in(positions_T: torch.Tensor) -> torch.Tensor | None:
            added = embedding(positions_T)
            return None if added is None else self.recorder.bind(added, name("P"))

        return stand_in


class _Body(nn.Module):
    """A function that calls a module's parts, as a module's forward: `functional_call` asks for that."""

    def __init__(self, root: nn.Module, body: Callable[[], Any]) -> None:
        super().__init__()
        self.root = root
        self.body = body

    def forward(self) -> Any:
        return self.body()


def untraced(module: nn.Module, error: Exception) -> str:
    """What stands in place of an equation: the class, what its docstring begins with, and what went wrong."""
    kind = type(module)
    summary = (kind.__doc__ or "").strip().splitlines()[:1]
    said = f"{kind.__name__}: {summary[0]}" if summary else kind.__name__
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"{said} [not traced: {reason}]"


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    """The same without values, but for a scalar's."""
    if tensor.ndim == 0 and not tensor.is_meta:
        return tensor.detach().clone()
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def _name_of(root: nn.Module, path: str) -> str:
    """What a parameter is called in equations: W_q for q_proj.weight, g and b in a norm, else as in the code."""
    owner_path, _, own = path.rpartition(".")
    owner, called = root.get_submodule(owner_path), owner_path.rpartition(".")[2]
    if isinstance(owner, nn.Embedding):
        return "E"
    if isinstance(owner, nn.Linear) and own in ("weight", "bias"):
        return {"weight": "W", "bias": "b"}[own] + (f"_{called.removesuffix('_proj')}" if called else "")
    if own in ("weight", "bias"):
        is_norm = not called or "norm" in called or "Norm" in type(owner).__name__
        return {"weight": "g", "bias": "b"}[own] if is_norm else called
    return GREEK.get(own, own)


def present_value(own: str, tensor: torch.Tensor) -> str:
    """(=0.5) of a scalar, (all 0.1) of a vector of equal numbers, unless it is a weight of 1 or a bias of 0."""
    if tensor.is_meta or tensor.numel() != max(tensor.shape, default=1) or not 0 < tensor.numel() <= GREATEST_VECTOR:
        return ""
    first = tensor.flatten()[0]
    if tensor.numel() == 1:
        return f"(={number(first.item()).text})"
    usual = first.item() == {"weight": 1, "bias": 0}.get(own)
    return f"(all {number(first.item()).text})" if not usual and bool((tensor == first).all()) else ""


def _scaled(scale: float) -> str:
    """· scale, by its square where that is whole: / √48."""
    for sign, square in ((" / ", scale**-2), (" · ", scale**2)):
        if abs(square - round(square)) < 1e-6 * square and round(square) > 1:
            return f"{sign}√{round(square)}"
    return "" if scale == 1 else f" · {number(scale).text}"
