"""Files of model repositories on the Hugging Face Hub: listed, fetched, taken up where they broke, checked, cached.

The cache is that of `huggingface_hub`: what lies there is found by other programs, and theirs here. What has come of a
file waits beside its place, and enters it when its checksum is the Hub's. Nothing that a server says of its files is
believed before it is checked.
"""

import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported lazily

from shearling.errors import UserError
from shearling.files import locked, sha256_file, write_atomically
from shearling.formats.hub_client import Client, UnreachableError
from shearling.progress import Advance

SECONDS_TO_ANSWER = 10.0
BYTES_AT_ONCE = 1 << 20
LARGEST_READ = 1 << 26
"""Bytes of the largest file that is read into memory: a configuration, or an index of tensors."""

ASKED_FOR = UnreachableError(
    "offline", "run the command again where there is a network, without --offline and HF_HUB_OFFLINE"
)
"""Why nothing is fetched where the user wants it so."""
NAMES_SHOWN = 12

_DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_REVISION = re.compile(r"(?!.*(^|/)\.)[\w.\-+/]+")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository.

    Attributes:
        name: its path in the repository.
        size: bytes.
        digest: SHA-256 of its content, or, of a file that is kept in git itself, git's SHA-1.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit.

    Attributes:
        revision: branch, tag or commit, as it was asked for.
        files: by name; without those whose name, size or checksum cannot be one.
        architecture: of its GGUF files, as the Hub read it; None where it says none.
        cached: it shows the cache and not the Hub, which could not, or should not, be asked.
    """

    repository: str
    revision: str
    commit: str
    files: Mapping[str, HubFile]
    architecture: str | None = None
    cached: bool = False

    def file(self, name: str) -> HubFile:
        """The file of that name.

        Raises:
            UserError: there is none.
        """
        if name not in self.files:
            if self.cached:
                raise UserError(f"{self.repository}: {name}: not in the cache, and the Hub is not asked: "
                                "run the command again where there is a network")  # fmt: skip
            near = get_close_matches(name, self.files, n=3)
            raise UserError(f"{self.repository}: {name}: no such file at {self.revision}"
                            + (f": did you mean {' or '.join(near)}?" if near else ""))  # fmt: skip
        return self.files[name]


class Hub:
    """The Hub as far as files of models go.

    Args:
        endpoint: its address [HF_ENDPOINT, or https://huggingface.co].
        cache: folder of the cache [HF_HUB_CACHE, or HF_HOME, or ~/.cache/huggingface/hub].
        offline: ask nothing over the network; also where HF_HUB_OFFLINE is set.
        say: takes lines for the user.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        cache: Path | None = None,
        *,
        offline: bool = False,
        say: Callable[[str], None],
    ) -> None:
        self._client = Client(endpoint or constants.ENDPOINT, say)
        self.cache = cache or Path(constants.HF_HUB_CACHE)
        self.offline = offline or constants.is_offline_mode()
        self._say = say
        self._read: dict[str, bytes] = {}  # by digest: what was looked into is not fetched twice

    def listing(self, repository: str, revision: str | None = None) -> Listing:
        """What a repository holds. Where the Hub cannot be reached: what the cache holds of it.

        Args:
            revision: branch, tag or commit [main].

        Raises:
            UserError: there is no such repository or revision, it may not be read, or nothing of it can be had.
        """
        revision = revision or constants.DEFAULT_REVISION
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise UserError(f"{repository}: no name of a repository, which is OWNER/NAME: {error}") from None
        if not _REVISION.fullmatch(revision):
            raise UserError(f"{revision}: no revision: give a branch, a tag or a commit")
        if self.offline:
            return self._cached(repository, revision, ASKED_FOR)
        try:
            return self._client.ask(repository, revision, lambda: self._ask(repository, revision))
        except UnreachableError as unreachable:
            listing = self._cached(repository, revision, unreachable)
            self._say(f"{unreachable}: taking what is in the cache")
            return listing

    def read(self, listing: Listing, name: str) -> bytes:
        """The content of a small file, which nothing is written for.

        Raises:
            UserError: it is not there, too large to be what it is called, or cannot be had.
        """
        file = listing.file(name)
        if file.size > LARGEST_READ:
            raise UserError(f"{listing.repository}: {name}: {file.size:,} bytes are too many for such a file: "
                            "choose another repository")  # fmt: skip
        if file.digest not in self._read:
            if cached := self._cached_copy(listing, file):
                return cached.read_bytes()
            self._require_network(listing, file)
            content = io.BytesIO()
            self._transfer(listing, file, content, lambda _: None)
            if _digest(content.getvalue(), file.digest) != file.digest:
                raise _wrong(listing, file)
            self._read[file.digest] = content.getvalue()
        return self._read[file.digest]

    def found(self, listing: Listing, file: HubFile, folder: Path | None = None) -> Path | None:
        """Where a file already lies whole: in `folder` by its last name, or without one in the cache.

        In the cache its size is compared, in a folder its checksum.

        Raises:
            UserError: another file lies there under its name.
        """
        if folder is None:
            path = self._storage(listing.repository) / "snapshots" / listing.commit / file.name
            return path if _has_size(path, file) else None
        path = folder / PurePosixPath(file.name).name
        if not path.exists():
            return None
        if _has_size(path, file) and _digest(path, file.digest) == file.digest:
            return path
        raise UserError(f"{path}: another file is there already: move it away, or choose another folder")

    def remaining(self, listing: Listing, file: HubFile, folder: Path | None = None) -> int:
        """Bytes that are still to come of a file that is not there."""
        if folder is None and self._cached_copy(listing, file):
            return 0
        partial = self._partial(listing, file, folder)
        return file.size - min(partial.stat().st_size if partial.is_file() else 0, file.size)

    def fetch(self, listing: Listing, file: HubFile, folder: Path | None, advance: Advance) -> Path:
        """Brings a file to `folder`, under its last name, or without one into the cache. Gives its path.

        A broken transfer is taken up, now and when this is called again. What has the wrong checksum is removed.

        Raises:
            UserError: it cannot be had or written, or it is not what the Hub lists.
        """
        if path := self.found(listing, file, folder):
            return path
        self._require_network(listing, file)
        partial = self._partial(listing, file, folder)
        try:
            lock = self.cache / ".locks" / self._storage(listing.repository).name
            with _made(folder) if folder else locked(lock):
                partial.parent.mkdir(parents=True, exist_ok=True)
                blob = self._storage(listing.repository) / "blobs" / file.digest
                if folder or not _has_size(blob, file):
                    self._fill(partial, listing, file, advance)
                    if _digest(partial, file.digest) != file.digest:
                        partial.unlink()
                        raise _wrong(listing, file)
                    if folder:
                        return partial.replace(folder / PurePosixPath(file.name).name)
                    partial.replace(blob)
                return _linked(blob, self._storage(listing.repository) / "snapshots" / listing.commit / file.name)
        except OSError as error:
            raise UserError(f"{partial.parent}: cannot be written ({error.strerror or error}): make room, or choose "
                            "another folder; the same command then goes on where it stopped") from error  # fmt: skip

    def remember(self, listing: Listing) -> None:
        """Notes in the cache which commit a branch or tag stood at, so that it is found without the Hub."""
        if listing.revision != listing.commit and not listing.cached:
            ref = self._storage(listing.repository) / "refs" / listing.revision
            if not (ref.is_file() and ref.read_text() == listing.commit):
                ref.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(ref, listing.commit)

    def _storage(self, repository: str) -> Path:
        return self.cache / repo_folder_name(repo_id=repository, repo_type="model")

    def _cached_copy(self, listing: Listing, file: HubFile) -> Path | None:
        """The file in the cache, also where it came with another commit."""
        blob = self._storage(listing.repository) / "blobs" / file.digest
        return self.found(listing, file) or (blob if _has_size(blob, file) else None)

    def _partial(self, listing: Listing, file: HubFile, folder: Path | None) -> Path:
        """Where what has come of a file waits. `hf cache` finds those in the cache by their ending."""
        if folder:
            return folder / f".{PurePosixPath(file.name).name}.{file.digest[:12]}.incomplete"
        return self._storage(listing.repository) / "blobs" / f"{file.digest}.shearling.incomplete"

    def _ask(self, repository: str, revision: str) -> Listing:
        try:
            info = self._client.api.model_info(
                repository, revision=revision, files_metadata=True, timeout=SECONDS_TO_ANSWER
            )
            siblings: list[tuple[Any, Any, Any]] = [
                (sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)
                for sibling in info.siblings or ()
            ]
            architecture = (info.gguf or {}).get("architecture")
            if not _is_digest(info.sha):
                raise ValueError(f"{info.sha!r} is no commit")
        except HfHubHTTPError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self._client.endpoint}: its answer is not the Hub's ({error}): check HF_ENDPOINT, "
                            "and whether a proxy or a login page stands between") from error  # fmt: skip
        files = {sibling[0]: HubFile(*sibling) for sibling in siblings if _is_file(*sibling)}
        return Listing(repository, revision, str(info.sha), files, architecture)

    def _cached(self, repository: str, revision: str, why: UnreachableError) -> Listing:
        storage = self._storage(repository)
        ref = storage / "refs" / revision
        commit = ref.read_text().strip() if ref.is_file() else revision
        snapshot = storage / "snapshots" / commit
        if not (_is_digest(commit) and snapshot.is_dir()):
            raise self._absent(why, repository, f"{repository} at {revision}")
        files = {}
        for path in sorted(path for path in snapshot.rglob("*") if path.is_file()):
            name = path.relative_to(snapshot).as_posix()
            blob = path.readlink().name if path.is_symlink() else ""
            files[name] = HubFile(name, path.stat().st_size, blob if _is_digest(blob) else sha256_file(path))
        return Listing(repository, revision, commit, files, cached=True)

    def _fill(self, partial: Path, listing: Listing, file: HubFile, advance: Advance) -> None:
        """Makes `partial` as long as the file, from what was read or is cached, else from the Hub."""
        if file.digest in self._read:
            partial.write_bytes(self._read[file.digest])
        elif (cached := self._cached_copy(listing, file)) and _digest(cached, file.digest) == file.digest:
            shutil.copyfile(cached, partial)
        else:
            partial.touch()
            try:
                with partial.open("r+b") as out:
                    out.seek(0, os.SEEK_END)
                    self._transfer(listing, file, out, advance)
            finally:
                if file.size and not partial.stat().st_size:
                    partial.unlink()  # nothing came
            return
        advance(file.size)

    def _require_network(self, listing: Listing, file: HubFile) -> None:
        if self.offline and not self._cached_copy(listing, file):
            raise self._absent(ASKED_FOR, listing.repository, f"{file.name} of {listing.repository}")

    def _absent(self, why: UnreachableError, repository: str, what: str) -> UserError:
        """Tells that the cache does not have what cannot be fetched, and what it has."""
        snapshots = self._storage(repository) / "snapshots"
        own = {"/".join(path.relative_to(snapshots).parts[1:]) for path in snapshots.glob("*/**/*") if path.is_file()}
        others = {name.parents[2].name for name in self.cache.glob("models--*/snapshots/*/*")}
        models = [name.removeprefix("models--").replace("--", "/") for name in others]
        held = f"of it {few(sorted(own))}" if own else few(sorted(models)) or "no model"
        return UserError(f"{why}, and {what} is not in the cache\n{self.cache} holds {held}: {why.mend}")

    def _transfer(self, listing: Listing, file: HubFile, out: BinaryIO, advance: Advance) -> None:
        """Goes on writing `out`, which stands at its end, until it is as long as the file."""
        url = hf_hub_url(listing.repository, file.name, revision=listing.commit, endpoint=self._client.endpoint)
        try:
            self._client.transfer(listing.repository, listing.revision, url, out, file.size, advance)
        except UnreachableError as unreachable:
            if not out.tell():
                what = f"{file.name} of {listing.repository}"
                raise self._absent(unreachable, listing.repository, what) from unreachable
            raise UserError(f"{unreachable}, with {file.name} at {out.tell() / 1e6:,.1f} of {file.size / 1e6:,.1f} MB: "
                            "the same command goes on from there") from unreachable  # fmt: skip


