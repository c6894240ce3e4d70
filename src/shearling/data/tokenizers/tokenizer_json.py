"""`tokenizer.json`, the `tokenizers` library's file: what stands for SentencePiece's steps in it, and byte-level BPE.

The library's LLaMA tokenizers put a space before the text and write U+2581 for spaces (the normalizer), merge and fall
back to bytes (the model), and undo that (the decoder). Imports no library.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shearling.data.tokenizers.guard import guard
from shearling.data.tokenizers.hugging_face import sentence_piece_decoder
from shearling.data.tokenizers.merges import merges_of_scores, scores_of_merges
from shearling.data.tokenizers.pieces import BYTE_NAMES, SPACE, Pieces, PieceType
from shearling.errors import UserError

Json = dict[str, Any]

_RESERVED = (PieceType.UNKNOWN, PieceType.CONTROL)
_PREPEND: Json = {"type": "Prepend", "prepend": SPACE}
_REPLACE: Json = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def _sentence_piece_normalizer(*, prepend: bool) -> Json:
    return {"type": "Sequence", "normalizers": [_PREPEND] * prepend + [_REPLACE]}


def json_of(pieces: Pieces) -> Json:
    """The file that encodes and decodes as a SentencePiece model of these pieces does.

    Unigram: the library adds up probabilities in float64 and SentencePiece in float32; where two cuts of a text are
    equally probable to seven digits, they may take different ones.

    Raises:
        UserError: the library cannot do what these pieces ask for.
    """
    if pieces.add_dummy_prefix and PieceType.USER_DEFINED in pieces.types:
        name = pieces.texts[pieces.types.index(PieceType.USER_DEFINED)]
        raise UserError(f"it would put a space behind each user-defined piece, such as {name!r}")
    return shell(
        pieces,
        added=[_added(index, pieces) for index in range(len(pieces.texts)) if _is_added(index, pieces)],
        normalizer=_sentence_piece_normalizer(prepend=pieces.add_dummy_prefix),
        decoder=sentence_piece_decoder(strip=pieces.add_dummy_prefix),
        **_MODELS[pieces.kind](pieces),
    )


def shell(
    pieces: Pieces,
    *,
    added: Sequence[Json],
    normalizer: Mapping[str, Any] | None,
    pre_tokenizer: Mapping[str, Any] | None,
    decoder: Json,
    model: Json,
) -> Json:
    """A file of these parts, which begins a text with BOS where the pieces ask for that."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _template_of(pieces) if pieces.adds_bos else None,
        "decoder": decoder,
        "model": model,
    }


def _is_added(index: int, pieces: Pieces) -> bool:
    # SentencePiece never finds a user's piece that has a space: when it looks, spaces have become U+2581.
    found = pieces.types[index] == PieceType.USER_DEFINED and " " not in pieces.texts[index]
    return found or pieces.types[index] in _RESERVED


def _added(index: int, pieces: Pieces) -> Json:
    """A token that the library finds in a text before it encodes the rest."""
    special = pieces.types[index] in _RESERVED
    plain = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": index, "content": pieces.texts[index], **plain, "normalized": not special, "special": special}


def _template_of(pieces: Pieces) -> Json | None:
    return None if pieces.bos is None else bos_template(pieces.texts[pieces.bos], pieces.bos)


def bos_template(name: str, bos: int) -> Json:
    """The post-processor that puts the token `bos`, of that name, before a text."""
    first, second = (
        [{"SpecialToken": {"id": name, "type_id": place}}, {"Sequence": {"id": text, "type_id": place}}]
        for place, text in enumerate("AB")
    )
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {name: {"id": name, "ids": [bos], "tokens": [name]}},
    }


def _falls_back(pieces: Pieces) -> bool:
    return PieceType.BYTE in pieces.types


