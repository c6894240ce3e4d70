"""What a data folder says of itself: the schema of `manifest.json`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from shearling.config import Spec
from shearling.data.readers import Problem
from shearling.errors import UserError

MANIFEST = "manifest.json"
JOURNAL = "progress.json"
"""Stands in the folder while `prepare` is at work, or was interrupted."""
TOKENIZER_FOLDER = "tokenizer"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
DType = Literal["uint16", "uint32"]

_HASH = r"^[0-9a-f]{64}$"


class TokenizerRecord(Spec):
    """The tokenizer that the tokens are of; its file is in the folder `tokenizer`."""

    kind: str = Field(description="which library reads it")
    vocab_size: int = Field(gt=0, description="all tokens are below this")
    bos_id: int = Field(ge=0, description="first token of every document")
    eos_id: int = Field(ge=0, description="token that ends a text in this tokenizer's models; not in the shards")
    sha256: str = Field(pattern=_HASH, description="hash of its file")


class ShardRecord(Spec):
    """One file of tokens, and its companion `.docs`: tokens and bytes of each document, as pairs of uint32."""

    file: str = Field(pattern=r"^(train|validation)_\d{5}\.bin$", description="name in the folder")
    tokens: int = Field(ge=0, description="tokens in it, BOS included")
    documents: int = Field(ge=0, description="documents that begin, and end, in it")
    bytes: int = Field(ge=0, description="UTF-8 bytes of their text")
    sha256: str = Field(pattern=_HASH, description="hash of the file of tokens")
    docs_sha256: str = Field(pattern=_HASH, description="hash of the companion")

    @property
    def docs_file(self) -> str:
        """Name of the companion."""
        return self.file.removesuffix(".bin") + ".docs"


class SplitRecord(Spec):
    """One split: its shards, in order, and their sums."""

    documents: int = Field(ge=0, description="documents of the split")
    tokens: int = Field(ge=0, description="tokens of the split, one BOS a document included")
    bytes: int = Field(ge=0, description="UTF-8 bytes of its text")
    shards: tuple[ShardRecord, ...] = Field(description="files, in order")

    @classmethod
    def of(cls, shards: tuple[ShardRecord, ...]) -> "SplitRecord":
        """The record of these shards."""
        return cls(
            documents=sum(shard.documents for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            bytes=sum(shard.bytes for shard in shards),
            shards=shards,
        )


class SourceRecord(Spec):
    """What came out of one source."""

    name: str = Field(description="as it was given")
    kind: str = Field(description="file, folder, hub, or the name of a built-in corpus")
    identity: str = Field(description="SHA-256 of its content, or the revision of a data set of the Hub")
    documents: int = Field(ge=0, description="documents taken from it")
    bytes: int = Field(ge=0, description="UTF-8 bytes of their text")
    documents_cut: int = Field(ge=0, description="places where a document was too long and was cut in two")
    empty_documents: int = Field(ge=0, description="documents without text, left out")
    problems: int = Field(ge=0, description="lines, records and files that could not be read, left out")
    first_problems: tuple[Problem, ...] = Field(description="the first of them")


class Settings(Spec):
    """What was asked for: all that determines the tokens, besides the content of the sources."""

    sources: tuple[str, ...]
    text_field: str
    separator: str
    tokenizer: str | None = Field(description="hash of the given tokenizer; null: trained on the sources")
    vocab_size: int | None = Field(description="pieces of the trained tokenizer; null: given")
    validation_share: float = Field(gt=0, lt=1)
    tokens_per_shard: int = Field(gt=0)


class Manifest(Spec):
    """The content of `manifest.json`. It is written last: a folder that has it is whole."""

    format: Literal["shearling token shards"] = "shearling token shards"
    version: Literal[1] = 1
    hash: str = Field(pattern=_HASH, description="hash of all that the tokens are: type, tokenizer, shards")
    dtype: DType = Field(description="type of a token in the shards, little-endian")
    tokenizer: TokenizerRecord
    splits: Mapping[Split, SplitRecord]
    validation_share: float = Field(
        gt=0,
        lt=1,
        description="documents whose hash, as a fraction of its range, is below this are the validation split",
    )
    sources: tuple[SourceRecord, ...]
    problems: int = Field(ge=0, description="sum of the sources' problems")
    settings: Settings

    def to_json(self) -> str:
        """The text of the file."""
        return self.model_dump_json(indent=1) + "\n"


def describe(path: Path, manifest: Manifest) -> str:
    """What a data folder holds, in a few lines: splits, tokenizer, and what was left out and where."""
    lines = [f"{path}: {manifest.tokenizer.kind} tokenizer of {manifest.tokenizer.vocab_size:,} tokens"]
    for name, split in manifest.splits.items():
        lines.append(
            f"  {name:<11}{split.documents:>11,} documents {split.tokens:>14,} tokens "
            f"{split.bytes / max(split.tokens, 1):.2f} bytes per token"
        )
    for source in manifest.sources:
        cut = f", {source.documents_cut:,} cuts of long documents" if source.documents_cut else ""
        empty = f", {source.empty_documents:,} empty ones left out" if source.empty_documents else ""
        lines.append(f"  {source.name}: {source.documents:,} documents, {source.bytes / 1e6:,.1f} MB{cut}{empty}")
        if source.problems:
            lines.append(f"    {source.problems:,} could not be read and were left out; the first:")
            lines += [f"      {problem.file}:{problem.line or ''} {problem.what}" for problem in source.first_problems]
    return "\n".join(lines)


def content_hash(dtype: str, tokenizer_sha256: str, splits: Mapping[Split, SplitRecord]) -> str:
    """Hash of all that the tokens are. Two folders with the same one hold the same tokens in the same documents."""
    shards = {
        split: [[shard.sha256, shard.docs_sha256] for shard in record.shards]
        for split, record in sorted(splits.items())
    }
    content = {"dtype": dtype, "tokenizer": tokenizer_sha256, "splits": shards}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_manifest(path: Path) -> Manifest:
    """Read and check the manifest of a data folder; the shards are not looked at.

    Raises:
        UserError: there is no such folder, its preparation is not finished, or the manifest is not whole.
    """
    file = path / MANIFEST
    if not file.is_file():
        if (path / JOURNAL).is_file():
            raise UserError(f"{path}: its preparation is not finished; run the same `shearling prepare` command again")
        raise UserError(f"{path}: no prepared data here; make it with `shearling prepare SOURCE... --out {path}`")
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{file}: {where}: {first['msg']}; prepare the data again with --overwrite") from error
    sums_agree = all(record == SplitRecord.of(record.shards) for record in manifest.splits.values())
    expected = content_hash(manifest.dtype, manifest.tokenizer.sha256, manifest.splits)
    if set(manifest.splits) != set(SPLITS) or not sums_agree or manifest.hash != expected:
        raise UserError(f"{file}: its entries contradict each other; prepare the data again with --overwrite")
    return manifest
