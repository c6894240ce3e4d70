"""Text that streams out token by token, each token at the same cost."""

import codecs
from collections.abc import Callable, Container, Sequence

LONGEST_HELD = 64
"""Tokens that are held back at most while they make no text that is certain; a character has four bytes."""


class ByteStreamDecoder:
    """Stream decoder of a tokenizer whose every token stands for known bytes."""

    def __init__(self, bytes_of: Callable[[int], bytes], *, strip_first_space: bool) -> None:
        self._bytes_of = bytes_of
        self._strip_first_space = strip_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True

    def push(self, token: int) -> str:
        piece = self._bytes_of(token)
        if self._at_start and piece:
            self._at_start = False
            if self._strip_first_space:
                piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._at_start = True
        return rest


def join_bytes(bytes_of: Callable[[int], bytes], ids: Sequence[int], *, strip_first_space: bool) -> str:
    """Text of a sequence of tokens that stand for known bytes."""
    text = b"".join(map(bytes_of, ids))
    if strip_first_space:
        text = text.removeprefix(b" ")
    return text.decode("utf-8", "replace")


class WindowStreamDecoder:
    """Stream decoder of a tokenizer whose tokens' text depends on their neighbours, such as word pieces.

    A token is decoded behind the tokens that gave the last text, for how a piece is written depends on what is before
    it (a space, or none) but not on what is further away. What could still change is held back: a trailing U+FFFD, and
    whatever the next token alters, which shows as the old text not being a prefix of the new one.

    Args:
        decode: the text of a sequence of tokens.
        silent: tokens that give no text wherever they stand.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], silent: Container[int]) -> None:
        self._decode = decode
        self._silent = silent
        self._begin()

    def _begin(self) -> None:
        self._window: list[int] = []
        self._n_given = 0
        """How many of the window's tokens have had their text given out."""
        self._given = ""
        """The text of those alone."""

    def push(self, token: int) -> str:
        if token in self._silent:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        if len(self._window) - self._n_given < LONGEST_HELD and (
            text == self._given or not text.startswith(self._given) or text.endswith("\ufffd")
        ):
            return ""
        new = text[len(self._given) :]
        if new:
            del self._window[: self._n_given]
        else:  # nothing to put the next token behind: what is given out stays that
            del self._window[self._n_given :]
        self._n_given = len(self._window)
        self._given = self._decode(self._window)
        return new

    def flush(self) -> str:
        rest = self._decode(self._window)[len(self._given) :]
        self._begin()
        return rest
