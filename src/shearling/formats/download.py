"""Published models, by name: what is to be had of the Hub for one, and what is refused before it is fetched.

A name is one of NAMES, or OWNER/NAME of a repository with a model in safetensors, or OWNER/NAME:FILE of one with GGUF
files. Taken are weights in these formats, the configuration and the tokenizer; pickles and code never.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from shearling.errors import UserError
from shearling.formats.gguf.hyperparameters import ARCHITECTURE
from shearling.formats.hub import Hub, HubFile, Listing, few
from shearling.formats.huggingface.config import family_of, spec_of
from shearling.formats.huggingface.families import FAMILIES
from shearling.formats.huggingface.texts import CONFIG
from shearling.formats.huggingface.weights import INDEX, SINGLE
from shearling.progress import Advance, console_progress

MODEL_TYPES = tuple(kind for kind, family in FAMILIES.items() if family.fixed["arch"] == "llama")
"""Of config.json: the graphs that are LLaMA's."""

BESIDE_WEIGHTS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_SHARD = re.compile(r"[\w.\-]+\.safetensors")


@dataclass(frozen=True)
class Pinned:
    """A file at a commit, known by its content: nobody can put another in its place."""

    repository: str
    commit: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Published:
    """A model that has a short name here.

    Attributes:
        what: it is, for people.
        repository: where it is.
        size: bytes of its weights.
        model: the one file that it is; None where it is the repository's folder.
        tokenizer: of a model whose file has none.
    """

    what: str
    repository: str
    size: int
    model: Pinned | None = None
    tokenizer: Pinned | None = None


def _stories(name: str, size: int, sha256: str, tokenizer: Pinned, what: str) -> Published:
    model = Pinned("karpathy/tinyllamas", TINYLLAMAS, name, size, sha256)
    return Published(f"llama2.c's {what}, trained on TinyStories (MIT)", model.repository, size, model, tokenizer)


TINYLLAMAS = "0bd21da7698eaf29a0d7de3992de8a46ef624add"
TOK512 = Pinned(
    "karpathy/tinyllamas", TINYLLAMAS, "stories260K/tok512.bin", 6_227,
    "037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312",
)  # fmt: skip
# llama2.c keeps Llama 2's tokenizer.bin in its source, not on the Hub. Of the repositories that carry the SentencePiece
# model it was made from, this one is open to all, under Apache-2.0; the model is Meta's.
LLAMA2_TOKENIZER = Pinned(
    "TinyLlama/TinyLlama_v1.1", "ff3c701f2424c7625fdefb9dd470f45ef18b02d6", "tokenizer.model", 499_723,
    "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347",
)  # fmt: skip

NAMES: dict[str, Published] = {
    "stories260K": _stories(
        "stories260K/stories260K.bin", 1_056_540, "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696",
        TOK512, "smallest: 5 layers of width 64, a vocabulary of 512",
    ),
    "stories15M": _stories(
        "stories15M.bin", 60_816_028, "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a",
        LLAMA2_TOKENIZER, "15M: 6 layers of width 288",
    ),
    "stories42M": _stories(
        "stories42M.bin", 167_020_572, "9f65a1000e17d0bc167dd6332e0ce5119a0222a3d920cead5bce413bfab2ee7b",
        LLAMA2_TOKENIZER, "42M: 8 layers of width 512",
    ),
    "stories110M": _stories(
        "stories110M.bin", 438_381_596, "515267168726a1ed1317a64a408492e6af3b67c1f71c5bd98c01d9d721803a24",
        LLAMA2_TOKENIZER, "110M: 12 layers of width 768",
    ),
    "smollm2-135m": Published(
        "SmolLM2-135M: 30 layers of width 576, web text (Apache-2.0)", "HuggingFaceTB/SmolLM2-135M", 269_060_552
    ),
    "smollm2-135m-chat": Published(
        "the same, tuned to follow instructions", "HuggingFaceTB/SmolLM2-135M-Instruct", 269_060_552
    ),
    "tinyllama-1.1b-chat": Published(
        "TinyLlama: 22 layers of width 2048, a chat (Apache-2.0)", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", 2_200_119_864
    ),
}  # fmt: skip
"""Models by their short names."""

Meter = Callable[[str, int, int], AbstractContextManager[Advance]]
"""Tells how far a transfer is; see `console_progress`."""


@dataclass(frozen=True)
class Choice:
    """What belongs to a model.

    Attributes:
        files: with the listings that they are from, small ones first.
        model: the file that is the model; None where the folder of the files is.
        tokenizer: a file to name beside the model.
    """

    files: tuple[tuple[Listing, HubFile], ...]
    model: HubFile | None = None
    tokenizer: HubFile | None = None


