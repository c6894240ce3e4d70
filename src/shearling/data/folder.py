"""What a preparation finds in its output folder, and the journal it keeps there."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from shearling.config import Spec
from shearling.data.manifest import (
    JOURNAL,
    MANIFEST,
    SPLITS,
    TOKENIZER_FOLDER,
    Manifest,
    Settings,
    Split,
    load_manifest,
)
from shearling.data.shards import load_tokenizer_of, verify_shards
from shearling.data.sources import Source
from shearling.data.writer import WriterState
from shearling.errors import UserError
from shearling.files import write_atomically


class Journal(Spec):
    """How far a preparation is: the content of `progress.json`."""

    settings: Settings
    identities: tuple[str, ...] = Field(description="of the sources, in order")
    validation_share: float = Field(gt=0, lt=1, description="as asked for, or as raised to hold out a document")
    tokenizer: str | None = Field(default=None, description="hash of the tokenizer once it is saved")
    documents: int = Field(default=0, ge=0, description="documents that are in the shards for certain")
    writers: Mapping[Split, WriterState] = Field(default_factory=dict, description="how far each split is")


def write_journal(out: Path, journal: Journal) -> None:
    """Replace the journal."""
    write_atomically(out / JOURNAL, journal.model_dump_json(indent=1) + "\n")


def finished(out: Path, settings: Settings, sources: Sequence[Source], *, strict: bool) -> Manifest | None:
    """The manifest of a finished preparation of the same, verified; None where there is none.

    Raises:
        UserError: it is one of something else, is damaged, or had problems that strict mode forbids.
    """
    if not (out / MANIFEST).is_file():
        return None
    manifest = load_manifest(out)
    _check_same(out, manifest.settings, settings)
    for source, record in zip(sources, manifest.sources, strict=True):
        if not source.is_remote and source.identity() != record.identity:
            raise UserError(f"{out}: {source.name} has changed since; give --overwrite, or another --out")
    if strict and manifest.problems:
        first = next(problem for record in manifest.sources for problem in record.first_problems)
        raise UserError(f"{out}: prepared with {manifest.problems} problems, the first in {first.file}: {first.what}")
    load_tokenizer_of(out)
    for split in manifest.splits.values():
        verify_shards(out, split.shards)
    (out / JOURNAL).unlink(missing_ok=True)
    return manifest


def begin(out: Path, settings: Settings, identities: tuple[str, ...], *, overwrite: bool) -> Journal:
    """Make the folder ready, and return the journal of an interrupted preparation of the same, or a new one.

    Raises:
        UserError: the folder holds something else.
    """
    fresh = Journal(settings=settings, identities=identities, validation_share=settings.validation_share)
    if overwrite:
        _clear(out)
        return fresh
    if (out / JOURNAL).is_file():
        try:
            journal = Journal.model_validate_json((out / JOURNAL).read_bytes())
        except ValidationError as error:
            raise UserError(f"{out / JOURNAL}: damaged; begin anew with --overwrite") from error
        if journal.tokenizer is None and not journal.documents:
            return fresh  # nothing has been made yet that the new settings could contradict
        _check_same(out, journal.settings, settings)
        if journal.identities != identities:
            raise UserError(f"{out}: a source has changed since the work was interrupted; begin anew with --overwrite")
        return journal
    if any(path.name != ".lock" and not path.name.startswith(".draft_") for path in out.iterdir()):
        raise UserError(f"{out}: not empty, and nothing that `shearling prepare` wrote; name another --out")
    return fresh


def _check_same(out: Path, old: Settings, new: Settings) -> None:
    different = [
        f"{name} was {getattr(old, name)!r} and is {getattr(new, name)!r}"
        for name in Settings.model_fields
        if getattr(old, name) != getattr(new, name)
    ]
    if different:
        raise UserError(f"{out}: prepared otherwise: {'; '.join(different)}. Give --overwrite, or another --out")


def _clear(out: Path) -> None:
    """Remove what a preparation writes, the manifest first, so that no moment shows half a folder as whole."""
    (out / MANIFEST).unlink(missing_ok=True)
    patterns = [JOURNAL, *(f"{split}_*.{kind}" for split in SPLITS for kind in ("bin", "docs"))]
    patterns += [f"{TOKENIZER_FOLDER}/tokenizer.*"]
    for path in [path for pattern in patterns for path in out.glob(pattern)]:
        path.unlink()
