"""Tokenizers of the `tokenizers` library, and GPT-2's two files as one of them."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shearling.data.tokenizers.base import ByteStreamDecoder, StreamDecoder, TokenArray, Tokenizer, join_bytes
from shearling.errors import UserError

BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", "[CLS]")
EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[SEP]")


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    Whatever the file says of truncation, padding and templates is left out: a document's tokens are its text's.

    Args:
        serialized: content of a `tokenizer.json` file.
        origin: what to call it in an error.

    Raises:
        UserError: the library does not read it, it has no BOS of a usual name, or text can forge that BOS.
    """

    kind: ClassVar[str] = "tokenizers"
    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(self, serialized: bytes, origin: str = "the tokenizer") -> None:
        import tokenizers

        self.serialized = serialized
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(serialized)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{origin}: not a tokenizer of the `tokenizers` library ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        bos = next((name for name in BOS_NAMES if name in vocabulary), None)
        if bos is None:
            raise UserError(f"{origin}: it has no token to begin a document with; looked for {', '.join(BOS_NAMES)}")
        eos = next((name for name in EOS_NAMES if name in vocabulary), bos)
        self.bos_id, self.eos_id = int(vocabulary[bos]), int(vocabulary[eos])
        self._tokenizer.add_special_tokens(sorted({bos, eos}))
        self._tokenizer.encode_special_tokens = True  # their names in a text are text
        if self.bos_id in self.encode(bos):
            raise UserError(f"{origin}: it turns the text {bos!r} into the token that begins a document")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[TokenArray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        if self._token_bytes is not None:
            return join_bytes(self._token_bytes, ids, strip_first_space=False)
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream_decoder(self) -> StreamDecoder:
        if self._token_bytes is not None:
            return ByteStreamDecoder(self._token_bytes, strip_first_space=False)
        return _TextStreamDecoder(self)

    @cached_property
    def _token_bytes(self) -> list[bytes] | None:
        """What each id stands for under GPT-2's byte alphabet; None where the decoder is another."""
        from tokenizers import decoders

        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            return None
        alphabet = _byte_alphabet()
        added = self._tokenizer.get_added_tokens_decoder()
        table = [b""] * self.vocab_size
        for piece, token in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if token in added:
                table[token] = b"" if added[token].special else piece.encode()
            else:
                table[token] = b"".join(alphabet.get(character, character.encode()) for character in piece)
        return table


class _TextStreamDecoder:
    """Stream decoder of any tokenizer, through decoding the whole sequence again at each token.

    What could still change is held back: a trailing U+FFFD, and whatever the next token alters (word-piece decoders
    join a suffix to the word before it), which shows as the old text not being a prefix of the new one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = ""

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if not text.startswith(self._given) or text.endswith("\ufffd"):
            return ""
        new = text[len(self._given) :]
        self._given = text
        return new

    def flush(self) -> str:
        rest = self._tokenizer.decode(self._ids)[len(self._given) :]
        self._ids, self._given = [], ""
        return rest


def gpt2_tokenizer(vocab: Path, merges: Path) -> HuggingFaceTokenizer:
    """GPT-2's vocabulary and merges as one tokenizer; `<|endoftext|>` begins a document.

    Raises:
        UserError: the two files are not a byte-level BPE, or do not belong together.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if not merges.is_file():
        raise UserError(f"{vocab}: its merges are missing: put {merges.name} beside it")
    try:
        entries = json.loads(vocab.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").splitlines()
        halves = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
        pairs = [(left, right) for left, _, right in halves]
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=entries, merges=pairs))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{vocab}, {merges}: not GPT-2's vocabulary and merges ({error})") from error
    # The attributes are the library's setters, which its stubs do not tell.
    pieces: Any = tokenizer
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    if "<|endoftext|>" in entries:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return HuggingFaceTokenizer(tokenizer.to_str().encode(), str(vocab))


def _byte_alphabet() -> dict[str, bytes]:
    """The printable character that stands for each byte in GPT-2's pieces, as character to byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {
        chr(256 + place): bytes([byte]) for place, byte in enumerate(others)
    }