@dataclass(frozen=True)
class Taken:
    """A file of a download, and how many of its bytes were, or are, to be fetched."""

    repository: str
    name: str
    size: int
    fetched: int


@dataclass(frozen=True)
class Download:
    """What a download brought, or in a trial would bring; then its paths are None."""

    files: tuple[Taken, ...]
    model: Path | None = None
    tokenizer: Path | None = None

    @property
    def command(self) -> str | None:
        """What to run next."""
        if self.model is None:
            return None
        tokenizer = ["-z", str(self.tokenizer)] if self.tokenizer else []
        return shlex.join(["shearling", "generate", str(self.model), *tokenizer])

    def as_data(self) -> dict[str, Any]:
        """The same for JSON."""
        paths = {"model": self.model and str(self.model), "tokenizer": self.tokenizer and str(self.tokenizer)}
        return {**paths, "command": self.command, "files": [asdict(file) for file in self.files]}

    def render(self) -> str:
        """The same for people: the path and the next command; of a trial, the files."""
        if self.command:
            return f"{self.model}\nnext: {self.command}"
        width = max(len(f"{file.repository}/{file.name}") for file in self.files)
        lines = [
            f"{f'{file.repository}/{file.name}':{width}}  {_shown(file.size):>10}  "
            + ("is here" if not file.fetched else f"{_shown(file.fetched)} to fetch")
            for file in self.files
        ]
        whole, missing = sum(file.size for file in self.files), sum(file.fetched for file in self.files)
        return "\n".join([*lines, f"{_shown(whole)} in all, {_shown(missing)} to fetch"])


def download(
    name: str,
    hub: Hub,
    *,
    out: Path | None = None,
    revision: str | None = None,
    dry_run: bool = False,
    meter: Meter = console_progress,
) -> Download:
    """Brings a published model into the cache, or to a folder. What is there already is not fetched again.

    Args:
        name: see the top of this file.
        out: the folder; then nothing goes to the cache.
        revision: branch, tag or commit [main; of a model in NAMES, the commit that is known here].
        dry_run: fetch nothing but what says what belongs to the model.

    Raises:
        UserError: there is no such model, it cannot be read here, or it cannot be had or stored.
    """
    choice = choose(name, hub, revision)
    there = [hub.found(listing, file, out) for listing, file in choice.files]
    left = [
        0 if path else hub.remaining(listing, file, out)
        for path, (listing, file) in zip(there, choice.files, strict=True)
    ]
    files = tuple(
        Taken(listing.repository, file.name, file.size, rest)
        for (listing, file), rest in zip(choice.files, left, strict=True)
    )
    if dry_run:
        return Download(files)
    _require_space(out or hub.cache, sum(left))
    missing = sum(file.size for file in files if file.fetched)
    with meter(name, missing, missing - sum(left)) as advance:
        paths = {
            file: path or hub.fetch(listing, file, out, advance)
            for path, (listing, file) in zip(there, choice.files, strict=True)
        }
    for listing, _ in choice.files:
        hub.remember(listing)
    model = paths[choice.model] if choice.model else next(iter(paths.values())).parent
    return Download(files, model, paths[choice.tokenizer] if choice.tokenizer else None)


def choose(name: str, hub: Hub, revision: str | None = None) -> Choice:
    """What belongs to the model of that name. Only its configuration is looked into. Raises as `download`."""
    short = {known.casefold(): published for known, published in NAMES.items()}.get(name.casefold())
    if short and short.model:
        return _pinned(short, hub, revision)
    repository, _, file = (short.repository if short else name).partition(":")
    if repository.count("/") != 1:
        near = get_close_matches(name, NAMES, n=2)
        guess = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(NAMES)};"
        raise UserError(f"{name}: no model of that name: {guess} others are named OWNER/NAME, as on the Hub")
    listing = hub.listing(repository, revision)
    if file:
        return _gguf(listing, file)
    if CONFIG in listing.files:
        _check_graph(listing, hub)
        if SINGLE in listing.files or INDEX in listing.files:
            return _folder(listing, hub)
    if any(name.endswith(".gguf") for name in listing.files):
        return _gguf(listing, "")
    raise _without_weights(listing)


def describe_names() -> str:
    """The table of NAMES, for people."""
    width = max(map(len, NAMES))
    return "\n".join(
        f"{name:{width}}  {_shown(published.size):>10}  {published.what}" for name, published in NAMES.items()
    )


