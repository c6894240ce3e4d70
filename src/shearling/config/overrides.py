"""`a.b=1`, `b=1`, `--b 1` and `--a.b=1` as the last layer of a config."""

from collections.abc import Iterator, Sequence
from typing import Any

from shearling.config.files import parse
from shearling.config.places import Options, ending_in, mend, options_at
from shearling.config.spec import CustomSpec, Spec
from shearling.config.tree import COMMAND_LINE, Entry, Keys, Tree, dotted
from shearling.errors import UserError


def read_overrides(schema: type[Spec], arguments: Sequence[str]) -> tuple[Tree, list[str]]:
    """The layer that the arguments make, and what is wrong with them as one line each.

    A name is a whole dotted one, or any ending of one that is unique in the schema; dashes are read as underscores.
    Values are YAML. Of two values for one key the later wins.
    """
    layer: Tree = {}
    problems: list[str] = []
    pairs = _pairs(arguments, problems)
    for name, text in pairs:
        try:
            keys = _place(schema, name)
            _put(layer, keys, _value(name, text))
        except UserError as error:
            problems.append(f"{COMMAND_LINE}: {error}")
    return layer, problems


def _pairs(arguments: Sequence[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    rest = iter(arguments)
    for argument in rest:
        name, equals, text = argument.removeprefix("--").partition("=")
        if equals:
            yield name, text
        elif not argument.startswith("--"):
            problems.append(f"{COMMAND_LINE}: {argument}: is not an override: write key=value or --key value")
        elif (following := next(rest, None)) is None:
            problems.append(
                f"{COMMAND_LINE}: {argument}: no option of this command, and as an override it has no value: "
                f"write {argument}=value"
            )
        else:
            yield name, following


def _place(schema: type[Spec], name: str) -> Keys:
    keys = tuple(name.replace("-", "_").split("."))
    found = ending_in(schema, keys)
    if not found and any(issubclass(spec, CustomSpec) for spec in _options(schema, keys[:-1])):
        return keys  # an option that only the user's own class knows
    if len(found) > 1:
        raise UserError(f"{name}: may be {', '.join(map(dotted, found))}: write more of the name")
    if not found:
        raise UserError(f"{name}: unknown key: {_mend(schema, keys)}")
    return found[0]


def _mend(schema: type[Spec], keys: Keys) -> str:
    """What to write instead, judged at the first key that is unknown."""
    known = 0
    options: Options = (schema,)
    while below := [spec for spec in options if keys[known] in spec.model_fields]:
        options = tuple(inner for spec in below for inner in options_at(spec, keys[known]))
        known += 1
    if not options:
        return f"{dotted(keys[:known])} is not a map"
    return mend(schema, keys[: known + 1], options, options[0] if len(options) == 1 else None)


def _options(schema: type[Spec], keys: Keys) -> Options:
    """The specs that may stand at a place, by its whole name."""
    options: Options = (schema,)
    for key in keys:
        options = tuple(below for spec in options for below in options_at(spec, key))
    return options


def _value(name: str, text: str) -> Any:
    if not text:
        raise UserError(f"{name}: has no value: write {name}=null for none")
    try:
        data, _ = parse(f"value: {text}", name)
    except UserError as error:
        raise UserError(f"{name}: {text!r} is no YAML value: put it in quotes if it is a text") from error
    if list(data) != ["value"]:
        raise UserError(f"{name}: {text!r} is more than one value")
    return data["value"]


def _put(layer: Tree, keys: Keys, value: Any) -> None:
    *parents, last = keys
    for key in parents:
        node = layer.setdefault(key, {})
        if isinstance(node, Entry):
            node = layer[key] = {}
        layer = node
    layer[last] = _node(value)


def _node(value: Any) -> Entry | Tree:
    return {k: _node(v) for k, v in value.items()} if isinstance(value, dict) else Entry(value, COMMAND_LINE)
