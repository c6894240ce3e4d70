"""Reads documents from files: plain text, JSON lines and Parquet, compressed or not.

A document is a `str` that UTF-8 can write. What cannot be read is reported to a `Ledger` and skipped. Memory holds one
document of at most `LONGEST_DOCUMENT` bytes at a time, and one line of at most `LONGEST_LINE`.
"""

import codecs
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydantic import Field

from shearling.config import Spec
from shearling.errors import UserError

LONGEST_DOCUMENT = 1 << 20
"""Bytes; what is longer is cut at line ends into documents of at most this."""
UNMARKED_PIECE = 1 << 13
"""Bytes; a .txt file that is a source by itself and has no separators is cut into documents of at most this."""
LONGEST_LINE = 1 << 26
"""Bytes; a longer line of a .jsonl file is skipped as malformed."""
PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class TextOptions:
    """Where the text of a document stands.

    Attributes:
        separator: the line between the documents of a .txt file.
        text_field: the field of a record that holds the text.
        longest_unmarked: bytes; a .txt file without separators is cut into documents of at most this.
    """

    separator: str = "<|endoftext|>"
    text_field: str = "text"
    longest_unmarked: int = LONGEST_DOCUMENT


class Problem(Spec):
    """Something in a source that was skipped, and where it is."""

    file: str = Field(description="the file, or the data set's name")
    line: int | None = Field(None, description="line of the file, or record of the table, from 1")
    what: str = Field(description="what is wrong there")


@dataclass
class Ledger:
    """What came of reading: problems counted, the first of them located, and how far the reader is.

    Args:
        strict: a problem is an error.
    """

    strict: bool = False
    problems: int = 0
    first_problems: list[Problem] = field(default_factory=list)
    documents_cut: int = 0
    empty_documents: int = 0
    bytes_read: int = 0
    """Bytes of the files, as they lie on the disk, that are behind the reader."""

    def problem(self, file: str, what: str, line: int | None = None) -> None:
        """Count a problem and note where it is.

        Raises:
            UserError: in strict mode.
        """
        if self.strict:
            raise UserError(
                f"{file}{'' if line is None else f', line {line}'}: {what} (without --strict it is skipped)"
            )
        self.problems += 1
        if len(self.first_problems) < PROBLEMS_SHOWN:
            self.first_problems.append(Problem(file=file, line=line, what=what))


Reader = Callable[[Path, TextOptions, Ledger], Iterator[str]]


def read_documents(path: Path, options: TextOptions, ledger: Ledger, reader: Reader | None = None) -> Iterator[str]:
    """Documents of one file, in order, none of them blank.

    A file that cannot be opened or breaks off is a problem, not an exception. The reader is the one for the file's
    name where none is given.
    """
    reader = reader or reader_of(path)
    assert reader is not None, path
    count = 0
    problems_before = ledger.problems
    start = ledger.bytes_read
    try:
        for document in reader(path, options, ledger):
            if document.strip():
                count += 1
                yield document
            else:
                ledger.empty_documents += 1
    except (OSError, EOFError, zlib.error) as error:
        ledger.problem(str(path), f"cannot be read further: {str(error) or type(error).__name__}")
    if not count and ledger.problems == problems_before:
        ledger.problem(str(path), "no text in it")
    ledger.bytes_read = start + (path.stat().st_size if path.exists() else 0)


def read_text(path: Path, options: TextOptions, ledger: Ledger) -> Iterator[str]:
    """Documents between lines that hold nothing but the separator; without such a line, the file.

    The line end before a separator belongs to the separator. A file in whose first megabyte no separator stands is
    cut at line ends into documents of at most `options.longest_unmarked` bytes, for it may be one endless document.
    """
    separator = options.separator.encode()
    with _open(path, ledger) as stream:
        buffer = bytearray(stream.read(LONGEST_DOCUMENT))
        marked = _find_line(buffer, separator, ends=True) is not None
        limit = LONGEST_DOCUMENT if marked else options.longest_unmarked
        line, ends = 1, False
        while buffer or not ends:
            found = _find_line(buffer, separator, ends)
            if found is None and len(buffer) < limit + len(separator) + 2 and not ends:
                block = stream.read(LONGEST_DOCUMENT)
                buffer += block
                ends = not block
                continue
            stop, following = found or (len(buffer), len(buffer))
            at_separator = found is not None or marked  # a separator after the last document may be missing
            if stop > limit:
                at_separator = False
                stop = following = _cut(buffer, limit)
                ledger.documents_cut += 1
            document = buffer[:stop]
            if document:
                yield from _decoded(document, at_separator, path, line, ledger)
            line += buffer.count(b"\n", 0, following)
            del buffer[:following]


def read_whole(path: Path, options: TextOptions, ledger: Ledger) -> Iterator[str]:
    """The file as one document, for source code and the like."""
    with _open(path, ledger) as stream:
        document = bytearray(stream.read())
    for text in _decoded(document, False, path, 1, ledger):
        yield from cut_document(text, ledger)


def read_json_lines(path: Path, options: TextOptions, ledger: Ledger) -> Iterator[str]:
    """One JSON object a line, whose text field is a document."""
    with _open(path, ledger) as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                ledger.problem(str(path), f"longer than {LONGEST_LINE >> 20} MiB", number)
                while line and not line.endswith(b"\n"):
                    line = stream.readline(LONGEST_LINE)
                continue
            if line.isspace():
                continue
            try:
                text = text_of(json.loads(line), options.text_field)
            except (ValueError, RecursionError) as error:
                ledger.problem(str(path), _reason(error), number)
                continue
            yield from cut_document(text, ledger)


