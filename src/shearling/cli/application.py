"""The application that commands join, and the options that several of them take."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="shearling",
    help="Grow, compare, shear and ship small LLaMA-style language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: drawing panels more than doubles the time to answer
)

OVERRIDABLE = {"allow_extra_args": True, "ignore_unknown_options": True}

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; overrides may follow: a.b=1 or --b 1")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Threads = Annotated[int | None, typer.Option(min=1, help="threads that work together [one a core]")]


def say(text: str) -> None:
    """A line for the user that is no result: to standard error."""
    print(text, file=sys.stderr, flush=True)


@app.callback()
def shearling() -> None:
    """Commands that take a CONFIG take overrides after it: training.steps=100, steps=100 or --steps 100."""