def _pinned(published: Published, hub: Hub, revision: str | None) -> Choice:
    """The files that are known here; at another revision, those of the same names."""
    pins = [pin for pin in (published.tokenizer, published.model) if pin]
    files = []
    for pin in pins:
        if revision and pin.repository == published.repository:
            listing = hub.listing(pin.repository, revision)
            files.append((listing, listing.file(pin.name)))
        else:
            file = HubFile(pin.name, pin.size, pin.sha256)
            files.append((Listing(pin.repository, pin.commit, pin.commit, {pin.name: file}), file))
    return Choice(tuple(files), files[-1][1], files[0][1] if published.tokenizer else None)


def _check_graph(listing: Listing, hub: Hub) -> None:
    """Refuses by config.json what could not be read, before gigabytes are fetched."""
    config = _read_json(listing, hub, CONFIG)
    where, kind = f"{listing.repository}: {CONFIG}", config.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"{where}: model_type: {kind!r} is no graph of LLaMA's: choose a model of type "
                        f"{' or '.join(MODEL_TYPES)}")  # fmt: skip
    family = family_of(config, where)
    spec_of(family, family.defaults | family.flatten(config), True, where)


def _folder(listing: Listing, hub: Hub) -> Choice:
    """Configuration, tokenizer, and the weights that `transformers` would load."""
    weights = [SINGLE]
    if SINGLE not in listing.files:
        listed = _read_json(listing, hub, INDEX).get("weight_map")
        shards = set(listed.values()) if isinstance(listed, Mapping) and _all_text(listed.values()) else set()
        if not shards or not all(_SHARD.fullmatch(shard) for shard in shards):
            raise UserError(f"{listing.repository}: {INDEX}: weight_map: should be a map from tensors to safetensors "
                            "files of the repository: choose another")  # fmt: skip
        weights = [INDEX, *sorted(shards)]
    names = [CONFIG, *(name for name in BESIDE_WEIGHTS if name in listing.files), *weights]
    return Choice(tuple((listing, listing.file(name)) for name in names))


def _gguf(listing: Listing, wanted: str) -> Choice:
    """One GGUF file: by name, or by a part of it that no other has."""
    if listing.architecture not in (None, ARCHITECTURE):
        raise UserError(f"{listing.repository}: its architecture, {listing.architecture}, is no graph of LLaMA's: "
                        f"choose a GGUF of {ARCHITECTURE}")  # fmt: skip
    files = sorted((file for name, file in listing.files.items() if name.endswith(".gguf")), key=lambda file: file.size)
    exact = [file for file in files if file.name == wanted]
    like = exact or [file for file in files if wanted.casefold() in file.name.casefold()]
    if len(like) != 1:
        if not files:
            raise UserError(f"{listing.repository}: {wanted}: it holds no GGUF files: leave out what follows the colon")
        choices = [f"{listing.repository}:{file.name} ({_shown(file.size)})" for file in like or files]
        trouble = "no such GGUF file" if wanted and not like else f"{len(like)} GGUF files"
        raise UserError(f"{listing.repository}{wanted and f': {wanted}'}: {trouble}: choose one of\n"
                        f"{few(choices)}")  # fmt: skip
    if _SPLIT.search(like[0].name):
        raise UserError(f"{listing.repository}: {like[0].name}: a part of a GGUF file that was split: choose one that "
                        "is whole")  # fmt: skip
    return Choice(((listing, like[0]),), like[0])


def _without_weights(listing: Listing) -> UserError:
    pickles = [name for name in sorted(listing.files) if PurePosixPath(name).suffix in PICKLES]
    if listing.cached:
        return UserError(f"{listing.repository}: its weights are not in the cache, and the Hub is not asked: "
                         "run the command again where there is a network")  # fmt: skip
    if pickles:
        return UserError(f"{listing.repository}: its weights are pickled ({pickles[0]}), and reading a pickle can run "
                         "any code: choose a repository that has them as safetensors or GGUF")  # fmt: skip
    return UserError(f"{listing.repository}: neither {SINGLE} with {CONFIG}, nor GGUF files: it holds no model that is "
                     "read here")  # fmt: skip


def _read_json(listing: Listing, hub: Hub, name: str) -> dict[str, Any]:
    try:
        value = json.loads(hub.read(listing, name))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{listing.repository}: {name}: no JSON ({error}): choose another repository") from None
    if not isinstance(value, dict):
        raise UserError(f"{listing.repository}: {name}: should hold a map: choose another repository")
    return value


def _all_text(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _require_space(folder: Path, needed: int) -> None:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if (free := shutil.disk_usage(there).free) < needed:
        raise UserError(f"{folder}: {_shown(needed)} are to come, and {_shown(free)} are free: make room, or choose "
                        "another folder")  # fmt: skip


def _shown(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB" if size >= 1e3 else f"{size} bytes"
