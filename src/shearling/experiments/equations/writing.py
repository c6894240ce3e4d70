"""Writes the graph of a computation as an equation."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum

from shearling.experiments.equations.nodes import Node, walk

SPARE_NAMES = "hyzuw"
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Binds(IntEnum):
    """How tightly the outermost sign of a text binds; a looser one inside a tighter one stands in brackets."""

    SUM = 1
    PRODUCT = 2
    APPLY = 3
    POWER = 4
    ATOM = 5


Text = tuple[str, Binds]


class Writer:
    """Writes one equation: its right side, and the definitions of what it names.

    Args:
        outputs: the right side; several where the stream has several parts.
    """

    def __init__(self, *outputs: Node) -> None:
        self.outputs = [_bare(output) for output in outputs]
        nodes = [node for node in walk(*self.outputs) if node.kind != "same"]
        self.uses = Counter([*self.outputs, *(_bare(part) for node in nodes for part in node.inputs)])
        self.names: dict[Node, str] = {}
        self.taken: set[str] = set()
        self.pending: list[Node] = []
        self.parameters = [node for node in nodes if node.kind == "name"]
        for node in self.parameters:
            self._name(node, node.text)

    def right_side(self) -> str:
        """The outputs, a comma between them."""
        return _listed(self, self.outputs)

    def definitions(self) -> Iterator[str]:
        """`n = N(x)` for each value that was named, once `right_side` has been written."""
        while self.pending:
            node = self.pending.pop(0)
            yield f"{self.names[node]} = {self._expand(node)[0]}"

    def values(self) -> list[str]:
        """The present values of the parameters, where they are known."""
        return [f"{self.names[node]} {node.value}" for node in self.parameters if node.value]

    def text(self, node: Node, least: Binds = Binds.SUM) -> str:
        """A value as part of another: by its name, or written out, in brackets if it binds less than `least`."""
        node = _bare(node)
        if node not in self.names and node.kind not in UNNAMED and self.uses[node] > 1:
            self._define(node, node.hint or next((c for c in SPARE_NAMES if c not in self.taken), "h"))
        if node in self.names:
            return self.names[node]
        text, binds = self._expand(node)
        return text if binds >= least else f"({text})"

    def named(self, node: Node, wish: str) -> str:
        """A value by a name, whether or not it is used again."""
        node = _bare(node)
        if node not in self.names:
            self._define(node, wish)
        return self.names[node]

    def _expand(self, node: Node) -> Text:
        return FORMS[node.kind](self, node)

    def _define(self, node: Node, wish: str) -> None:
        self._name(node, wish)
        self.pending.append(node)

    def _name(self, node: Node, wish: str) -> None:
        name = next(name for name in _numbered(wish) if name not in self.taken)
        self.names[node] = name
        self.taken.add(name)


def subscript(number: int) -> str:
    """Digits below the line."""
    return str(number).translate(SUBSCRIPTS)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}{subscript(number)}"
        number += 1


def _bare(node: Node) -> Node:
    while node.kind == "same":
        node = node.inputs[0]
    return node


def _sum(sign: str) -> "Form":
    def write(w: Writer, node: Node) -> Text:
        left = w.text(node.inputs[0])
        right = w.text(node.inputs[1], Binds.SUM if sign == "+" else Binds.PRODUCT)
        if right.startswith("−"):
            return (f"{left} − {right[1:]}" if sign == "+" else f"{left} + {right[1:]}"), Binds.SUM
        return f"{left} {sign} {right}", Binds.SUM

    return write


def _product(sign: str, right_least: Binds = Binds.PRODUCT) -> "Form":
    def write(w: Writer, node: Node) -> Text:
        left, right = w.text(node.inputs[0], Binds.PRODUCT), w.text(node.inputs[1], right_least)
        tight = sign == "·" and node.inputs[0].kind in ("number", "name", "call")
        return f"{left}·{_positive(right)}" if tight else f"{left} {sign} {_positive(right)}", Binds.PRODUCT

    return write


def _positive(text: str) -> str:
    return f"({text})" if text.startswith("−") else text


def _power(w: Writer, node: Node) -> Text:
    base, exponent = w.text(node.inputs[0], Binds.ATOM), w.text(node.inputs[1], Binds.ATOM)
    return f"{base}{exponent.translate(SUPERSCRIPTS)}" if exponent.isdigit() else f"{base}^{exponent}", Binds.POWER


def _apply(w: Writer, node: Node) -> Text:
    matrix, argument = w.text(node.inputs[0], Binds.APPLY), w.text(node.inputs[1], Binds.APPLY)
    return f"{matrix}{'' if argument.startswith('(') else ' '}{argument}", Binds.APPLY


def _attend(w: Writer, node: Node) -> Text:
    q, k, v = (w.named(part, wish) for part, wish in zip(node.inputs, "qkv", strict=True))
    weights = f"softmax({q} {k}ᵀ{node.text})"
    return f"dropout({weights}, {node.value}) {v}" if node.value else f"{weights} {v}", Binds.APPLY


def _item(w: Writer, node: Node) -> Text:
    return w.text(node.inputs[0], Binds.ATOM) + subscript(int(node.text) + 1), Binds.ATOM


def _listed(w: Writer, parts: Iterable[Node]) -> str:
    return ", ".join(w.text(part) for part in parts)


Form = Callable[[Writer, Node], Text]

FORMS: dict[str, Form] = {
    "name": lambda w, node: (w.names[node], Binds.ATOM),
    "raw": lambda w, node: (node.text, Binds.ATOM),
    "number": lambda w, node: (node.text, Binds.PRODUCT if node.text.startswith("−") else Binds.ATOM),
    "add": _sum("+"),
    "sub": _sum("−"),
    "neg": lambda w, node: (f"−{_positive(w.text(node.inputs[0], Binds.PRODUCT))}", Binds.PRODUCT),
    "mul": _product("⊙"),
    "scale": _product("·"),
    "div": _product("/", Binds.POWER),
    "pow": _power,
    "sqrt": lambda w, node: (f"√{w.text(node.inputs[0], Binds.ATOM)}", Binds.POWER),
    "between": lambda w, node: (f"{node.text[0]}{w.text(node.inputs[0])}{node.text[1]}", Binds.ATOM),
    "after": lambda w, node: (f"{w.text(node.inputs[0], Binds.ATOM)}{node.text}", Binds.ATOM),
    "index": lambda w, node: (f"{w.text(node.inputs[0], Binds.ATOM)}[{node.text}]", Binds.ATOM),
    "item": _item,
    "call": lambda w, node: (f"{node.text}({_listed(w, node.inputs)})", Binds.ATOM),
    "tuple": lambda w, node: (f"({_listed(w, node.inputs)})", Binds.ATOM),
    "apply": _apply,
    "attend": _attend,
}
"""How each kind of node is written."""

UNNAMED = {"name", "raw", "number", "item"}
"""Kinds that are as short as a name would be."""
