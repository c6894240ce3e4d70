"""What pydantic found wrong, as one line for each place, with its file, its dotted key and the mend."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from shearling.config.places import Options, choose, mend, nearest, options_at
from shearling.config.spec import Spec, kinds, tag
from shearling.config.tree import DEFAULT, Tree, dotted, origin

Place = tuple[str | int, ...]


def complaints(
    schema: type[Spec], error: ValidationError, data: dict[str, Any], tree: Tree, source: str, ignore: set[Any]
) -> Iterator[str]:
    """One line for each place that does not fit the schema.

    Args:
        schema: what the data was validated against.
        error: pydantic's findings.
        data: the validated values.
        tree: the same with origins.
        source: the config's file, named where something is missing.
        ignore: places already complained about.
    """
    found: dict[Place, list[str]] = {}
    for finding in error.errors(include_url=False):
        place, options, holder = _locate(schema, finding["loc"], data)
        if place not in ignore:
            place, message = _explain(schema, finding, place, options, holder)
            found.setdefault(place, []).append(message)
    for place, messages in found.items():
        text = " or ".join(dict.fromkeys(messages))
        yield f"{_origins(tree, place, text, source)}: {dotted(place) or 'config'}: {text}"


def _locate(schema: type[Spec], loc: Place, data: Any) -> tuple[Place, Options, type[Spec] | None]:
    """The place that pydantic's `loc` names, the specs that may hold its last key, and the one that does.

    Pydantic puts into `loc` which member of a union it tried: a kind, a class or a type's name. Those are no keys.
    """
    place: Place = ()
    options: Options = (schema,)
    chosen: type[Spec] | None = schema
    holders, holder, value = options, chosen, data
    for part in loc:
        tagged = next((spec for spec in options if part in (*kinds(spec), spec.__name__)), None)
        if len(options) > 1 and chosen is None and tagged:
            chosen = tagged
        elif isinstance(value, dict) and (options or part in value):
            place, holders, holder = (*place, part), options, chosen or choose(options, value.get("kind"))
            options, value = options_at(holder, str(part)), value.get(part)
            chosen = options[0] if len(options) == 1 else None
        elif isinstance(value, list) and isinstance(part, int):
            place, options = (*place, part), ()
            value = value[part] if part < len(value) else None
    return place, holders, holder


def _explain(
    schema: type[Spec], finding: Any, place: Place, options: Options, holder: type[Spec] | None
) -> tuple[Place, str]:
    """Where and what is wrong, in the words of a config."""
    kind, context = finding["type"], finding.get("ctx", {})
    keys = tuple(map(str, place))
    if kind == "missing":
        field = holder.model_fields.get(keys[-1]) if holder else None
        return place, f"is missing: {field.description}" if field and field.description else "is missing"
    if kind == "extra_forbidden":
        return place, f"unknown key: {mend(schema, keys, options, holder)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        known = [str(each) for spec in options_at(holder, keys[-1]) for each in kinds(spec)]
        if isinstance(given := finding["input"], str):
            meant = given if tag(given) in known else nearest(given, known) or known[0]
            return place, f"should be a map{_instead(given)}: write {keys[-1]}.kind={meant}"
        return (*place, "kind"), _one_of(known, context.get("tag"))
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return place, _one_of(known, finding["input"])
    if kind == "value_error":
        return place, str(context["error"])
    message = finding["msg"]
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return place, message + _instead(finding["input"])


_WORDS = {
    "Input should": "should",
    "String should": "should",
    "Tuple should": "should",
    " after validation": "",
    "an object": "a map",
    "valid array": "list",
}


def _one_of(known: list[str], given: Any) -> str:
    near = nearest(str(given), known)
    return f"should be {' or '.join(known)}{_instead(given)}" + (f": did you mean {near}?" if near else "")


def _instead(given: Any) -> str:
    text = json.dumps(given, ensure_ascii=False, default=str)
    return "" if isinstance(given, (dict, list)) or len(text) > 60 else f", not {text}"


def _origins(tree: Tree, place: Place, text: str, source: str) -> str:
    """Where what is wrong was written: the values that the text names, else the place itself, else the file."""
    named = (origin(tree, (*place, *word.split("."))) for word in re.findall(r"[a-z][a-z0-9_.]*[a-z0-9]", text))
    written = [where for where in dict.fromkeys(named) if where and where != DEFAULT]
    itself = origin(tree, place)
    return " and ".join(written) or (itself if itself and itself != DEFAULT else source)
