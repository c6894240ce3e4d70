"""Layers laid over each other: maps merge, lists and scalars replace, later wins."""

from typing import Any

from pydantic_core import to_jsonable_python

from shearling.config.places import Options, choose, options_at
from shearling.config.spec import Spec
from shearling.config.tree import DEFAULT, Entry, Keys, Tree, dotted, leaves


def defaults(schema: type[Spec]) -> Tree:
    """What a schema fills in by itself, as the lowest layer; required values are not in it."""
    tree: Tree = {}
    for key, field in schema.model_fields.items():
        options = options_at(schema, key)
        if not field.is_required():
            tree[key] = _as_default(to_jsonable_python(field.get_default(call_default_factory=True)))
        elif len(options) == 1:
            tree[key] = defaults(options[0])
    return tree


def merge(schema: type[Spec], layers: list[Tree]) -> tuple[Tree, list[str]]:
    """The layers over the schema's defaults, and what is wrong with them as one line each."""
    tree = defaults(schema)
    problems: list[str] = []
    for layer in layers:
        tree = _lay_over(tree, layer, (schema,), (), problems)
    return tree, problems


def _lay_over(base: Tree, layer: Tree, options: Options, keys: Keys, problems: list[str]) -> Tree:
    spec = choose(options, _kind(layer) if "kind" in layer else _kind(base))
    if "kind" in layer and _kind(layer) != _kind(base):
        base = _change_kind(base, layer, spec, keys, problems)
    base, layer = _replace_rivals(base, layer, spec, keys, problems)
    result = dict(base)
    for key, node in layer.items():
        if isinstance(node, dict):
            below = base.get(key)
            below = below if isinstance(below, dict) else {}
            result[key] = _lay_over(below, node, options_at(spec, key), (*keys, key), problems)
        else:
            result[key] = node
    return result


def _kind(tree: Tree) -> Any:
    node = tree.get("kind")
    return node.value if isinstance(node, Entry) else None


def _change_kind(base: Tree, layer: Tree, spec: type[Spec] | None, keys: Keys, problems: list[str]) -> Tree:
    """The new kind's defaults, and over them what was written for the old kind and the new one knows too."""
    if isinstance(_kind(layer), str) and "${" in _kind(layer):
        entry = layer["kind"]
        assert isinstance(entry, Entry)
        problems.append(f"{entry.origin}: {dotted((*keys, 'kind'))}: write the kind itself, not {entry.value}")
    if spec is None:
        return {}
    written = {key: node for key, node in base.items() if key in spec.model_fields and _is_written(node)}
    return {**defaults(spec), **written}


def _is_written(node: Entry | Tree) -> bool:
    entries = [node] if isinstance(node, Entry) else [entry for _, entry in leaves(node)]
    return any(entry.origin != DEFAULT for entry in entries)


def _replace_rivals(
    base: Tree, layer: Tree, spec: type[Spec] | None, keys: Keys, problems: list[str]
) -> tuple[Tree, Tree]:
    """Takes from the base what excludes something in the layer; two rivals in the layer itself are a problem."""
    for group in spec.exclusive if spec else ():
        given = {key: node for key in group if isinstance(node := layer.get(key), Entry) and node.value is not None}
        if len(given) > 1:
            written = " and ".join(f"{key} ({node.origin})" for key, node in given.items())
            where = next(iter(given.values())).origin
            problems.append(f"{where}: {dotted(keys)}: {written} exclude each other: keep one")
            layer = {key: node for key, node in layer.items() if key not in list(given)[1:]}
        if given:
            base = {key: node for key, node in base.items() if key not in group}
    return base, layer


def _as_default(value: Any) -> Entry | Tree:
    return {k: _as_default(v) for k, v in value.items()} if isinstance(value, dict) else Entry(value, DEFAULT)
