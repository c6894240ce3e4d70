"""Tokenizers from each kind of file to each other, against the libraries that read those files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from libraries import ids_of, processor_of

from shearling.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from shearling.data.tokenizers.conversion import (
    PieceType,
    pieces_of,
    to_sentencepiece,
    to_tokenizer_bin,
    to_tokenizer_json,
    tokenizer_config_json,
    tokenizer_of,
)
from shearling.data.tokenizers.llama2c import llama2c_tokenizer
from shearling.data.tokenizers.sentence_piece import model_proto

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
runs = st.text("a -=*\n", max_size=60)  # where one piece can come of several pairs
prose = st.lists(
    st.sampled_from(["the", " ", "  ", "sheep", "Lily", "12", "3", "\n", "\t", ".", "été", "🐑", "<s>", "<0x0A>"])
).map("".join)
texts = st.one_of(anything, runs, prose)

ASSETS = pytest.mark.assets
LLAMA_KINDS = ["trained", pytest.param("llama2", marks=ASSETS), pytest.param("tok512", marks=ASSETS)]
FILES = {"llama2": "llama2/tokenizer.model", "tok512": "tok512/tok512.bin", "gpt2": "gpt2"}


@pytest.fixture(scope="module")
def tokenizer_named(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Gives a tokenizer by name: the trained one, or one of the assets'."""

    def load(name: str) -> Tokenizer:
        if name == "trained":
            return request.getfixturevalue("small_tokenizer")
        return load_tokenizer(request.getfixturevalue("assets") / "tokenizers" / FILES[name])

    return load


@pytest.mark.parametrize("name", LLAMA_KINDS)
def test_tokenizer_json_of_a_sentencepiece_model_has_its_ids_and_its_text(name: str, tokenizer_named):
    tokenizer = tokenizer_named(name)
    processor, library = processor_of(tokenizer), tokenizers.Tokenizer.from_str(to_tokenizer_json(tokenizer).decode())

    @settings(max_examples=200)
    @given(texts)
    @example("")
    @example("  indented\n    twice" + " " * 40)
    def check(text: str) -> None:
        ids = processor.encode(text)
        assert ids_of(library, text) == ids
        assert library.decode(ids) == processor.decode(ids)

    check()


@pytest.mark.parametrize("name", LLAMA_KINDS)
def test_our_decoding_is_the_same_of_both_files(name: str, tokenizer_named):
    tokenizer = tokenizer_named(name)
    twin = HuggingFaceTokenizer(to_tokenizer_json(tokenizer))

    @given(st.lists(st.integers(1, tokenizer.vocab_size - 1)))  # all but the unknown, which is special to the library
    def check(ids: list[int]) -> None:
        assert twin.decode(ids) == tokenizer.decode(ids)
        decoder = twin.stream_decoder()
        assert "".join([*map(decoder.push, ids), decoder.flush()]) == tokenizer.decode(ids)

    check()
    assert (twin.bos_id, twin.eos_id, twin.vocab_size) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size)


@ASSETS
@pytest.mark.parametrize("corpus", ["stories_valid", "stackexchange", "wiki", "web_c4"])
def test_tokenizer_json_of_llama_2_encodes_corpora_as_its_model(assets: Path, corpus: str, tokenizer_named):
    text = (assets / f"corpora/{corpus}.txt").read_text(encoding="utf-8")[:60_000]
    tokenizer = tokenizer_named("llama2")
    library = tokenizers.Tokenizer.from_str(to_tokenizer_json(tokenizer).decode())
    assert ids_of(library, text) == processor_of(tokenizer).encode(text)


def test_tokenizer_json_begins_a_text_with_bos_as_llamas_does(small_tokenizer: Tokenizer):
    content = to_tokenizer_json(small_tokenizer)
    library = tokenizers.Tokenizer.from_str(content.decode())
    assert library.encode("a cat").ids == [1, *small_tokenizer.encode("a cat")]
    assert HuggingFaceTokenizer(content).adds_bos
    quiet = SentencePieceTokenizer(small_tokenizer.serialized, adds_bos=False)
    assert not HuggingFaceTokenizer(to_tokenizer_json(quiet)).adds_bos


