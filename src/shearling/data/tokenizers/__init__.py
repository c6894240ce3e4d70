"""Tokenizers: one interface over SentencePiece, `tokenizers`, GPT-2's files and llama2.c's."""

from collections.abc import Callable
from pathlib import Path

from shearling.data.tokenizers.base import StreamDecoder, TokenArray, Tokenizer
from shearling.data.tokenizers.hugging_face import HuggingFaceTokenizer, gpt2_tokenizer
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
    content; its name decides nothing but where GPT-2's merges are.

    Raises:
        UserError: there is no such file, or it is none of these.
    """
    file = _file_in(path) if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no such tokenizer file")
    if file.stat().st_size > LARGEST_FILE:
        raise UserError(f"{file}: larger than any tokenizer ({LARGEST_FILE >> 20} MiB)")
    content = file.read_bytes()
    return next(load for recognizes, load in _KINDS if recognizes(file, content))(file, content)


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


def _is_anything_else(path: Path, content: bytes) -> bool:
    return True


_KINDS: tuple[tuple[Callable[[Path, bytes], bool], Callable[[Path, bytes], Tokenizer]], ...] = (
    (_is_gpt2, lambda path, content: gpt2_tokenizer(path, _merges_beside(path))),
    (_is_json, lambda path, content: HuggingFaceTokenizer(content, str(path))),
    (_is_llama2c, lambda path, content: llama2c_tokenizer(content, str(path))),
    (_is_anything_else, lambda path, content: SentencePieceTokenizer(content, str(path))),
)
"""How each kind of file is recognized and loaded, in the order they are tried."""
