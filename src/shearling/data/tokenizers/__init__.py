"""Tokenizers: one interface over SentencePiece, `tokenizers`, GPT-2's files and llama2.c's."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shearling.data.tokenizers.base import StreamDecoder, TokenArray, Tokenizer
from shearling.data.tokenizers.hugging_face import CONFIG, HuggingFaceTokenizer, gpt2_tokenizer
from shearling.data.tokenizers.llama2c import llama2c_tokenizer
from shearling.data.tokenizers.sentence_piece import SentencePieceTokenizer
from shearling.data.tokenizers.training import train_tokenizer
from shearling.errors import UserError

__all__ = [
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "TokenArray",
    "Tokenizer",
    "load_tokenizer",
    "train_tokenizer",
]

LARGEST_FILE = 256 << 20
"""Bytes; the largest published tokenizer.json is about a tenth of this."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from a file, or from a folder that holds one.

    A file is a SentencePiece model, a `tokenizers` JSON, llama2.c's `tokenizer.bin`, or GPT-2's vocabulary with its
    merges beside it (`vocab.json` and `merges.txt`, or the same with one prefix before both). What it is shows in its
    content; its name decides nothing but what is read beside it: GPT-2's merges, and the `tokenizer_config.json` that
    names the BOS and EOS of a `tokenizer.json`.

    Of a `tokenizer.model` and a `tokenizer.json` in one folder the JSON is taken where it has tokens that the model
    lacks (those of a chat's turns), else the model, which loads in a tenth of the time.

    Raises:
        UserError: there is no such file, it cannot be read, or it is none of these.
    """
    try:
        return _load_from_folder(path) if path.is_dir() else _load_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): check the path and its rights") from error


def _load_from_folder(folder: Path) -> Tokenizer:
    file = _file_in(folder)
    tokenizer = _load_file(file)
    fuller = file.with_name("tokenizer.json")
    if isinstance(tokenizer, SentencePieceTokenizer) and fuller.is_file():
        return _load_file(fuller) if _has_more(_content(fuller), tokenizer) else tokenizer
    return tokenizer


def _load_file(file: Path) -> Tokenizer:
    content = _content(file)
    return next(load for recognizes, load in _KINDS if recognizes(file, content))(file, content)


def _content(file: Path) -> bytes:
    if not file.is_file():
        raise UserError(f"{file}: no such tokenizer file: check the path")
    if file.stat().st_size > LARGEST_FILE:
        raise UserError(f"{file}: larger than any tokenizer ({LARGEST_FILE >> 20} MiB)")
    return file.read_bytes()


def _has_more(content: bytes, tokenizer: SentencePieceTokenizer) -> bool:
    """Whether a `tokenizer.json` adds tokens to the pieces of a SentencePiece model."""
    # The list stands near the file's beginning; reading all would take as long as loading.
    found = re.search(rb'"added_tokens"\s*:\s*(?=\[)', content)
    try:
        added = json.JSONDecoder().raw_decode(content[found.end() :].decode())[0] if found else []
        return any(tokenizer.piece(token["id"]) != token["content"] for token in added)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False  # no such file of the library


def _file_in(folder: Path) -> Path:
    patterns = ("tokenizer.model", "tokenizer.json", "tokenizer.bin", "vocab.json", "*_vocab.json", "*.model")
    folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder  # a data or run folder
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise UserError(f"{folder}: several tokenizers ({', '.join(file.name for file in found)}): name one")
        if found:
            return found[0]
    raise UserError(f"{folder}: no tokenizer in this folder; looked for {', '.join(patterns)}")


def _merges_beside(vocab: Path) -> Path:
    return vocab.with_name(vocab.name.removesuffix("vocab.json") + "merges.txt")


def _is_gpt2(path: Path, content: bytes) -> bool:
    return path.name.endswith("vocab.json") and b'"merges"' not in content


def _is_json(path: Path, content: bytes) -> bool:
    return content[:64].lstrip().startswith(b"{")


def _is_llama2c(path: Path, content: bytes) -> bool:
    # A ModelProto begins with its first piece (0x0A); this file with a small int32, then <unk> with its score.
    return content[12:17] == b"<unk>"


def _is_tiktoken(path: Path, content: bytes) -> bool:
    return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", content) is not None


def _is_anything_else(path: Path, content: bytes) -> bool:
    return True


def _from_json(path: Path, content: bytes) -> HuggingFaceTokenizer:
    config = path.with_name(CONFIG)
    names = _names_in(config) if path.name == "tokenizer.json" and config.is_file() else {}
    return HuggingFaceTokenizer(content, str(path), bos=names.get("bos_token"), eos=names.get("eos_token"))


def _names_in(config: Path) -> dict[str, str]:
    """The special tokens that a `tokenizer_config.json` names; it gives each as a text or as an object with one."""
    try:
        content: Any = json.loads(_content(config))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{config}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{config}: not a JSON object")
    named = {key: content.get(key) for key in ("bos_token", "eos_token")}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    if wrong := next((key for key, value in texts.items() if not isinstance(value, str | None)), None):
        raise UserError(f"{config}: {wrong} is no text")
    return {key: value for key, value in texts.items() if value is not None}


def _from_tiktoken(path: Path, content: bytes) -> Tokenizer:
    raise UserError(
        f"{path}: a tiktoken vocabulary, as Llama 3 came with from Meta: give the tokenizer.json of the same model"
    )


_KINDS: tuple[tuple[Callable[[Path, bytes], bool], Callable[[Path, bytes], Tokenizer]], ...] = (
    (_is_gpt2, lambda path, content: gpt2_tokenizer(path, _merges_beside(path))),
    (_is_json, _from_json),
    (_is_llama2c, lambda path, content: llama2c_tokenizer(content, str(path))),
    (_is_tiktoken, _from_tiktoken),
    (_is_anything_else, lambda path, content: SentencePieceTokenizer(content, str(path))),
)
"""How each kind of file is recognized and loaded, in the order they are tried."""
