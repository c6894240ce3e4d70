"""Data sets of the Hugging Face Hub, streamed, so that nothing is downloaded before it is read."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from shearling.data.readers import Ledger, TextOptions, cut_document, import_extra, text_of
from shearling.data.sources import Source, sha256_of_files
from shearling.errors import UserError

_TITLE = re.compile(r"^ ?= [^=].*[^=] = ?\n?$")


def join_articles(rows: Iterable[str]) -> Iterator[str]:
    """WikiText's rows are lines; an article begins at its title, ` = Title = `."""
    article: list[str] = []
    for row in rows:
        if article and _TITLE.match(row):
            yield "".join(article)
            article = []
        article.append(row)
    if article:
        yield "".join(article)


@dataclass(frozen=True)
class HubCorpus:
    """Where a corpus is: a repository of the Hub, or a folder that `datasets` reads the same way."""

    repository: str
    config: str | None = None
    split: str = "train"
    join: Callable[[Iterable[str]], Iterator[str]] | None = None


HUB_CORPORA: dict[str, HubCorpus] = {
    "tinystories": HubCorpus("roneneldan/TinyStories"),
    "slimpajama": HubCorpus("DKYoon/SlimPajama-6B"),
    "wikitext": HubCorpus("Salesforce/wikitext", "wikitext-103-raw-v1", join=join_articles),
    "fineweb-edu": HubCorpus("HuggingFaceFW/fineweb-edu", "sample-10BT"),
}
"""Corpora of the Hub, by name."""


def hub_source(name: str) -> "HubSource":
    """The source for a name in `HUB_CORPORA`, or for `hub:OWNER/NAME[:CONFIG[:SPLIT]]`."""
    if name in HUB_CORPORA:
        return HubSource(name, HUB_CORPORA[name])
    repository, _, rest = name.removeprefix("hub:").partition(":")
    if not repository.strip("./ ") or not repository.isprintable():
        raise UserError(f"{name}: names no data set: write hub:OWNER/NAME[:CONFIG[:SPLIT]]")
    config, _, split = rest.partition(":")
    return HubSource(name, HubCorpus(repository, config or None, split or "train"))


class HubSource(Source):
    """A data set read through `datasets` in streaming mode."""

    kind = "hub"
    is_remote: ClassVar[bool] = True
    total_bytes = None

    def __init__(self, name: str, corpus: HubCorpus) -> None:
        self.name = name
        self.corpus = corpus

    def documents(self, options: TextOptions, ledger: Ledger) -> Iterator[str]:
        texts = self._texts(options, ledger)
        for text in self.corpus.join(texts) if self.corpus.join else texts:
            if text.strip():
                yield from cut_document(text, ledger)
            else:
                ledger.empty_documents += 1

    def identity(self) -> str:
        return self._revision

    @cached_property
    def _revision(self) -> str:
        folder = Path(self.corpus.repository)
        if folder.is_dir():
            return sha256_of_files(folder, sorted(path for path in folder.rglob("*") if path.is_file()))
        hub = import_extra("huggingface_hub")
        try:
            return str(hub.HfApi().dataset_info(self.corpus.repository, timeout=20).sha)
        except Exception as error:  # its network library, and with it the class of its errors, has changed before
            raise self._unreachable(error) from error

    def _texts(self, options: TextOptions, ledger: Ledger) -> Iterator[str]:
        unreadable = (import_extra("pyarrow").ArrowException, import_extra("datasets").exceptions.DatasetsError)
        rows, count = self._rows(), 0
        try:
            for count, row in enumerate(rows, start=1):
                try:
                    yield text_of(row, options.text_field)
                except ValueError as error:
                    ledger.problem(self.name, str(error), count)
        except OSError as error:
            raise UserError(
                f"{self.name}: the connection broke after {count:,} records ({error}): "
                "the same command takes up where it stopped"
            ) from error
        except unreadable as error:
            ledger.problem(self.name, f"cannot be read further: {error}", count + 1)
            return
        if not count:
            ledger.problem(self.name, "no text in it")

    def _rows(self) -> Any:
        datasets = import_extra("datasets")
        revision = None if Path(self.corpus.repository).is_dir() else self._revision
        try:
            return datasets.load_dataset(
                self.corpus.repository, self.corpus.config, split=self.corpus.split, streaming=True, revision=revision
            )
        except OSError as error:
            raise self._unreachable(error) from error
        except ValueError as error:  # no such config or split; the library lists what there is
            raise UserError(f"{self.name}: {error}") from error

    def _unreachable(self, error: Exception) -> UserError:
        return UserError(
            f"{self.name}: the data set {self.corpus.repository} could not be had from the Hub ({error}): "
            "check the name and the network, or give the path of a local file or folder"
        )