def few(names: Sequence[str]) -> str:
    """Names for people: the first, and how many more there are."""
    more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Holds a folder as `locked` does; what had to be made for it goes again if the block fails and leaves nothing."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    with locked(folder):
        try:
            yield
        except BaseException:
            if made and {path.name for path in folder.iterdir()} == {".lock"}:
                (folder / ".lock").unlink()
            for each in made:
                if any(each.iterdir()):
                    break
                each.rmdir()
            raise


def _is_file(name: Any, size: Any, digest: Any) -> bool:
    """Whether this can be a file of a repository, and lies inside of whatever folder it is put to."""
    if not (isinstance(name, str) and isinstance(size, int) and size >= 0 and _is_digest(digest)):
        return False
    parts = PurePosixPath(name).parts
    return bool(parts) and name.isprintable() and "\\" not in name and not {"/", ".."}.intersection(parts)


def _has_size(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and bool(_DIGEST.fullmatch(text))


def _digest(content: bytes | Path, like: str) -> str:
    """SHA-256, or git's SHA-1 of a blob, whichever `like` is."""
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % size)
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        while piece := file.read(BYTES_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def _wrong(listing: Listing, file: HubFile) -> UserError:
    return UserError(f"{listing.repository}: {file.name}: what came is not what the Hub lists (its checksum differs), "
                     "and was removed: run the command again; if it stays so, a proxy changes files")  # fmt: skip


def _linked(blob: Path, pointer: Path) -> Path:
    """Shows a file of the cache under its name at a commit, as `huggingface_hub` lays it out."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:  # a file system without links: the file itself moves there
        blob.replace(pointer)
    return pointer
