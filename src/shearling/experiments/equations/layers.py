"""The equations of a block, of what comes before and after the blocks, and of the norms in them, as lines."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shearling.experiments.equations.nodes import Node, name, walk
from shearling.experiments.equations.parts import Tracer, untraced
from shearling.experiments.equations.tracing import SAMPLE
from shearling.experiments.equations.writing import Writer, subscript
from shearling.models.layers.placement import Placement
from shearling.models.layers.position import ALiBi, Position, RotaryPosition
from shearling.models.rope import inverse_frequencies
from shearling.models.spec import RoPESpec
from shearling.models.transformer import Block, Transformer

WIDEST_LINE = 110
GAP = ",   "
"""Between an equation and what is said of its parts."""
NORM_CALL = re.compile(r"\bN\w*\(")


def ends(model: Transformer) -> tuple[list[str], list[str], tuple[Any, ...]]:
    """The lines before the blocks, those after them, and (stream's shape, context) that the blocks are called with."""
    tracer = Tracer(model)

    def body() -> None:
        tokens_BT = tracer.input("t", *SAMPLE, dtype=torch.int64)
        hidden_BTD = tracer.close("h", model.forward(tokens_BT))
        tracer.close("logits", model.logits(hidden_BTD))

    try:
        tracer.run(body)
        failed = []
    except Exception as error:  # whatever a user's code raises without data is said in the equations' place
        failed = [untraced(model, error)]
    where = _named_norms(tracer, model.spec.d_model)
    before = [_equation(target, "=", value) for target, value in tracer.equations if target == "x"]
    after = [_equation(target, "=", value) for target, value in tracer.equations if target != "x"]
    early = [line for line in where if any(norm in said for said in before for norm in NORM_CALL.findall(line))]
    late = [line for line in where if line not in early]
    if tracer.called_with:
        before += _positions(model, tracer.called_with[1])
    return [*before, *early], [*after, *failed, *late], tracer.called_with


def block(module: Block, d_model: int, shape: torch.Size, context: Any) -> list[str]:
    """The lines of one block, not folded: an equation a sublayer, then what its norms do.

    Args:
        shape, context: what the block is called with.
    """
    tracer = Tracer(module)
    if context.step is not None:
        tracer.recorder.bind(context.step, name("step"))
    for number, rows in enumerate(context.values, 1):
        tracer.recorder.bind(rows, name(f"E_v{number}[t]"))
    tracer.run(lambda: tracer.close("x", module.forward(tracer.input("x", *shape), context)))
    where = _named_norms(tracer, d_model)
    _mark_shared([value for _, value in tracer.equations])
    return [*(_equation(target, "←", value) for target, value in tracer.equations), *where]


def _mark_shared(values: list[Node]) -> None:
    """Say of a parameter with a shown value that it stands in several equations."""
    seen = Counter(node for value in values for node in walk(value) if node.value.endswith(")"))
    for node, count in seen.items():
        if count > 1:
            node.value = f"{node.value[:-1]}, shared)"


def _equation(target: str, sign: str, value: Node) -> str:
    """`x ← …`, then what it names and the values that it shows, each behind `GAP`."""
    writer = Writer(*(value.inputs if value.kind == "tuple" else (value,)))
    targets = [target] if value.kind != "tuple" else [target + subscript(i + 1) for i in range(len(value.inputs))]
    first = f"{', '.join(targets)} {sign} {writer.right_side()}"
    return GAP.join([first, *writer.definitions(), *writer.values()])


def folded(line: str) -> list[str]:
    """One line where there is room for it, else the definitions below the equation."""
    first, *rest = line.split(GAP)
    if not rest:
        return [first]
    if len(together := f"{first}{GAP}{', '.join(rest)}") <= WIDEST_LINE:
        return [together]
    lines = [f"    with {rest[0]}"]
    for part in rest[1:]:
        lines[-1] += ","
        if len(lines[-1]) + len(part) < WIDEST_LINE:
            lines[-1] += f" {part}"
        else:
            lines.append(f"         {part}")
    return [f"{first},", *lines]


def _positions(model: Transformer, context: Any) -> list[str]:
    """What the names RoPE, P, bias and mask stand for."""
    lines, position, spec = [], model.position, model.spec
    if type(position) is not Position:
        called = {RotaryPosition: "RoPE", ALiBi: "bias"}.get(type(position), "P")
        lines.append(_said(called, position, {k: v for k, v in vars(position).items() if not k.startswith("_")}))
    if isinstance(spec.position, RoPESpec) and spec.position.scaling:
        options = dict(spec.position.scaling)
        if "attention_factor" in options:  # null stands for one that is computed
            options["attention_factor"] = inverse_frequencies(spec)[1]
        lines.append(_said("RoPE's frequencies", spec.position.scaling, options))
    if context.causal:
        before = "those" if spec.sliding_window is None else f"the {spec.sliding_window - 1}"
        others = "later ones" if spec.sliding_window is None else "others"
        lines.append(f"where mask: 0 for a token itself and {before} before it, −∞ for {others}")
    return lines


def _said(called: str, part: Any, options: dict[str, Any]) -> str:
    """What begins the docstring of a part's class, and those of its options that are numbers."""
    summary = (type(part).__doc__ or "").strip().splitlines()[0].rstrip(".")
    numbers = [f"{key} = {value:g}" for key, value in options.items() if type(value) in (int, float)]
    return f"where {called}: {summary}" + (f" ({', '.join(numbers)})" if numbers else "")


def _named_norms(tracer: Tracer, d_model: int) -> list[str]:
    """Give the norms that were called their names, and say what each does, equal ones together."""
    by_name, alike = defaultdict(list), defaultdict(list)
    for module, (calls, shape) in tracer.norms.items():
        if (formula := _Formula.of(module, shape, d_model)) is None:
            for node in calls:
                node.kind = "same"
        else:
            by_name[_norm_name(tracer, module)].append((calls, formula))
    for common, norms in by_name.items():
        for index, (calls, formula) in enumerate(norms, start=1):
            own = common if len(norms) == 1 else f"{common}{subscript(index)}"
            alike[formula].append(f"{own}(x)")
            for node in calls:
                node.text = own
    return [f"where {', '.join(names)} = {formula.text(len(names))}" for formula, names in alike.items()]


def _norm_name(tracer: Tracer, module: nn.Module) -> str:
    """N for a placement's own norm; N_q for q_norm inside a branch."""
    path, _, own = tracer.paths[module].rpartition(".")
    beside = isinstance(tracer.root.get_submodule(path), Placement) or own == "norm"
    return "N" if beside else "N_" + own.replace("_norm", "").replace("norm_", "")


@dataclass(frozen=True)
class _Formula:
    """What a norm does to x.

    Attributes:
        made: the formula, with the definitions and values that it needs.
        over: which x it is meant for, where that is not a token's whole vector.
        parameters: names of what it has learned.
    """

    made: str
    over: str
    parameters: tuple[str, ...]

    def text(self, shared_by: int) -> str:
        """The formula of this norm, or of several that have parameters of their own."""
        own = f", each with its own {', '.join(self.parameters)}" if shared_by > 1 and self.parameters else ""
        return self.made + self.over + own

    @classmethod
    def of(cls, module: nn.Module, shape: torch.Size, d_model: int) -> "_Formula | None":
        """The formula of a norm that is called on tensors of this shape; None: it gives back what it is given."""
        heads = len(shape) == 4
        width = "" if shape[-1] == d_model else f", x of width {shape[-1]}"
        over = f", x one head's {shape[-1]}" if heads else width
        tracer = Tracer(module, enter_norms=True)
        try:
            tracer.run(lambda: tracer.close("N", module.forward(tracer.input("x", *shape))))
        except Exception as error:  # whatever a user's code raises without data is said in the formula's place
            return cls(untraced(module, error), over, ())
        ((_, value),) = tracer.equations
        if (value.kind, value.text) == ("name", "x"):
            return None
        writer = Writer(value)
        made = ", ".join([writer.right_side(), *writer.definitions(), *writer.values()])
        return cls(made, over, tuple(writer.names[node] for node in writer.parameters if node.text != "x"))
