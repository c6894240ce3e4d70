"""What callers in Python pass: taken as what it should be, or refused by its name. numpy's numbers are numbers."""

import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from numbers import Real
from typing import Any

from shearling.errors import UserError


def whole_number(name: str, value: object) -> int:
    """An integer of any kind, as Python's.

    Raises:
        UserError: it is none.
    """
    with suppress(TypeError):
        return operator.index(value)  # type: ignore[arg-type]
    raise UserError(f"{name} {_shown(value)}: should be a whole number")


def number(name: str, value: object) -> float:
    """A number of any kind, as Python's float.

    Raises:
        UserError: it is none, or larger than any float.
    """
    with suppress(OverflowError):
        if isinstance(value, Real):
            return float(value)
    raise UserError(f"{name} {_shown(value)}: should be a number")


def several(name: str, value: object) -> list[Any]:
    """What an argument lists.

    Raises:
        UserError: it is a single text, a mapping, or no list at all.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return list(value)
    raise UserError(f"{name} {_shown(value)}: should be a list")


def whole_numbers(name: str, value: object) -> list[int]:
    """A list of integers of any kind, as Python's.

    Raises:
        UserError: it is none.
    """
    return [whole_number(name, each) for each in several(name, value)]


def stop_strings(value: object) -> list[str]:
    """One text, several, or None for none.

    Raises:
        UserError: it is none of these, or one of them is no valid UTF-8.
    """
    if value is None:
        return []
    strings = [value] if isinstance(value, str) else several("stop", value)
    for string in strings:
        check_text(string, "stop")
    return strings


def check_text(text: object, what: str) -> None:
    """Refuse what no tokenizer takes.

    Raises:
        UserError: it is no text, or no valid UTF-8.
    """
    if not isinstance(text, str):
        raise UserError(f"{what} {_shown(text)}: should be a text")
    try:
        text.encode()
    except UnicodeEncodeError:  # a command line's undecodable bytes arrive as lone surrogates
        raise UserError(f"{what} is no valid UTF-8: check the terminal's encoding") from None


def _shown(value: object) -> str:
    """As a caller would write it, on one line, cut to a length that messages can take."""
    return f"{' '.join(repr(value).split()):.60}"
