"""What each kind of tokenizer's file can hold and what it cannot, on small models trained for the purpose."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from libraries import berts_word_pieces, ids_of, processor_of

from shearling.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from shearling.data.tokenizers.conversion import (
    PieceType,
    pieces_of,
    to_sentencepiece,
    to_tokenizer_bin,
    to_tokenizer_json,
    tokenizer_of,
)
from shearling.errors import UserError

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text("a -=*\n", max_size=60),
    st.text("the<s>/0xA unk", max_size=40),
)


def trained(**options: Any) -> SentencePieceTokenizer:
    file = io.BytesIO()
    lines = ["the little cat sat on a mat and <the> dog ran to school </", "été 12 = 34;  x -- y"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=file,
        **{
            "model_type": "bpe",
            "vocab_size": 320,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "hard_vocab_limit": False,
            "minloglevel": 2,
        }
        | options,
    )
    return SentencePieceTokenizer(file.getvalue())


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_a_unigram_model_becomes_the_librarys_unigram(byte_fallback: bool):
    tokenizer = trained(model_type="unigram", byte_fallback=byte_fallback)
    content = to_tokenizer_json(tokenizer)
    processor, library = processor_of(tokenizer), tokenizers.Tokenizer.from_str(content.decode())
    twin = HuggingFaceTokenizer(content)

    @settings(max_examples=300)
    @given(texts)
    @example("<s></s><unk><0x0A> <0x00></")
    def check(text: str) -> None:
        ids = processor.encode(text)
        assert ids_of(library, text) == twin.encode(text) == ids
        if byte_fallback:  # else there are unknowns, which are special to the library
            assert twin.decode(ids) == tokenizer.decode(ids)

    check()
    assert json.loads(content)["model"]["type"] == "Unigram"
    assert pieces_of(twin) == pieces_of(tokenizer)
    assert to_sentencepiece(twin)


def test_user_defined_pieces_are_found_first_as_sentencepiece_finds_them():
    tokenizer = trained(user_defined_symbols=["<user>", "  ", "▁▁▁", "<us"], add_dummy_prefix=False)
    processor, library = processor_of(tokenizer), tokenizers.Tokenizer.from_str(to_tokenizer_json(tokenizer).decode())

    @given(st.lists(st.sampled_from(["the", "<user>", "<us", "er>", " ", "  ", "cat", "été"])).map("".join))
    def check(text: str) -> None:
        assert ids_of(library, text) == processor.encode(text)

    check()


def with_pieces(tokenizer: SentencePieceTokenizer, **changes: Any) -> Tokenizer:
    return tokenizer_of(replace(pieces_of(tokenizer), **changes), "these")


def with_one_more(tokenizer: SentencePieceTokenizer, text: str, type_: PieceType, score: float = 0.0) -> Tokenizer:
    pieces = pieces_of(tokenizer)
    return with_pieces(
        tokenizer, texts=[*pieces.texts, text], types=[*pieces.types, type_], scores=[*pieces.scores, score]
    )


def test_an_unused_piece_that_no_merge_makes_is_no_hindrance():
    tokenizer = with_one_more(trained(), "[PAD320]", PieceType.UNUSED)
    library = tokenizers.Tokenizer.from_str(to_tokenizer_json(tokenizer).decode())
    assert library.token_to_id("[PAD320]") == 320
    assert ids_of(library, "the [PAD320] cat") == processor_of(tokenizer).encode("the [PAD320] cat")


def with_normal_pieces(*extra: tuple[str, float]) -> Tokenizer:
    tokenizer = trained(vocab_size=290)
    for text, score in extra:
        tokenizer = with_one_more(tokenizer, text, PieceType.NORMAL, score)
    return tokenizer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: trained(normalization_rule_name="nmt_nfkc"), r"changes the text .*\(nmt_nfkc\)"),
        (lambda: trained(remove_extra_whitespaces=True), "changes the text"),
        (lambda: trained(treat_whitespace_as_suffix=True), "keeps a space with the word before it"),
        (lambda: trained(model_type="char", vocab_size=300), "cuts the text into words or characters"),
        (lambda: trained(user_defined_symbols=["<user>"]), "a space behind each user-defined piece, such as '<user>'"),
        (lambda: with_normal_pieces(("qt", 1.0), ("te", 1.0)), "'qt' is made of 'q', which is no piece"),
        (lambda: with_normal_pieces(("ts", 1.0), ("sl", 1.0)), "'ts' and 'sl' share a score"),
        (lambda: with_one_more(trained(), "tx", PieceType.UNUSED), "its unused piece 'tx' can come of a merge"),
    ],
)
def test_what_tokenizer_json_cannot_do_is_refused_with_the_reason(make: Callable[[], Tokenizer], reason: str):
    with pytest.raises(UserError, match=f"cannot be written as tokenizer.json: .*{reason}"):
        to_tokenizer_json(make())


@pytest.mark.assets
def test_byte_level_bpe_is_neither_tokenizer_bin_nor_a_sentencepiece_model(assets: Path):
    tokenizer = load_tokenizer(assets / "tokenizers/gpt2")
    for write, file in ((to_tokenizer_bin, "tokenizer.bin"), (to_sentencepiece, "a SentencePiece model")):
        with pytest.raises(UserError, match=f"as .*{file}: it cuts the text by a pattern and joins bytes by ranked"):
            write(tokenizer)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: trained(model_type="unigram"), "most probable cut"),
        (lambda: trained(add_dummy_prefix=False), "puts a space before the text"),
        (lambda: trained(byte_fallback=False, vocab_size=60), "the bytes as 3 to 258"),
        (lambda: trained(bos_id=2, eos_id=1), "BOS and EOS as ids 0, 1 and 2"),
        (lambda: with_one_more(trained(), "<|im_start|>", PieceType.CONTROL), r"'<\|im_start\|>' is control"),
        (lambda: with_one_more(trained(), "<user>", PieceType.USER_DEFINED), "'<user>' is user-defined"),
    ],
)
def test_what_llama2c_would_encode_otherwise_is_refused_with_the_reason(make: Callable[[], Tokenizer], reason: str):
    with pytest.raises(UserError, match=f"as llama2.c's tokenizer.bin: .*{reason}"):
        to_tokenizer_bin(make())


def changed(tokenizer: Tokenizer, change: Callable[[dict[str, Any]], Any]) -> HuggingFaceTokenizer:
    content = json.loads(to_tokenizer_json(tokenizer))
    change(content)
    return HuggingFaceTokenizer(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["model"]["merges"].pop(), "SentencePiece joins .* which it leaves apart"),
        (
            lambda c: c["model"]["merges"].append(["a", "<0x0A>"]) or c["model"]["vocab"].update({"a<0x0A>": 400}),
            "joins",
        ),
        (lambda c: c.update(normalizer={"type": "NFC"}), "changes or cuts the text"),
        (lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), "changes or cuts the text"),
        (lambda c: c["decoder"]["decoders"].pop(), "puts a space before the text and leaves it there"),
        (lambda c: c["model"].update(unk_token=None, byte_fallback=False), "no piece for the unknown"),
        (lambda c: c["model"].update(dropout=0.5), "dropped at random"),
        (lambda c: c.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), "neither GPT-2's kind"),
        (lambda c: c["model"]["vocab"].update(far=10_000), "most ids below 10001 have no piece"),
    ],
)
def test_what_sentencepiece_cannot_imitate_is_refused_with_the_reason(
    change: Callable[[dict[str, Any]], Any], reason: str, small_tokenizer: Tokenizer
):
    with pytest.raises(UserError, match=f"as a SentencePiece model: .*{reason}"):
        to_sentencepiece(changed(small_tokenizer, change))


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ({}, "no space is put behind '<tool>' and its like"),
        ({"rstrip": True}, "'<tool>' and its like leave the text beside them"),
    ],
)
def test_what_is_lost_of_an_added_token_is_noted(flags: dict[str, bool], note: str, small_tokenizer: Tokenizer):
    library = tokenizers.Tokenizer.from_str(to_tokenizer_json(small_tokenizer).decode())
    library.add_tokens([tokenizers.AddedToken("<tool>", **flags)])
    assert any(note in sentence for sentence in pieces_of(HuggingFaceTokenizer(library.to_str().encode())).notes)
    assert not pieces_of(HuggingFaceTokenizer(to_tokenizer_json(small_tokenizer))).notes


@pytest.mark.assets
def test_word_pieces_are_refused_by_name(assets: Path):
    with pytest.raises(UserError, match="a WordPiece tokenizer that is neither GPT-2's kind nor SentencePiece's"):
        pieces_of(HuggingFaceTokenizer(berts_word_pieces(assets).to_str().encode()))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"types": [1]}, "320 pieces with 1 types"),
        ({"scores": [0.0]}, "320 pieces with 1 scores"),
        ({"scores": [float("nan")] * 320}, "score is no number"),
        ({"scores": [1e39] * 320}, "score is no number"),
        ({"types": [7] * 320}, "a piece is of type 7"),
        ({"bos": 320}, "its bos is piece 320 of 320"),
        ({"eos": -1}, "its eos is piece -1 of 320"),
        ({"texts": ["a"] * 320}, "not a SentencePiece model"),
        ({"kind": "byte-bpe", "merges": ["a b"], "texts": ["a"] * 320}, "two of its pieces are the same"),
        ({"kind": "byte-bpe", "merges": ["nosuch b"]}, "not a byte-level BPE"),
        ({"kind": "byte-bpe", "pre_tokenizer": {"type": "NoSuch"}}, "not a byte-level BPE"),
    ],
)
def test_contradictory_pieces_are_refused(changes: dict[str, Any], complaint: str):
    pieces = pieces_of(trained())
    assert len(pieces.texts) == 320
    with pytest.raises(UserError, match=f"model.gguf: .*{complaint}"):
        tokenizer_of(replace(pieces, **changes), "model.gguf")


class TestWhatIsNoTokenizer:
    def test_is_told_without_the_innards_of_a_library(self, tmp_path: Path):
        (tmp_path / "README.md").write_text("# A model\n\nIt is small.\n")
        with pytest.raises(UserError) as caught:
            load_tokenizer(tmp_path / "README.md")
        mend = "give a tokenizer.model, tokenizer.json or tokenizer.bin"
        assert str(caught.value) == f"{tmp_path / 'README.md'}: not a SentencePiece model: {mend}"

    def test_for_a_reason_is_told_with_the_reason(self, tmp_path: Path):
        model = trained().model
        model.pieces.add().CopyFrom(model.pieces[300])
        (tmp_path / "twice.model").write_bytes(model.SerializeToString())
        piece = re.escape(model.pieces[300].piece)
        with pytest.raises(UserError, match=rf"not a SentencePiece model \({piece} is already defined\): give"):
            load_tokenizer(tmp_path / "twice.model")

    def test_as_it_is_not_there_is_told_with_a_mend(self, tmp_path: Path):
        with pytest.raises(UserError, match=r"gone\.model: no such tokenizer file: check the path$"):
            load_tokenizer(tmp_path / "gone.model")

    def test_as_no_file_can_be_called_so_is_told(self):
        with pytest.raises(UserError, match=r"xxx: cannot be read \(File name too long\): check the path"):
            load_tokenizer(Path("x" * 300))
