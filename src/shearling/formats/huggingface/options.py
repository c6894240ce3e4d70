"""A config.json, and options with dots."""

import json
from pathlib import Path
from typing import Any

from shearling.errors import UserError

Options = dict[str, Any]

LARGEST_FILE = 100_000_000
"""Bytes of a text; the index of the largest published models takes a hundredth of this."""


def read_text(file: Path) -> str:
    """A small UTF-8 file.

    Raises:
        UserError: it cannot be read, is larger than any such file, or is no UTF-8.
    """
    try:
        size = file.stat().st_size
        if size <= LARGEST_FILE:
            return file.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}): fetch the model again") from None
    raise UserError(f"{file}: {size} bytes are more than any such file has: fetch the model again")


def read_json(file: Path) -> Options:
    """The map in a JSON file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    text = read_text(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}): fetch the model again") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: should hold a map: fetch the model again")
    return value


def is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 can hold: JSON's escapes can make halves of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def nested(flat: Options) -> Options:
    """Keys with dots as maps in maps."""
    found: Options = {}
    for dotted, value in flat.items():
        *sections, key = dotted.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return found
