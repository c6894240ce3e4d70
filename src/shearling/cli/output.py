"""Standard output, whose loss every command may meet: a full disk, a reader that has gone."""

import errno
import os
from typing import Any, TextIO


class OutputLost(Exception):  # noqa: N818 (where a reader has read enough it is no error)
    """Standard output takes no more. No OSError, so that it is not taken for that of a file."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.reader_has_gone = error.errno == errno.EPIPE


class CheckedOutput:
    """A stream that tells its own errors from those of files.

    Raises:
        OutputLost: by `write` and `flush`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As the stream's."""
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputLost(error) from error

    def flush(self) -> None:
        """As the stream's."""
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputLost(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def discard(stream: TextIO) -> None:
    """Let what a lost stream still holds go nowhere: the interpreter flushes it at its end, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
