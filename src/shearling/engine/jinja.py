"""Jinja as chat templates expect it, in a sandbox. Imported when a template is first rendered.

A template comes with a model and is a stranger's program: it reaches no attribute of Python's, changes nothing that it
is given, and what it makes is bounded. What `transformers` lets templates call by name is there.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 1 << 22
"""Characters that a rendered conversation may have, and items of what a template makes by repeating something."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's own, which bounds ranges. Products and arguments are bounded too; powers and widths are not there."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        self.filters = {name: _bounded(function) for name, function in self.filters.items() if name != "format"}
        self.filters["tojson"] = _tojson
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        repeated, times = (right, left) if isinstance(left, int) else (left, right)
        too_large = hasattr(repeated, "__len__") and (operator == "%" or len(repeated) * times > LONGEST)
        if operator == "**" or too_large:
            raise SecurityError(f"{operator} can make something too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if getattr(obj, "__name__", "") in ("format", "format_map"):
            raise SecurityError("str.format can make something too large")
        _check(args, kwargs)
        return super().call(context, obj, *args, **kwargs)


class Generation(Extension):
    """`{% generation %}` marks what a model says, for those who train on it; its content is like any other."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """In place of Jinja's own, which escapes what HTML would misread."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def render(source: str, **variables: Any) -> str:
    """The text that a template makes of some variables.

    Raises:
        Exception: whatever a stranger's program comes to.
    """
    pieces, total = [], 0
    for piece in _compiled(source).generate(**variables):
        pieces.append(piece)
        total += len(piece)
        if total > LONGEST:
            raise SecurityError(f"it writes more than {LONGEST:,} characters")
    return "".join(pieces)


@lru_cache(maxsize=4)
def _compiled(source: str) -> Template:
    return Sandbox().from_string(source)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # which keeps what Jinja notes in a filter
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check(args, kwargs)
        return function(*args, **kwargs)

    return checked


def _check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if any(isinstance(value, int) and abs(value) > LONGEST for value in (*args, *kwargs.values())):
        raise SecurityError("an argument is too large")
