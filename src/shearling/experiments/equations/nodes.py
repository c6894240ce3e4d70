"""The graph of a traced computation."""

from collections.abc import Iterator
from dataclasses import dataclass


class UntraceableError(Exception):
    """The code does what no equation of ours says; the message says what."""


@dataclass(eq=False)
class Node:
    """One value of a computation.

    Attributes:
        kind: a key of `writing.FORMS`, which says how it is written.
        inputs: the values that it is made of.
        text: a name, a number, a function's name, an index: what else its form needs.
        value: of a named number, its present value.
        hint: what to call it where it needs a name.
    """

    kind: str
    inputs: tuple["Node", ...] = ()
    text: str = ""
    value: str = ""
    hint: str = ""


def number(value: float) -> Node:
    """A constant, with five significant digits."""
    return Node("number", text=f"{value:.5g}".replace("-", "−") if value < 0 else f"{value:.5g}")


def name(text: str, value: str = "") -> Node:
    """Something called `text`: an input, a parameter."""
    return Node("name", text=text, value=value)


def raw(text: str) -> Node:
    """Something that stands as it is: an option's value, a remark."""
    return Node("raw", text=text)


def call(function: str, *inputs: Node) -> Node:
    """A function by its name, of its arguments."""
    return Node("call", inputs, function)


def walk(*outputs: Node) -> Iterator[Node]:
    """Every node that the outputs are made of, and they themselves, each once, in the order in which they are read."""
    seen: set[Node] = set()
    stack = list(reversed(outputs))
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack += reversed(node.inputs)
