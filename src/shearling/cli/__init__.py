"""The commands: each parses, calls one function, and prints. What they call is imported when they run."""

import sys
from io import TextIOWrapper

from shearling.cli import bench, experiments, files, writing
from shearling.cli.application import app
from shearling.errors import Interrupted, UserError

__all__ = ["app", "bench", "experiments", "files", "main", "writing"]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. A user's mistake ends it with status 2 and a line for each thing to mend; a signal that a
    run has answered by saving, with 128 and its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? where a plot has blocks
    try:
        app(arguments)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interruption:
        sys.exit(128 + interruption.signal_number)
