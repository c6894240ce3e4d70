"""Tokenizers of the `tokenizers` library, and GPT-2's two files as one of them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from shearling.data.tokenizers.base import StreamDecoder, TokenArray, Tokenizer
from shearling.data.tokenizers.pieces import SPACE, bytes_of_letters, bytes_of_sentence_piece
from shearling.data.tokenizers.streaming import ByteStreamDecoder, WindowStreamDecoder, join_bytes
from shearling.errors import UserError
from shearling.files import write_atomically

if TYPE_CHECKING:
    import tokenizers

BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", "[CLS]")
EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[SEP]")
CONFIG = "tokenizer_config.json"
"""The file beside a `tokenizer.json` that names its BOS and EOS."""


@contextmanager
def refusing(complaint: str) -> Iterator[None]:
    """The library's complaint of a file, its panics among them, as a UserError with this before it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # it raises Exception itself, and its panics are not even that
        raise UserError(f"{complaint} ({' '.join(str(error).split())})") from error


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    Whatever the file says of truncation, padding and templates is left out: a document's tokens are its text's.

    Args:
        content: of a `tokenizer.json` file, or the library's own object.
        origin: what to call it in an error.
        bos, eos: the names of these tokens; None: the first of BOS_NAMES and EOS_NAMES that there is.

    Raises:
        UserError: the library does not read it, it has no such BOS or EOS, or text can forge that BOS.
    """

    kind: ClassVar[str] = "tokenizers"
    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(
        self,
        content: "bytes | tokenizers.Tokenizer",
        origin: str = "the tokenizer",
        *,
        bos: str | None = None,
        eos: str | None = None,
    ) -> None:
        import tokenizers

        unread = f"{origin}: not a tokenizer of the `tokenizers` library"
        self._failed = f"{origin}: the `tokenizers` library failed at this text"
        if isinstance(content, bytes):
            self.serialized = content
            with refusing(unread):
                self._library = tokenizers.Tokenizer.from_buffer(content)
        else:
            self._library = content
        self._library.no_truncation()
        self._library.no_padding()
        self.bos_id, self.eos_id = self._ends(origin, bos, eos)
        name = self._name(self.bos_id)
        self._library.add_special_tokens(sorted({name, self._name(self.eos_id)}))
        self._library.encode_special_tokens = True  # their names in a text are text
        with refusing(unread):
            self.adds_bos = self._library.encode("", add_special_tokens=True).ids[:1] == [self.bos_id]
            forged = self.bos_id in self.encode(name)
        if forged:
            raise UserError(f"{origin}: it turns the text {name!r} into the token that begins a document")

    def _ends(self, origin: str, bos: str | None, eos: str | None) -> tuple[int, int]:
        for name in (bos, eos):
            if name is not None and self._library.token_to_id(name) is None:
                raise UserError(f"{origin}: it has no token {name!r}, which is to begin or end a document")
        usual_bos, usual_eos = self._first_of(BOS_NAMES), self._first_of(EOS_NAMES)
        bos_id = usual_bos if bos is None else self._library.token_to_id(bos)
        if bos_id is None:
            raise UserError(f"{origin}: it has no token to begin a document with; looked for {', '.join(BOS_NAMES)}")
        eos_id = usual_eos if eos is None else self._library.token_to_id(eos)
        eos_id = bos_id if eos_id is None else eos_id
        self._ends_are_usual = (bos_id, eos_id) == (usual_bos, bos_id if usual_eos is None else usual_eos)
        return int(bos_id), int(eos_id)

    def _first_of(self, names: Sequence[str]) -> int | None:
        found = (self._library.token_to_id(name) for name in names)
        return next((token for token in found if token is not None), None)

    def _name(self, token: int) -> str:
        return str(self._library.id_to_token(token))

    def canonical(self) -> dict[str, Any]:
        """The file as the library writes it today, whatever was left out or written otherwise when it was read."""
        content: dict[str, Any] = json.loads(self._library.to_str())
        return content

    @cached_property
    def serialized(self) -> bytes:  # type: ignore[override]
        """As in Tokenizer; where there was no file, it is written when it is asked for."""
        return str(self._library.to_str()).encode()

    @cached_property
    def vocab_size(self) -> int:  # type: ignore[override]
        """As in Tokenizer. Counted when it is asked for, which takes a sixth of the time to load."""
        return max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def special_ids(self) -> Mapping[str, int]:
        added = self._library.get_added_tokens_decoder()
        return {token.content: index for index, token in sorted(added.items()) if token.special}

    def encode(self, text: str) -> list[int]:
        with refusing(self._failed):
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_specials(self, text: str) -> list[int]:
        """See Tokenizer. What happens to spaces at special tokens is as the file says."""
        with refusing(self._failed):
            ids: list[int] = self._with_specials.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _with_specials(self) -> Any:
        """The same model, shared, in which special tokens' names are those tokens.

        A second object, for the switch is the object's, and other threads may be encoding documents.
        """
        import tokenizers

        library = tokenizers.Tokenizer(self._library.model)
        library.normalizer = self._library.normalizer
        library.pre_tokenizer = self._library.pre_tokenizer
        added = [token for _, token in sorted(self._library.get_added_tokens_decoder().items())]
        for special, tokens in groupby(added, lambda token: bool(token.special)):
            (library.add_special_tokens if special else library.add_tokens)(list(tokens))
        return library

    def encode_batch(self, texts: Sequence[str]) -> list[TokenArray]:
        with refusing(self._failed):
            encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        if self._bytes_of is not None:
            return join_bytes(self._bytes_of, ids, strip_first_space=self._strips_first_space)
        with refusing(self._failed):
            text: str = self._library.decode(list(ids), skip_special_tokens=True)
        return text

    def stream_decoder(self) -> StreamDecoder:
        if self._bytes_of is not None:
            return ByteStreamDecoder(self._bytes_of, strip_first_space=self._strips_first_space)
        return WindowStreamDecoder(self.decode, frozenset(self.special_ids.values()))

    def save(self, folder: Path) -> Path:
        """As in Tokenizer; BOS and EOS of unusual names are kept in a `tokenizer_config.json` beside the file."""
        path = super().save(folder)
        if not self._ends_are_usual:
            ends = {"bos_token": self._name(self.bos_id), "eos_token": self._name(self.eos_id)}
            write_atomically(folder / CONFIG, json.dumps(ends, ensure_ascii=False).encode())
        return path

    @cached_property
    def _decoder(self) -> dict[str, Any]:
        """The decoder, as the file has it."""
        decoder = self._library.decoder
        return {} if decoder is None else json.loads(decoder.__getstate__())

    @cached_property
    def _strips_first_space(self) -> bool:
        return self._decoder == sentence_piece_decoder(strip=True)

    @cached_property
    def _bytes_of(self) -> Callable[[int], bytes] | None:
        """What each id stands for; None where that depends on its neighbours."""
        if self._decoder.get("type") == "ByteLevel":
            return self._table(bytes_of_letters, str.encode)
        if self._strips_first_space or self._decoder == sentence_piece_decoder(strip=False):
            return self._table(bytes_of_sentence_piece, bytes_of_sentence_piece)
        return None

    def _table(
        self, bytes_of_piece: Callable[[str], bytes], bytes_of_added: Callable[[str], bytes]
    ) -> Callable[[int], bytes]:
        added = self._library.get_added_tokens_decoder()

        @lru_cache(None)
        def look_up(token: int) -> bytes:
            if token in added:
                return b"" if added[token].special else bytes_of_added(added[token].content)
            piece = self._library.id_to_token(token) if token >= 0 else None
            return b"" if piece is None else bytes_of_piece(piece)

        return look_up


def sentence_piece_decoder(*, strip: bool) -> dict[str, Any]:
    """What turns SentencePiece's pieces into text, without the dummy prefix where there is one."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {"type": "Sequence", "decoders": steps + [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * strip}


def gpt2_tokenizer(vocab: Path, merges: Path) -> HuggingFaceTokenizer:
    """GPT-2's vocabulary and merges as one tokenizer; `<|endoftext|>` begins a document.

    Raises:
        UserError: the two files are not a byte-level BPE, or do not belong together.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if not merges.is_file():
        raise UserError(f"{vocab}: its merges are missing: put {merges.name} beside it")
    with refusing(f"{vocab}, {merges}: not GPT-2's vocabulary and merges"):
        entries = json.loads(vocab.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").splitlines()
        halves = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
        pairs = [(left, right) for left, _, right in halves]
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=entries, merges=pairs))
    # The attributes are the library's setters, which its stubs do not tell.
    pieces: Any = tokenizer
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    if "<|endoftext|>" in entries:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return HuggingFaceTokenizer(tokenizer, str(vocab))
