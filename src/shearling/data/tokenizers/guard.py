"""Keeps text from being read as a reserved piece by the `tokenizers` library's Unigram model.

SentencePiece never finds `<s>` or `<0x0A>` in a text; the library's model finds every piece of its vocabulary. A cut
within each such name hides it, and changes nothing else where no other piece reaches across the cut.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shearling.errors import UserError


def guard(reserved: Sequence[str], normal: Sequence[str]) -> dict[str, Any]:
    """The pre-tokenizer (as `tokenizer.json` has it) that cuts each reserved name, and nothing that a piece spans.

    Raises:
        UserError: some name can be cut nowhere without parting a piece.
    """
    by_pair: dict[str, set[str]] = {}
    for piece in normal:
        for at in range(1, len(piece)):
            by_pair.setdefault(piece[at - 1 : at + 1], set()).add(piece)
    cuts = [_cut(name, by_pair) for name in reserved]
    pattern = "|".join(sorted(f"{_literal(left)}(?={_literal(right)})" for left, right in cuts))
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "MergedWithPrevious", "invert": False}


def _cut(name: str, by_pair: Mapping[str, set[str]]) -> tuple[str, str]:
    for place in range(1, len(name)):
        left, right = name[:place], name[place:]
        if not any(_spans(piece, left, right) for piece in by_pair.get(name[place - 1 : place + 1], ())):
            return left, right
    raise UserError(f"text that holds {name!r} would be read as that token: other pieces reach into it")


def _spans(piece: str, left: str, right: str) -> bool:
    """Whether in a text with `left + right` the piece can lie across the cut between them."""
    return any(
        (left.endswith(before) or before.endswith(left)) and (right.startswith(after) or after.startswith(right))
        for before, after in ((piece[:at], piece[at:]) for at in range(1, len(piece)))
    )


def _literal(text: str) -> str:
    """A pattern that matches the text alone; what is special in a pattern is escaped as all engines take it."""
    return re.sub(r"([.^$*+?{}\[\]\\|()])", r"\\\1", text)
