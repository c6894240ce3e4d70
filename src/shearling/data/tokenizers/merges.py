"""SentencePiece's scores of pieces, and the ranked merges of pairs that the `tokenizers` library has in their place.

SentencePiece joins the adjacent pair whose joined piece has the highest score, the leftmost of equals; whether it is
"ab" + "c" or "a" + "bc" makes no difference (arXiv 1808.06226, `bpe_model.cc`). The library joins the pair of the
lowest rank. So a piece's merges stand together, in the order of the pieces' scores.
"""

from collections.abc import Sequence
from itertools import groupby

from shearling.data.tokenizers.pieces import PieceType
from shearling.errors import UserError

Merge = tuple[str, str]


def merges_of_scores(texts: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[Merge]:
    """The merges that join as these scores do.

    Raises:
        UserError: no merges do: two pieces share a score, a piece is made of characters that are no pieces, or an
            unused piece can come of a merge (SentencePiece takes it apart again).
    """
    normal = {text for text, type_ in zip(texts, types, strict=True) if type_ == PieceType.NORMAL}
    ranked: list[tuple[float, str, list[Merge]]] = []
    for text, score, type_ in zip(texts, scores, types, strict=True):
        if type_ not in (PieceType.NORMAL, PieceType.UNUSED):
            continue
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        joined = [pair for pair in pairs if all(half in normal or len(half) == 1 for half in pair)]
        if not joined:
            continue
        if type_ == PieceType.UNUSED:
            raise UserError(f"its unused piece {text!r} can come of a merge")
        if strange := next((half for pair in joined for half in pair if half not in normal), None):
            raise UserError(f"its piece {text!r} is made of {strange!r}, which is no piece itself")
        ranked.append((score, text, joined))
    ranked.sort(key=lambda entry: -entry[0])
    merges: list[Merge] = []
    for _, entries in groupby(ranked, key=lambda entry: entry[0]):
        equals = [(text, merge) for _, text, joined in entries for merge in joined]
        _refuse_rivals(equals)
        # Of equals SentencePiece joins the leftmost, so the symbol on the left grows before the next one begins to.
        merges += sorted((merge for _, merge in equals), key=lambda merge: (-len(merge[0]), -len(merge[1])))
    return merges


def _refuse_rivals(equals: Sequence[tuple[str, Merge]]) -> None:
    """Two pieces of one score that want the same symbol, one from its left and one from its right, cannot be ranked.

    Runs of one character can (LLaMA's runs of spaces share a score): there the longest left half comes first.
    """
    takers: dict[str, set[str]] = {}
    for text, (left, _) in equals:
        takers.setdefault(left, set()).add(text)
    for text, (_, right) in equals:
        for other in takers.get(right, ()):
            if other != text and len({*text, *other}) > 1:
                raise UserError(f"its pieces {text!r} and {other!r} share a score")


def scores_of_merges(texts: Sequence[str], types: Sequence[int], merges: Sequence[Merge]) -> list[float]:
    """The scores that join as these merges do: 0, -1, -2, … in the order of the merges, then of the ids.

    Pieces whose merges are mixed share a score.

    Raises:
        UserError: no scores do.
    """
    rank: dict[str, int] = {}
    groups = _apart(merges)
    for index, group in enumerate(groups):
        rank.update(dict.fromkeys((left + right for left, right in group), index))
    others = (text for text, type_ in zip(texts, types, strict=True) if type_ == PieceType.NORMAL and text not in rank)
    rank.update({text: index for index, text in enumerate(others, len(groups))})
    scores = [
        -float(rank[text]) if type_ == PieceType.NORMAL else 0.0 for text, type_ in zip(texts, types, strict=True)
    ]
    derived = merges_of_scores(texts, scores, types)
    if odd := min(set(derived).symmetric_difference(merges), default=None):
        joins, leaves = ("SentencePiece", "it") if odd in derived else ("it", "SentencePiece")
        raise UserError(f"{joins} joins {odd[0]!r} and {odd[1]!r}, which {leaves} leaves apart")
    if [group for group in _apart(derived) if _mixed(group)] != [group for group in groups if _mixed(group)]:
        raise UserError("its merges are ranked otherwise than by the piece that they make")
    return scores


def _apart(merges: Sequence[Merge]) -> list[list[Merge]]:
    """The merges in the most stretches of which no two make the same piece."""
    last = {left + right: index for index, (left, right) in enumerate(merges)}
    groups: list[list[Merge]] = []
    end = -1
    for index, (left, right) in enumerate(merges):
        if index > end:
            groups.append([])
        groups[-1].append((left, right))
        end = max(end, last[left + right])
    return groups


def _mixed(group: Sequence[Merge]) -> bool:
    return len({left + right for left, right in group}) > 1
