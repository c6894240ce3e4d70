"""The commands: each parses, calls one function, and prints. What they call is imported when they run."""

import signal
import sys
from contextlib import redirect_stdout
from io import TextIOWrapper
from typing import Any, TextIO, cast

from typer.core import TyperGroup

from shearling.cli import bench, experiments, files, planning, writing
from shearling.cli.application import app, say
from shearling.cli.output import CheckedOutput, OutputLost, discard
from shearling.errors import Interrupted, UserError

__all__ = ["app", "bench", "experiments", "files", "main", "planning", "writing"]

INTERRUPTED = 128 + signal.SIGINT


class Commands(TyperGroup):
    """Typer's own, which takes an EOFError for a user who leaves, and hides where it came from."""

    def invoke(self, ctx: Any) -> Any:
        """As typer's."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError("internal error: something ended early, and nothing expected it") from error


app.info.cls = Commands


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line, and exits.

    A user's mistake ends it with status 2 and a line for each thing to mend; Ctrl-C with 130 and a word; a signal that
    a run has answered by saving, with 128 and its number; the loss of standard output with 1, and with a line unless
    its reader has read enough.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? where a plot has blocks
    if sys.stdout is None:  # closed by whoever started the program: print() knows that
        sys.exit(_status(arguments))
    output = CheckedOutput(sys.stdout)
    try:
        with redirect_stdout(cast(TextIO, output)):
            status = _status(arguments)
            output.flush()
    except OutputLost as lost:
        if not lost.reader_has_gone:
            say(f"error: standard output: cannot be written ({lost}): make room, or send it elsewhere")
        discard(sys.stdout)
        status = 1
    sys.exit(status)


def _status(arguments: list[str] | None) -> int | str | None:
    """What a command ends with, once it has ended."""
    try:
        app(arguments)
        status: int | str | None = 0
    except SystemExit as ended:
        status = ended.code
    except KeyboardInterrupt:  # before typer takes it
        status = INTERRUPTED
    except UserError as error:
        for line in str(error).splitlines():
            say(f"error: {line}")
        return 2
    except Interrupted as interruption:
        return 128 + interruption.signal_number
    if status == INTERRUPTED:
        say("\ninterrupted")
    return status