def _bpe(pieces: Pieces) -> Json:
    merges = merges_of_scores(pieces.texts, pieces.scores, pieces.types)
    return {
        "pre_tokenizer": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if pieces.unk is None else pieces.texts[pieces.unk],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": _falls_back(pieces),
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(pieces.texts)},
            "merges": [list(merge) for merge in merges],
        },
    }


def _unigram(pieces: Pieces) -> Json:
    if PieceType.UNUSED in pieces.types:
        raise UserError("it would find its unused pieces in text")
    return {
        "pre_tokenizer": _guard(pieces),
        "model": {
            "type": "Unigram",
            "unk_id": pieces.unk,
            "vocab": [list(entry) for entry in zip(pieces.texts, pieces.scores, strict=True)],
            "byte_fallback": _falls_back(pieces),
        },
    }


def _guard(pieces: Pieces) -> Json:
    reserved: list[str] = []
    normal: list[str] = []
    for text, type_ in zip(pieces.texts, pieces.types, strict=True):
        if type_ != PieceType.USER_DEFINED:  # those are found before the model sees the text
            (normal if type_ == PieceType.NORMAL else reserved).append(text)
    return guard(reserved, normal)


_MODELS: dict[str, Callable[[Pieces], Json]] = {"bpe": _bpe, "unigram": _unigram}
"""The model and the pre-tokenizer of each kind of SentencePiece."""


def pieces_of_json(content: Json, *, bos: int, eos: int, adds_bos: bool) -> Pieces:
    """What a file says, as the library writes it: byte-level BPE, or what stands for a SentencePiece model.

    Raises:
        UserError: it is another kind of tokenizer, or one that SentencePiece cannot imitate.
    """
    model, decoder = content["model"], content["decoder"] or {}
    kind = model["type"]
    if kind == "BPE" and any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        raise UserError("its merges mark where words begin or end, or are dropped at random")
    ends = {"bos": bos, "eos": eos, "adds_bos": adds_bos}
    if kind == "BPE" and decoder.get("type") == "ByteLevel":
        return _byte_level(content, ends)
    if kind in _SENTENCE_PIECES and decoder in [sentence_piece_decoder(strip=strip) for strip in (True, False)]:
        return _SENTENCE_PIECES[kind](content, ends)
    raise UserError(f"it is a {kind} tokenizer that is neither GPT-2's kind nor SentencePiece's")


def _byte_level(content: Json, ends: Json) -> Pieces:
    texts, types = _table(content["model"]["vocab"], content, ends)
    unknown = content["model"].get("unk_token")
    return Pieces(
        kind="byte-bpe",
        texts=texts,
        types=types,
        merges=[" ".join(merge) for merge in content["model"]["merges"]],
        unk=None if unknown is None else content["model"]["vocab"].get(unknown),
        add_dummy_prefix=False,
        pre_tokenizer=content["pre_tokenizer"],
        normalizer=content["normalizer"],
        ignore_merges=content["model"].get("ignore_merges", False),
        notes=_notes_on_added(content),
        **ends,
    )


def _sentence_piece_bpe(content: Json, ends: Json) -> Pieces:
    model = content["model"]
    dummy, notes = _dummy_prefix(content)
    # With bytes to fall back to there is nothing unknown, and a file may leave it out.
    unk = model["vocab"].get(model.get("unk_token") or ("<unk>" if model.get("byte_fallback") else None))
    texts, types = _sentence_piece_table(model["vocab"], content, ends, unk)
    scores = scores_of_merges(texts, types, [(left, right) for left, right in model["merges"]])
    return Pieces("bpe", texts, types, scores, unk=unk, add_dummy_prefix=dummy, notes=notes, **ends)


