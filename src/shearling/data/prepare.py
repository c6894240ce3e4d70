"""Turns sources into token shards: the work behind `shearling prepare`.

The main thread reads and writes, in order; a pool of threads encodes, which the tokenizer libraries do without the
interpreter's lock. So all cores work, nothing is copied between processes, and memory holds a few batches whatever the
size of the sources. A journal beside the shards says how far they are on the disk for certain.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shearling.data import DEFAULT_VALIDATION_SHARE
from shearling.data.encoding import Batch, encode_all
from shearling.data.folder import Journal, begin, finished, write_journal
from shearling.data.manifest import (
    JOURNAL,
    MANIFEST,
    SPLITS,
    TOKENIZER_FOLDER,
    Manifest,
    Settings,
    SourceRecord,
    Split,
    SplitRecord,
    TokenizerRecord,
    content_hash,
)
from shearling.data.readers import Ledger, TextOptions
from shearling.data.sampling import HASH_RANGE, SAMPLE_BYTES, document_hash, hold_out_threshold, sample_documents
from shearling.data.sources import Source, resolve_source
from shearling.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from shearling.data.writer import SplitWriter, WriterState
from shearling.errors import UserError
from shearling.files import locked, write_atomically
from shearling.machine import available_cores
from shearling.progress import Progress, Report, console_report

DEFAULT_VOCAB_SIZE = 4096
DEFAULT_TOKENS_PER_SHARD = 100_000_000
BATCH_CHARACTERS = 1 << 18
SECONDS_BETWEEN_JOURNALS = 5.0


def prepare(
    sources: Sequence[str],
    out: Path,
    *,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    text_field: str = "text",
    separator: str = "<|endoftext|>",
    validation_share: float = DEFAULT_VALIDATION_SHARE,
    tokens_per_shard: int = DEFAULT_TOKENS_PER_SHARD,
    strict: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Report | None = None,
) -> Manifest:
    """Write the token shards of some sources into a folder, and return its manifest.

    Each document becomes BOS and the tokens of its text. It is in the validation split if a hash of its text says so,
    so it stays there when sources grow, move or repeat it. The bytes written depend on the arguments and the sources
    alone. Interrupted, the same call goes on; done, the same call verifies what is there.

    Where the share holds out no document at all (few documents), it is raised to where it holds out the first, and
    the manifest's `validation_share` says to what: give that value to keep the split when the sources grow.

    Args:
        sources: names or paths, as `sources.resolve_source` takes them.
        out: the data folder.
        tokenizer: file or folder, as `load_tokenizer` takes it; None: train one on the sources.
        vocab_size: pieces of the trained tokenizer, 4096 where none is given.
        text_field: field of a .jsonl object, or column of a table, that holds the text.
        separator: line between the documents of a .txt file.
        validation_share: expected share of documents held out.
        tokens_per_shard: of a shard, at most.
        strict: a line, record or file that cannot be read is an error; else it is counted, located and left out.
        overwrite: begin anew whatever a former preparation left in the folder.
        workers: threads that encode; None: as many as there are cores.
        progress: is told how far the work is; None: a display on stderr.

    Raises:
        UserError: a source or tokenizer cannot be had, the folder holds something else, or there is too little text.
    """
    if not sources:
        raise UserError("no source: name a corpus, a file or a folder")
    if tokenizer is not None and vocab_size is not None:
        raise UserError("--tokenizer and --vocab-size are both given: a given tokenizer has its own size, drop one")
    if not 0 < validation_share < 1:
        raise UserError(f"--validation-share {validation_share} is not between 0 and 1")
    if not separator.strip() or "\n" in separator or not separator.isprintable():
        raise UserError(f"--separator {separator!r} is not one line of text with something in it")
    if vocab_size is not None and vocab_size < 1:
        raise UserError(f"--vocab-size {vocab_size} is not above 0")
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} is not above 0")
    given = None if tokenizer is None else load_tokenizer(tokenizer)
    settings = Settings(
        sources=tuple(sources),
        text_field=text_field,
        separator=separator,
        tokenizer=None if given is None else given.sha256,
        vocab_size=None if given is not None else DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size,
        validation_share=validation_share,
        tokens_per_shard=tokens_per_shard,
    )
    resolved = [resolve_source(name) for name in sources]
    with ExitStack() as stack:
        stack.enter_context(locked(out))
        if not overwrite and (manifest := finished(out, settings, resolved, strict=strict)):
            return manifest
        journal = begin(out, settings, tuple(source.identity() for source in resolved), overwrite=overwrite)
        report = progress or stack.enter_context(console_report("documents", decimals=0))
        work = _Work(out, resolved, given, strict, workers or available_cores(), report)
        try:
            try:
                return work.finish(journal)
            except _NothingHeldOut as nothing:
                # Begun again from the tokenizer on, which must not learn from what is held out.
                journal = Journal(settings=settings, identities=journal.identities, validation_share=nothing.share)
                return work.finish(journal)
        except OSError as error:
            raise UserError(f"{out}: {error}: mend that, or make room; the same command then goes on") from error


class _NothingHeldOut(Exception):  # noqa: N818 - not an error: the work begins again with this share
    def __init__(self, share: float) -> None:
        self.share = share


@dataclass
class _Tally:
    """What the documents written so far amount to. Skipping them in a resumed run gives the same."""

    documents: list[int]
    n_bytes: list[int]
    lowest_hash: int = HASH_RANGE

    def add(self, source: int, documents: int, n_bytes: int, lowest_hash: int) -> None:
        self.documents[source] += documents
        self.n_bytes[source] += n_bytes
        self.lowest_hash = min(self.lowest_hash, lowest_hash)


@dataclass
class _Work:
    """One preparation."""

    out: Path
    sources: list[Source]
    given: Tokenizer | None
    strict: bool
    workers: int
    report: Report
    ledgers: list[Ledger] = field(default_factory=list)

    def finish(self, journal: Journal) -> Manifest:
        """Do what is left to do after the journal's entry."""
        options = TextOptions(journal.settings.separator, journal.settings.text_field)
        write_journal(self.out, journal)
        tokenizer = self._tokenizer(journal, options)
        if journal.tokenizer is None:
            tokenizer.save(self.out / TOKENIZER_FOLDER)
            journal = journal.model_copy(update={"tokenizer": tokenizer.sha256})
            write_journal(self.out, journal)
        tally = _Tally([0] * len(self.sources), [0] * len(self.sources))
        dtype = np.dtype("<u2") if tokenizer.vocab_size <= 1 << 16 else np.dtype("<u4")
        splits = self._write_shards(journal, options, tokenizer, dtype, tally)
        self._check_splits(splits, tally)
        manifest = Manifest(
            hash=content_hash(dtype.name, tokenizer.sha256, splits),
            dtype="uint16" if dtype.itemsize == 2 else "uint32",
            tokenizer=TokenizerRecord(
                kind=tokenizer.kind,
                vocab_size=tokenizer.vocab_size,
                bos_id=tokenizer.bos_id,
                eos_id=tokenizer.eos_id,
                sha256=tokenizer.sha256,
            ),
            splits=splits,
            validation_share=journal.validation_share,
            sources=tuple(self._source_records(journal, tally)),
            problems=sum(ledger.problems for ledger in self.ledgers),
            settings=journal.settings,
        )
        write_atomically(self.out / MANIFEST, manifest.to_json())
        (self.out / JOURNAL).unlink()
        return manifest

    def _tokenizer(self, journal: Journal, options: TextOptions) -> Tokenizer:
        if self.given is not None:
            return self.given
        if journal.tokenizer is not None:
            saved = load_tokenizer(self.out / TOKENIZER_FOLDER)
            if saved.sha256 != journal.tokenizer:
                raise UserError(f"{self.out / TOKENIZER_FOLDER}: changed since the work began; use --overwrite")
            return saved
        assert journal.settings.vocab_size is not None
        documents = (text for _, text in self._documents(options, "sampling", sample=True))
        sample = sample_documents(documents, journal.validation_share)
        if not sample:
            raise UserError(f"no text to train a tokenizer on{self._first_problem()}: give more text")
        try:
            return train_tokenizer(sample, journal.settings.vocab_size)
        except UserError as error:
            raise UserError(f"{error}{self._first_problem()}") from error

    def _first_problem(self) -> str:
        """What could not be read, in a few words, or nothing."""
        problems = sum(ledger.problems for ledger in self.ledgers)
        first = next((problem for ledger in self.ledgers for problem in ledger.first_problems), None)
        return f" ({problems} could not be read; the first: {first.file}: {first.what})" if first else ""

    def _documents(self, options: TextOptions, phase: str, *, sample: bool = False) -> Iterator[tuple[int, str]]:
        """The documents of all sources, each with its source's number. Begins new ledgers.

        A sample takes what comes over the network only as far as it needs to.
        """
        self.ledgers = [Ledger(strict=self.strict) for _ in self.sources]
        totals = [source.total_bytes for source in self.sources]
        known = [total for total in totals if total is not None]
        total = sum(known) if len(known) == len(totals) else None
        count = 0
        for number, (source, ledger) in enumerate(zip(self.sources, self.ledgers, strict=True)):
            characters = 0
            for text in source.documents(options, ledger):
                yield number, text
                count += 1
                characters += len(text)
                if not source.total_bytes:
                    ledger.bytes_read = characters
                if count % 64 == 0:
                    self._tell(phase, count, total)
                if sample and source.is_remote and characters > SAMPLE_BYTES:
                    break
        self._tell(phase, count, total)

    def _tell(self, phase: str, documents: int, total: int | None) -> None:
        self.report(Progress(phase, sum(ledger.bytes_read for ledger in self.ledgers), total, items=documents))

    def _batches(self, journal: Journal, options: TextOptions, tally: _Tally) -> Iterator[Batch]:
        """The documents that are not written yet, in order; the tally is told of those that are."""
        texts: list[str] = []
        characters, source = 0, 0
        for position, (number, text) in enumerate(self._documents(options, "tokenizing")):
            if position < journal.documents:
                encoded = text.encode()
                tally.add(number, 1, len(encoded), document_hash(encoded))
                continue
            if texts and (number != source or characters >= BATCH_CHARACTERS):
                yield Batch(source, texts)
                texts, characters = [], 0
            source = number
            texts.append(text)
            characters += len(text)
        if texts:
            yield Batch(source, texts)

    def _write_shards(
        self,
        journal: Journal,
        options: TextOptions,
        tokenizer: Tokenizer,
        dtype: np.dtype[np.unsignedinteger],
        tally: _Tally,
    ) -> dict[Split, SplitRecord]:
        threshold = hold_out_threshold(journal.validation_share)
        writers: dict[Split, SplitWriter] = {
            split: SplitWriter(
                self.out, split, dtype, journal.settings.tokens_per_shard, journal.writers.get(split, WriterState())
            )
            for split in SPLITS
        }
        last_journal = time.monotonic()
        try:
            batches = self._batches(journal, options, tally)
            with closing(encode_all(batches, tokenizer, threshold, self.workers)) as results:
                for encoded in results:
                    for split, rows in encoded.rows.items():
                        writers[split].append(rows.tokens, rows.lengths, rows.n_bytes)
                    tally.add(encoded.source, encoded.documents, encoded.n_bytes, encoded.lowest_hash)
                    if time.monotonic() - last_journal > SECONDS_BETWEEN_JOURNALS:
                        states = {split: writer.sync() for split, writer in writers.items()}
                        update = {"documents": sum(tally.documents), "writers": states}
                        write_journal(self.out, journal.model_copy(update=update))
                        last_journal = time.monotonic()
            return {split: writer.finish() for split, writer in writers.items()}
        finally:
            for writer in writers.values():
                writer.close()

    def _check_splits(self, splits: Mapping[Split, SplitRecord], tally: _Tally) -> None:
        documents = sum(tally.documents)
        if documents < 2:
            raise UserError(
                f"{documents or 'no'} document in all sources{self._first_problem()}: at least two are needed, one of "
                "them to hold out"
            )
        if not splits["validation"].documents:
            raise _NothingHeldOut(math.ceil((tally.lowest_hash + 1) / HASH_RANGE * 1e4) / 1e4)
        if not splits["train"].documents:
            raise UserError(
                f"all of the {documents} documents are held out: lower --validation-share or give more text"
            )

    def _source_records(self, journal: Journal, tally: _Tally) -> Iterator[SourceRecord]:
        for number, (source, ledger) in enumerate(zip(self.sources, self.ledgers, strict=True)):
            yield SourceRecord(
                name=source.name,
                kind=source.kind,
                identity=journal.identities[number],
                documents=tally.documents[number],
                bytes=tally.n_bytes[number],
                documents_cut=ledger.documents_cut,
                empty_documents=ledger.empty_documents,
                problems=ledger.problems,
                first_problems=tuple(ledger.first_problems),
            )
