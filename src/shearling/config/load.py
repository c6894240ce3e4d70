"""From a file and overrides to a frozen value that knows where each of its parts came from."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from shearling.config.complaints import complaints
from shearling.config.files import first_line, read_layers
from shearling.config.merge import merge
from shearling.config.overrides import read_overrides
from shearling.config.record import flatten
from shearling.config.spec import CUSTOM, Spec, tag
from shearling.config.tree import DEFAULT, Keys, Tree, dotted, leaves, origin, unfit, values
from shearling.errors import UserError

T = TypeVar("T", bound=Spec)

MOST_INTERPOLATIONS = 16
LARGEST_EXACT = 2**53
SHOWN = 60


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A config as it will be used."""

    value: T
    path: Path
    origins: dict[str, str]
    """For each dotted key of the value: `file:line`, `command line` or `default`."""


def load(schema: type[T], path: Path | str, overrides: Sequence[str] = ()) -> Loaded[T]:
    """Reads a config: defaults, then the files that it extends, the file itself, and the overrides.

    Args:
        schema: what the config must hold.
        path: a YAML file; `extends` in it is relative to it, every other path in it to the working directory.
        overrides: as on the command line: `a.b=1`, `b=1`, `--b 1`.

    Raises:
        UserError: a line for each thing that is wrong, with its file and line, its dotted key and the mend.
    """
    path = Path(path)
    layers = read_layers(path)
    override, problems = read_overrides(schema, overrides)
    tree, merge_problems = merge(schema, [*layers, override])
    data, failed = _interpolate(tree)
    problems += merge_problems + list(failed.values())
    source = os.path.normpath(path)
    try:
        # Strict, so that `true` is no 1 and "1" no number; from JSON, where a list may still become a tuple.
        value = schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems += complaints(schema, error, data, tree, source, ignore=set(failed))
    else:
        if not problems:
            return Loaded(value, path, {dotted(keys): origin(tree, keys) or DEFAULT for keys in flatten(value)})
    raise UserError("\n".join(dict.fromkeys(problems)))


def sections(path: Path | str) -> set[str]:
    """The top-level keys that a file and those that it extends give. Raises UserError where one cannot be read."""
    return {key for layer in read_layers(Path(path)) for key in layer}


def _interpolate(tree: Tree) -> tuple[dict[str, Any], dict[Keys, str]]:
    """The tree's values with `${...}` filled in, and a line for each that is unfit or cannot be filled in."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    data = values(tree)
    failed: dict[Keys, str] = {}

    def keep(keys: Keys, value: Any, fault: str | None) -> None:
        if fault:
            failed[keys] = f"{origin(tree, keys)}: {dotted(keys)}: {fault}"
        holder = _at(data, keys[:-1])
        exact = tag(holder.get("kind")) == CUSTOM  # a user's class gets what was written
        holder[keys[-1]] = None if fault else value if exact else _whole(value)

    for keys, value in leaves(data):
        keep(keys, value, unfit(value))
    pending = {keys: text for keys, value in leaves(data) if "${" in (text := str(value)) or "???" in text}
    # References that double at each of many steps would grow without bound.
    if sum(text.count("${") for text in pending.values()) > MOST_INTERPOLATIONS:
        raise UserError(f"{origin(tree, next(iter(pending)))}: more than {MOST_INTERPOLATIONS} ${{...}} in one config")
    config = OmegaConf.create(data) if pending else None
    for keys, text in pending.items():
        try:
            value = _at(config, keys)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        except (OmegaConfBaseException, RecursionError) as error:
            keep(keys, None, f"{text[:SHOWN]} has no value: {first_line(error)}")
        else:
            keep(keys, value, unfit(value) or ("holds ${ after interpolation" if "${" in str(value) else None))
    return data, failed


def _at(node: Any, keys: Keys) -> Any:
    for key in keys:
        node = node[key]
    return node


def _whole(value: Any) -> Any:
    """Floats that are whole numbers as integers, so that `steps: 2e3` counts; exact, and a float option takes both."""
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_EXACT else value