def _sentence_piece_unigram(content: Json, ends: Json) -> Pieces:
    model = content["model"]
    vocabulary = {text: index for index, (text, _) in enumerate(model["vocab"])}
    guarded = (content["pre_tokenizer"] or {}).get("type") == "Split"
    dummy, notes = _dummy_prefix({**content, "pre_tokenizer": None} if guarded else content)
    texts, types = _sentence_piece_table(vocabulary, content, ends, model.get("unk_id"))
    scores = [float(score) for _, score in model["vocab"]] + [0.0] * (len(texts) - len(vocabulary))
    pieces = Pieces("unigram", texts, types, scores, unk=model.get("unk_id"), add_dummy_prefix=dummy, **ends)
    if guarded and content["pre_tokenizer"] != _guard(pieces):
        raise UserError("it cuts the text by a pattern before it looks for pieces")
    return pieces if guarded else replace(pieces, notes=[*notes, "text that names a byte or special token stays text"])


_SENTENCE_PIECES: dict[str, Callable[[Json, Json], Pieces]] = {
    "BPE": _sentence_piece_bpe,
    "Unigram": _sentence_piece_unigram,
}


def _dummy_prefix(content: Json) -> tuple[bool, list[str]]:
    """Whether the file puts a space before the text, and in what it is unlike SentencePiece."""
    normalizer, pre_tokenizer = content["normalizer"], content["pre_tokenizer"] or {}
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    notes = _notes_on_added(content)
    if not pre_tokenizer and steps in ([_PREPEND, _REPLACE], [_REPLACE]):
        dummy = every = len(steps) == 2
    elif not steps and pre_tokenizer.get("type") == "Metaspace" and not pre_tokenizer["split"]:
        dummy, every = pre_tokenizer["prepend_scheme"] != "never", pre_tokenizer["prepend_scheme"] == "always"
        notes += ["a text that begins with a space keeps it: its tokenizer.json drops one"] * dummy
    else:
        raise UserError("it changes or cuts the text before it looks for pieces, in another way than SentencePiece")
    if content["decoder"] != sentence_piece_decoder(strip=dummy):
        raise UserError("it puts a space before the text and leaves it there, or takes off one that it did not put")
    ordinary = (token["content"] for token in content["added_tokens"] if not token["special"])
    if every and (name := next(ordinary, None)):
        notes.append(f"no space is put behind {name!r} and its like: its tokenizer.json puts one")
    return dummy, notes


def _notes_on_added(content: Json) -> list[str]:
    """What no other file says of a token that is found before the rest is encoded."""
    rules = [token["content"] for token in content["added_tokens"] if any(token[rule] for rule in _RULES)]
    return [
        f"{name!r} and its like leave the text beside them: its tokenizer.json has rules for it" for name in rules[:1]
    ]


_RULES = ("lstrip", "rstrip", "single_word")


def _sentence_piece_table(
    vocabulary: Mapping[str, int], content: Json, ends: Json, unk: int | None
) -> tuple[list[str], list[int]]:
    if unk is None:
        raise UserError("it has no piece for the unknown")
    texts, types = _table(vocabulary, content, ends)
    if content["model"].get("byte_fallback") and all(name in vocabulary for name in BYTE_NAMES):
        for name in BYTE_NAMES:
            types[vocabulary[name]] = PieceType.BYTE
    types[unk] = PieceType.UNKNOWN
    return texts, types


def _table(vocabulary: Mapping[str, int], content: Json, ends: Json) -> tuple[list[str], list[int]]:
    """The text and the type of every id; an id without a piece gets an unused one."""
    added = content["added_tokens"]
    size = max([*vocabulary.values(), *(token["id"] for token in added)]) + 1
    if size > 2 * (len(vocabulary) + len(added)):
        raise UserError(f"most ids below {size} have no piece")
    texts = [f"[PAD{index}]" for index in range(size)]
    types = [int(PieceType.UNUSED)] * size
    for text, index in vocabulary.items():
        texts[index], types[index] = text, int(PieceType.NORMAL)
    for token in added:
        texts[token["id"]] = token["content"]
        types[token["id"]] = int(PieceType.CONTROL if token["special"] else PieceType.USER_DEFINED)
    for end in ("bos", "eos"):
        types[ends[end]] = int(PieceType.CONTROL)
    return texts, types