@pytest.mark.parametrize("name", LLAMA_KINDS)
def test_a_sentencepiece_model_comes_back_out_of_its_tokenizer_json(name: str, tokenizer_named):
    tokenizer = tokenizer_named(name)
    twin = HuggingFaceTokenizer(to_tokenizer_json(tokenizer))
    before = processor_of(tokenizer)
    after = sentencepiece.SentencePieceProcessor(model_proto=to_sentencepiece(twin))
    assert [after.id_to_piece(i) for i in range(len(after))] == [before.id_to_piece(i) for i in range(len(before))]

    @settings(max_examples=200)
    @given(texts)
    def check(text: str) -> None:
        assert after.encode(text) == before.encode(text)
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))

    check()


def test_a_sentencepiece_model_stays_as_it_is(small_tokenizer: Tokenizer):
    assert to_sentencepiece(small_tokenizer) == small_tokenizer.serialized


@ASSETS
@pytest.mark.parametrize(("name", "binary"), [("llama2", "llama2/tokenizer.bin"), ("tok512", "tok512/tok512.bin")])
def test_tokenizer_bin_is_byte_for_byte_llama2cs(assets: Path, name: str, binary: str, tokenizer_named):
    assert to_tokenizer_bin(tokenizer_named(name)) == (assets / "tokenizers" / binary).read_bytes()


def test_tokenizer_bin_of_a_trained_model_encodes_as_it(tmp_path: Path, small_tokenizer: Tokenizer):
    file = tmp_path / "tokenizer.bin"
    file.write_bytes(to_tokenizer_bin(small_tokenizer))
    binary = load_tokenizer(file)

    @given(texts)
    def check(text: str) -> None:
        assert binary.encode(text) == small_tokenizer.encode(text)
        assert binary.decode(binary.encode(text)) == small_tokenizer.decode(small_tokenizer.encode(text))

    check()


def test_tokenizer_bin_goes_over_tokenizer_json_without_loss(small_tokenizer: Tokenizer):
    twin = HuggingFaceTokenizer(to_tokenizer_json(small_tokenizer))
    back = llama2c_tokenizer(to_tokenizer_bin(twin))
    assert [back.encode(text) for text in ("a cat", "  12\n🐑")] == [
        twin.encode(text) for text in ("a cat", "  12\n🐑")
    ]


def test_the_written_model_is_what_protobuf_writes(small_tokenizer: Tokenizer):
    pieces = pieces_of(small_tokenizer)
    texts = ["<begin>" if text == "<s>" else text for text in pieces.texts] + ["<p>"]
    renamed = replace(
        pieces, texts=texts, types=[*pieces.types, PieceType.CONTROL], scores=[*pieces.scores, 0.5], pad=400
    )
    message = model_proto()()
    for text, score, type_ in zip(renamed.texts, renamed.scores, renamed.types, strict=True):
        message.pieces.add(piece=text, score=score, type=int(type_))
    trainer, normalizer = message.trainer_spec, message.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback, trainer.pad_id = trainer.BPE, 401, True, 400
    trainer.bos_piece, trainer.pad_piece = "<begin>", "<p>"
    normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = "identity", True, False
    assert tokenizer_of(renamed, "these").serialized == message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", LLAMA_KINDS)
def test_a_tokenizer_put_together_again_is_the_same(name: str, tokenizer_named):
    tokenizer = tokenizer_named(name)
    pieces = pieces_of(tokenizer)
    assert pieces_of(tokenizer_of(pieces, "these")) == pieces
    assert pieces.kind == "bpe"


@ASSETS
def test_gpt2_taken_apart_and_put_together_again_encodes_the_same(tokenizer_named):
    tokenizer = tokenizer_named("gpt2")
    pieces = pieces_of(tokenizer)
    again = tokenizer_of(pieces, "these")
    loaded = HuggingFaceTokenizer(again.serialized)

    @given(texts)
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert again.encode(text) == loaded.encode(text) == ids
        assert again.decode(ids) == loaded.decode(ids) == text

    check()
    assert (again.bos_id, again.vocab_size, again.special_ids) == (50256, 50257, {"<|endoftext|>": 50256})
    assert (pieces.kind, pieces.pre_tokenizer["type"], pieces.adds_bos) == ("byte-bpe", "ByteLevel", False)


