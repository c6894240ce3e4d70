"""YAML files as layers of a config, each value with its file and line.

A file is hostile until parsed: its size, depth and number of values are bounded, and it may hold plain maps, lists and
scalars only. Tags and aliases are refused: `${key}` and `extends:` do what they would do, and are bounded.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from shearling.config.tree import LONGEST_TEXT, Entry, Keys, Tree
from shearling.errors import UserError

LARGEST_FILE = 64 * 1024
DEEPEST = 16
MOST_FILES = 64
LONGEST_REASON = 160

Lines: TypeAlias = dict[Keys, int]


def read_layers(path: Path) -> list[Tree]:
    """The file's layers, those that it extends first, itself last.

    Raises:
        UserError: one line for each file that is missing, malformed or extends itself, naming the chain to it.
    """
    reader = _Reader()
    layers = reader.read(path, ())
    if reader.problems:
        raise UserError("\n".join(dict.fromkeys(reader.problems)))
    return layers


def parse(text: str, source: str) -> tuple[dict[str, Any], Lines]:
    """A map from YAML text, and the line of each of its keys.

    Scalars read as OmegaConf reads them (`1e-3` is a float). Raises UserError for anything but a map of plain values.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _refuse_trickery(yaml.parse(text, Loader=loader), source)
        root = yaml.compose(text, Loader=loader)
        if root is None:
            return {}, {}
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{source}:1: is not a map: write `key: value` lines")
        lines = dict(_lines(root))
        data = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{source}:{mark.line + 1 if mark else 1}: is not YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{source}: is not YAML: {error.reason} at character {error.position}") from None
    except RecursionError:
        raise UserError(f"{source}: a ${{...}} is nested too deep") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {first_line(error)} (at {error.full_key})") from None
    except ValueError as error:  # an integer with more digits than Python converts
        raise UserError(f"{source}: is not YAML: {first_line(error)}") from None
    _refuse_odd_names(data, source)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}, lines


def first_line(error: Exception) -> str:
    """The part of a library's message that says what is wrong."""
    return str(error).partition("\n")[0][:LONGEST_REASON]


def _refuse_trickery(events: Iterator[Any], source: str) -> None:
    """Checks a stream of YAML events, before anything recursive sees it."""
    import yaml

    depth = 0
    for event in events:
        where = f"{source}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise UserError(f"{where}: is nested deeper than {DEEPEST} levels")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{where}: anchors and aliases (&{event.anchor}) are not read: use ${{key}} or `extends`")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_TEXT:
            raise UserError(f"{where}: is a text of {len(event.value):,} characters: {LONGEST_TEXT:,} is the most")
        if getattr(event, "tag", None):
            raise UserError(f"{where}: the tag {event.tag} is not read: write a plain value")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise UserError(f"{where}: the merge key << is not read: use `extends`")


def _lines(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, int]]:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            yield (*keys, key.value), key.start_mark.line + 1
            yield from _lines(value, (*keys, key.value))


def _refuse_odd_names(data: Any, source: str) -> None:
    """Refuses a map with a key that is not a text: YAML reads `on:` as a boolean, and `1:` as a number."""
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                raise UserError(f"{source}: the key {key!r} is not a name: put it in quotes if it should be one")
            _refuse_odd_names(value, source)
    elif isinstance(data, list):
        for value in data:
            _refuse_odd_names(value, source)


class _Reader:
    def __init__(self) -> None:
        self.problems: list[str] = []
        self.files = 0

    def read(self, path: Path, chain: tuple[Path, ...]) -> list[Tree]:
        chain = (*chain, path)
        source = os.path.normpath(path)
        route = " → ".join(os.path.normpath(link) for link in chain)
        self.files += 1
        if self.files > MOST_FILES:
            self.problems.append(f"{os.path.normpath(chain[0])}: extends more than {MOST_FILES} files")
            return []
        try:
            if path.resolve() in [link.resolve() for link in chain[:-1]]:
                raise UserError(f"{source}: extends itself: {route}")
            data, lines = parse(_text(path, source, route if len(chain) > 1 else ""), source)
            bases = _bases(data.pop("extends", []), f"{source}:{lines.get(('extends',), 1)}")
            tree = _tree(data, lines, source)
        except UserError as error:
            self.problems.append(str(error))
            return []
        except (OSError, RuntimeError) as error:  # RuntimeError: Path.resolve in a loop of links, before Python 3.13
            self.problems.append(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}")
            return []
        # Seen one file further, a base's own bases are relative to that base.
        return [layer for base in bases for layer in self.read(path.parent / base, chain)] + [tree]


def _text(path: Path, source: str, route: str) -> str:
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "no such file"
        raise UserError(f"{source}: {fault}" + (f" ({route})" if route else ""))
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise UserError(f"{source}: is larger than {LARGEST_FILE // 1024} KiB: a config is a few lines of YAML")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: is not UTF-8 text: byte {error.start} is {content[error.start]:#04x}") from None


def _bases(extends: Any, where: str) -> list[str]:
    bases = [extends] if isinstance(extends, str) else extends
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise UserError(f"{where}: extends: should be a file or a list of files")
    if "\0" in "".join(bases):
        raise UserError(f"{where}: extends: a file's name holds no NUL")
    return bases


def _tree(data: dict[str, Any], lines: Lines, source: str, keys: Keys = ()) -> Tree:
    tree: Tree = {}
    for key, value in data.items():
        place = (*keys, key)
        if isinstance(value, dict):
            tree[key] = _tree(value, lines, source, place)
        else:
            tree[key] = Entry(value, f"{source}:{lines[place]}")
    return tree
