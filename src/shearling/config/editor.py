"""A JSON Schema of config files, for editors that complete and check while one types."""

import json
from pathlib import Path
from typing import Any

from shearling.config.spec import Spec
from shearling.errors import UserError
from shearling.files import write_atomically

_EXTENDS = {
    "description": "files that this one builds on, relative to it; left to right, later wins, this file last",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def editor_schema(schema: type[Spec]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one file of a config.

    A file may be partial, so nothing is required; a map without its `kind` fits every kind that knows its keys.
    """
    whole = schema.model_json_schema()
    whole["properties"] = {"extends": _EXTENDS, **whole["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_partial(whole)}


def save_editor_schema(schema: type[Spec], path: Path) -> None:
    """Writes :func:`editor_schema` to a file; UserError where it cannot be written."""
    try:
        write_atomically(path, json.dumps(editor_schema(schema), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _partial(node: Any) -> Any:
    if isinstance(node, list):
        return [_partial(each) for each in node]
    if not isinstance(node, dict):
        return node
    # `oneOf` would refuse what fits two kinds; OpenAPI's `discriminator` is no JSON Schema; the marker is ours.
    renamed = {"oneOf": "anyOf"}
    dropped = ("required", "discriminator", "affects_results")
    return {renamed.get(key, key): _partial(value) for key, value in node.items() if key not in dropped}
