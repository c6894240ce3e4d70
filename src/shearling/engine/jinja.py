"""Jinja as chat templates expect it, in a sandbox. Runs in a process of its own, which `rendering` starts.

A template comes with a model and is a stranger's program: it reaches no attribute of Python's and changes nothing that
it is given. What it makes on its way, and how long that takes, no check within the process could bound: products, joins
and nested lists grow from one line to the next. The kernel does, for the whole process. What `transformers` lets
templates call by name is there.
"""

import json
import math
import resource
import sys
import time
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shearling.engine.rendering import MEMORY, SECONDS

LONGEST = 1 << 22
"""Characters that a rendered conversation may have."""

LONGEST_ERROR = 300
"""Characters of an error that are passed on: its text is the stranger's."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's own, with what `transformers` adds."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}


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


def serve() -> None:
    """Answer each line of standard input, {"source": …, "variables": …}, with {"text": …} or {"error": …}.

    What takes too long ends the process.
    """
    _bound(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":  # others refuse this bound, or know it and do not keep it
        _bound(resource.RLIMIT_AS, MEMORY)
    for line in sys.stdin.buffer:
        _bound(resource.RLIMIT_CPU, math.ceil(time.process_time()) + SECONDS)
        asked = json.loads(line)
        sys.stdout.write(json.dumps(_answer(asked["source"], asked["variables"])) + "\n")
        sys.stdout.flush()


def _bound(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _answer(source: str, variables: dict[str, Any]) -> dict[str, str]:
    try:
        return {"text": _render(source, variables)}
    except MemoryError:
        return {"error": f"it takes more than {MEMORY >> 20} MiB of memory"}
    except Exception as error:  # a stranger's program fails as it likes
        return {"error": " ".join(str(error).split())[:LONGEST_ERROR] or type(error).__name__}


def _render(source: str, variables: dict[str, Any]) -> str:
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
