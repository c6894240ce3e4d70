"""Where text comes from: files, folders, the Python standard library, and data sets of the Hub.

A source gives its documents in a fixed order, and can say what it is (`identity`), so that a data folder records what
it was made of.
"""

import hashlib
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from shearling.data.readers import (
    READERS,
    UNMARKED_PIECE,
    Ledger,
    Reader,
    TextOptions,
    read_documents,
    read_whole,
    reader_of,
)
from shearling.errors import UserError
from shearling.files import sha256_file


class Source(ABC):
    """A sequence of documents.

    Attributes:
        name: as the user gave it.
        kind: what sort of source it is.
        total_bytes: of its files as they lie on the disk; None where that is not known.
        is_remote: its documents come over the network, so they are better not read twice.
    """

    kind: str
    is_remote: ClassVar[bool] = False
    name: str
    total_bytes: int | None

    @abstractmethod
    def documents(self, options: TextOptions, ledger: Ledger) -> Iterator[str]:
        """The documents, in order; what cannot be read goes to the ledger.

        Raises:
            UserError: a problem in strict mode, or a source that cannot be reached.
        """

    @abstractmethod
    def identity(self) -> str:
        """SHA-256 of the content, or the revision of a remote data set."""


class FileSource(Source):
    """One file, or several below one folder, in the order given."""

    def __init__(self, name: str, kind: str, root: Path, files: Sequence[Path], reader: Reader | None = None) -> None:
        self.name = name
        self.kind = kind
        self._root = root
        self._files = files
        self._reader = reader
        self.total_bytes = sum(file.stat().st_size for file in files)

    def documents(self, options: TextOptions, ledger: Ledger) -> Iterator[str]:
        if self.kind == "file":
            # One long text, such as a book: as one document it could not be held out in part.
            options = replace(options, longest_unmarked=UNMARKED_PIECE)
        for file in self._files:
            yield from read_documents(file, options, ledger, self._reader)

    def identity(self) -> str:
        if self._files == [self._root]:
            return sha256_file(self._root)
        return sha256_of_files(self._root, self._files)


def sha256_of_files(root: Path, files: Sequence[Path]) -> str:
    """One hash over the relative paths and contents of files."""
    lines = [f"{sha256_file(file)}  {file.relative_to(root).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def resolve_source(name: str) -> Source:
    """The source that a name stands for: a named corpus, `hub:OWNER/NAME[:CONFIG[:SPLIT]]`, a file or a folder.

    Raises:
        UserError: there is no such corpus or path, its kind is unknown, or nothing in the folder can be read.
    """
    from shearling.data.hub import HUB_CORPORA, hub_source

    if not name.strip():
        raise UserError("a source is empty: name a corpus, a file or a folder")
    if name in NAMED_SOURCES:
        return NAMED_SOURCES[name](name)
    if name in HUB_CORPORA or name.startswith("hub:"):
        return hub_source(name)
    path = Path(name)
    if path.is_dir():
        return _folder_source(name, path)
    if not path.is_file():
        corpora = ", ".join([*NAMED_SOURCES, *HUB_CORPORA])
        raise UserError(f"{name}: no such file or folder, and no named corpus (there are {corpora})")
    if reader_of(path) is None:
        raise UserError(f"{name}: cannot read this kind of file; a source is {_readable()} or a folder of these")
    return FileSource(name, "file", path, [path])


def _folder_source(name: str, folder: Path) -> Source:
    files = [
        (relative.as_posix(), path)
        for path in folder.rglob("*")
        for relative in [path.relative_to(folder)]
        if reader_of(path) is not None and not any(part.startswith(".") for part in relative.parts) and path.is_file()
    ]
    if not files:
        raise UserError(f"{name}: nothing to read in this folder; a source is {_readable()}")
    return FileSource(name, "folder", folder, [path for _, path in sorted(files)])


def _standard_library(name: str) -> Source:
    """Every module of this Python's standard library with anything in it, one document a file, in order of their paths.

    Without the tests: they are half of it where they are installed at all (many systems leave them out, and the
    corpus would not be comparable), and some are broken on purpose. Without `encodings` and `pydoc_data` too: a
    sixth of the bytes, nearly all generated tables, which a small model would rather learn than code.
    """
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "encodings",
        "pydoc_data",
        "__pycache__",
    }
    modules = (path for path in root.rglob("*.py") if left_out.isdisjoint(path.relative_to(root).parts))
    files = sorted(path for path in modules if path.stat().st_size)
    if not files:
        raise UserError(f"{name}: this Python has no source of its standard library at {root}; give a path instead")
    return FileSource(name, "pystdlib", root, files, read_whole)


NAMED_SOURCES: dict[str, Callable[[str], Source]] = {"pystdlib": _standard_library}
"""Corpora that are on every machine, by name; those of the Hub are in `hub.HUB_CORPORA`."""


def _readable() -> str:
    return ", ".join(f"{suffix}(.gz, .zst)" if suffix != ".parquet" else suffix for suffix in READERS)