def read_parquet(path: Path, options: TextOptions, ledger: Ledger) -> Iterator[str]:
    """One row a document, from a column of strings."""
    arrow = import_extra("pyarrow")
    parquet = import_extra("pyarrow.parquet")
    size, start, number = path.stat().st_size, ledger.bytes_read, 0
    try:
        # A buffer makes the library stream a column's pages, which else it reads a row group at a time.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            if options.text_field not in names:
                ledger.problem(str(path), f"no column {options.text_field!r}; there are {', '.join(names)}")
                return
            for batch in file.iter_batches(batch_size=64, columns=[options.text_field]):
                for value in batch.column(0):
                    number += 1
                    try:
                        text = text_of({options.text_field: value.as_py()}, options.text_field)
                    except ValueError as error:
                        ledger.problem(str(path), _reason(error), number)
                        continue
                    yield from cut_document(text, ledger)
                ledger.bytes_read = start + size * number // max(file.metadata.num_rows, 1)
    except arrow.ArrowException as error:
        ledger.problem(str(path), f"cannot be read further: {error}", number + 1)


def _open_plain(path: Path, ledger: Ledger) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_CountedFile(path, ledger), 1 << 18))


def _open_gzip(path: Path, ledger: Ledger) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=_open_plain(path, ledger)), 1 << 18))


def _open_zstandard(path: Path, ledger: Ledger) -> BinaryIO:
    # pyarrow tells a truncated file from a whole one; the zstandard package's stream reader does not.
    arrow = import_extra("pyarrow")
    return cast(BinaryIO, io.BufferedReader(arrow.CompressedInputStream(_open_plain(path, ledger), "zstd"), 1 << 18))


READERS: dict[str, Reader] = {".txt": read_text, ".jsonl": read_json_lines, ".parquet": read_parquet}
"""Readers by a file's suffix."""
_OPENERS = {"": _open_plain, ".gz": _open_gzip, ".zst": _open_zstandard}
"""How the bytes of a .txt or .jsonl file are had, by the compression's suffix."""


def split_suffixes(path: Path) -> tuple[str, str]:
    """A file's suffix without its compression's, and its compression's or nothing, both in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    return (suffixes[-1] if suffixes else ""), compression


def reader_of(path: Path) -> Reader | None:
    """The reader for a file's name, or None."""
    suffix, compression = split_suffixes(path)
    return None if compression and suffix == ".parquet" else READERS.get(suffix)


class _CountedFile(io.RawIOBase):
    """A file that tells the ledger how much of it has been read."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self._file = path.open("rb", buffering=0)
        self._ledger = ledger

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self._ledger.bytes_read += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path, ledger: Ledger) -> BinaryIO:
    return _OPENERS[split_suffixes(path)[1]](path, ledger)


def _find_line(buffer: bytearray, content: bytes, ends: bool) -> tuple[int, int] | None:
    """Where a line with exactly this content begins, and where the next one does; None without such a line.

    `ends` tells that nothing follows the buffer, so that its last line is whole without a line end.
    """
    start = -1
    while (start := buffer.find(content, start + 1)) >= 0:
        end = start + len(content)
        end += buffer.startswith(b"\r", end)
        is_whole = buffer.startswith(b"\n", end) or (ends and end == len(buffer))
        if is_whole and (start == 0 or buffer[start - 1] == 0x0A):
            return start, min(end + 1, len(buffer))
    return None


def _cut(encoded: bytes | bytearray, limit: int) -> int:
    """Where a text longer than `limit` bytes is cut: behind its last line end there, else between two characters."""
    return encoded.rfind(b"\n", 0, limit) + 1 or _character_end(encoded, limit)


def _character_end(encoded: bytes | bytearray, end: int) -> int:
    """The last place at or before `end` where no UTF-8 character is cut; `end` itself where the bytes are not UTF-8."""
    for back in range(1, min(4, end) + 1):
        byte = encoded[end - back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return end - back if length > back else end
    return end


def _decoded(content: bytearray, strip_line_end: bool, path: Path, first_line: int, ledger: Ledger) -> Iterator[str]:
    """The text of these bytes of a file, or none and a problem."""
    if first_line == 1 and content.startswith(codecs.BOM_UTF8):
        del content[: len(codecs.BOM_UTF8)]
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        ledger.problem(str(path), f"not UTF-8 (byte 0x{content[error.start]:02x}): its document is skipped", line)
        return
    if strip_line_end:
        text = text.removesuffix("\n").removesuffix("\r")
    yield text


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno})"
    if isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
        return f"not UTF-8: {error.reason}"
    return str(error)


def text_of(record: object, text_field: str) -> str:
    """The text of a record.

    Raises:
        ValueError: it is no map, has no such field, or the field is no text that UTF-8 can write.
    """
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}, not an object")
    if text_field not in record:
        raise ValueError(f"no field {text_field!r}; there are {', '.join(map(str, list(record)[:8])) or 'none'}")
    text = record[text_field]
    if not isinstance(text, str):
        raise ValueError(f"field {text_field!r} is a {type(text).__name__}, not a text")
    text.encode()
    return text


def cut_document(text: str, ledger: Ledger) -> Iterator[str]:
    """The text, or where it is longer than `LONGEST_DOCUMENT`, pieces of it that end at line ends where they can."""
    if len(text) * 4 <= LONGEST_DOCUMENT or len(encoded := text.encode()) <= LONGEST_DOCUMENT:
        yield text
        return
    while len(encoded) > LONGEST_DOCUMENT:
        end = _cut(encoded, LONGEST_DOCUMENT)
        ledger.documents_cut += 1
        yield encoded[:end].decode()
        encoded = encoded[end:]
    yield encoded.decode()


def import_extra(name: str) -> Any:
    """Import a module of the `data` extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"reading this source needs {name}: pip install 'shearling[data]'") from error
