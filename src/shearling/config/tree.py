"""Values that know where they were written: a tree of maps whose leaves are entries."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, Union

Keys: TypeAlias = tuple[str, ...]

DEFAULT = "default"
COMMAND_LINE = "command line"

LONGEST_TEXT = 1000
LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Entry:
    """One value (a scalar or a list) and where it was written: `file:line`, `command line` or `default`."""

    value: Any
    origin: str


Tree: TypeAlias = dict[str, Union[Entry, "Tree"]]


def dotted(keys: tuple[str | int, ...]) -> str:
    """The name of a place as users write it."""
    return ".".join(map(str, keys))


def leaves(tree: Mapping[str, Any], keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every value that is not a map, with its place; depth first, in order."""
    for key, node in tree.items():
        if isinstance(node, dict):
            yield from leaves(node, (*keys, key))
        else:
            yield (*keys, key), node


def origin(tree: Tree, keys: tuple[str | int, ...]) -> str | None:
    """Where the value at, around or first below a place was written, or None where nothing was."""
    node: Entry | Tree = tree
    for key in keys:
        if isinstance(node, Entry):
            return node.origin
        if key not in node:
            return None
        node = node[str(key)]
    if isinstance(node, Entry):
        return node.origin
    return next((entry.origin for _, entry in leaves(node)), None)


def values(tree: Tree) -> dict[str, Any]:
    """The tree without its origins."""
    return {key: node.value if isinstance(node, Entry) else values(node) for key, node in tree.items()}


def unfit(value: Any) -> str | None:
    """What makes a parsed scalar or list unfit for any option, or None: figures stay countable and texts short."""
    if isinstance(value, list):
        return next((fault for fault in map(unfit, value) if fault), None)
    if isinstance(value, dict):
        return next((fault for pair in value.items() for fault in map(unfit, pair) if fault), None)
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return "is an integer of more than 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}: give a finite number"
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"is a text of {len(value):,} characters: {LONGEST_TEXT:,} is the most"
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return "is not valid Unicode"
    return None