def byte_level_json(**model_options: Any) -> dict[str, Any]:
    """A small byte-level BPE with tokens of a chat's turns, in the library's format."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        show_progress=False,
    )
    library.train_from_iterator(["the cat sat on the mat and the dog ran"] * 5, trainer)
    library.add_tokens(["<tool>"])
    content = json.loads(library.to_str())
    content["model"].update(model_options)
    return content


def test_byte_level_pieces_keep_what_each_token_is():
    content = byte_level_json(ignore_merges=True)
    tokenizer = HuggingFaceTokenizer(json.dumps(content).encode(), bos="<|im_start|>", eos="<|endoftext|>")
    pieces = pieces_of(tokenizer)
    again = tokenizer_of(pieces, "these")
    kinds = {text: PieceType(pieces.types[index]).name for index, text in enumerate(pieces.texts)}
    assert [kinds[name] for name in ("<|im_start|>", "<tool>", "Ġthe")] == ["CONTROL", "USER_DEFINED", "NORMAL"]
    assert pieces.pre_tokenizer == content["pre_tokenizer"]
    assert pieces.ignore_merges
    assert (again.bos_id, again.eos_id) == (1, 0)
    for text in ("the cat <tool> 2034", "<|im_start|>", "ran été"):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == text


def test_ids_without_a_piece_stay_where_they_are():
    content = byte_level_json()
    content["model"]["vocab"]["zz"] = len(content["model"]["vocab"]) + 5
    tokenizer = HuggingFaceTokenizer(json.dumps(content).encode())
    pieces = pieces_of(tokenizer)
    assert len(pieces.texts) == tokenizer.vocab_size
    assert pieces.types[-2] == PieceType.UNUSED
    assert tokenizer_of(pieces, "these").encode("the cat") == tokenizer.encode("the cat")


def test_a_tokenizer_json_of_transformers_llama_becomes_sentencepieces_with_a_note(
    tmp_path: Path, small_tokenizer: Tokenizer
):
    transformers = pytest.importorskip("transformers")
    content = json.loads(to_tokenizer_json(small_tokenizer))["model"]
    merges = [tuple(merge) for merge in content["merges"]]
    transformers.LlamaTokenizer(vocab=content["vocab"], merges=merges).save_pretrained(tmp_path)
    pieces = pieces_of(load_tokenizer(tmp_path / "tokenizer.json"))
    again = tokenizer_of(pieces, "these")
    for text in ("the cat", "a  12\n", "  two", ""):
        assert again.encode(text) == small_tokenizer.encode(text)
    assert pieces.notes == ["a text that begins with a space keeps it: its tokenizer.json drops one"]


CHAT = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("trained", "llama"),
        ("trained", "mistral"),
        ("trained", None),
        pytest.param("llama2", "llama", marks=ASSETS),
        pytest.param("gpt2", "gpt2", marks=ASSETS),
    ],
)
def test_transformers_takes_the_files_and_encodes_as_we_do(
    tmp_path: Path, name: str, model_type: str | None, tokenizer_named
):
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizer_named(name)
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "tokenizer.json").write_bytes(to_tokenizer_json(tokenizer))
    (tmp_path / "tokenizer_config.json").write_bytes(tokenizer_config_json(tokenizer, CHAT, max_length=512))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    bos = [tokenizer.bos_id] * tokenizer.adds_bos
    for text in ("", " ", "  Two\n\tlittle Zoë 🐑.", "def f(x):\n    return 12", "</s>x <s>", "<|endoftext|> a"):
        assert theirs(text)["input_ids"] == bos + tokenizer.encode_with_specials(text)
        assert theirs(text, split_special_tokens=True)["input_ids"] == bos + tokenizer.encode(text)
        ids = tokenizer.encode(text)
        assert theirs.decode(ids) == tokenizer.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert theirs.model_max_length == 512
    rendered = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == f"{theirs.bos_token}[user] hi{theirs.eos_token}"
