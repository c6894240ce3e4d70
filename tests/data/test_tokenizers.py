"""Tokenizers against the libraries and programs that they stand in for."""

import json
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import processor_of

from shearling.data.tokenizers import HuggingFaceTokenizer, Tokenizer, load_tokenizer, train_tokenizer
from shearling.data.tokenizers.conversion import to_sentencepiece, to_tokenizer_bin, to_tokenizer_json
from shearling.errors import UserError

TEXTS = [
    "",
    " ",
    "Once upon a time,  there was\n\n\ta little Zoë 🐑.\r\n",
    "def f(x):\n    return  x + 1234\n",
    "<s> and </s> and <0x0A> and <unk>",
    "\x00\x7f\u200b",
]

# U+2581 is SentencePiece's own sign for the space; UTF-8 cannot write surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


def test_decoding_gives_back_what_was_encoded(small_tokenizer: Tokenizer):
    @given(texts)
    def check(text: str) -> None:
        assert small_tokenizer.decode(small_tokenizer.encode(text)) == text

    check()


def test_streaming_gives_out_the_decoded_text_and_never_half_a_character(small_tokenizer: Tokenizer):
    @given(texts)
    def check(text: str) -> None:
        decoder = small_tokenizer.stream_decoder()
        parts = [decoder.push(token) for token in small_tokenizer.encode(text)]
        assert "".join(parts) == text
        assert decoder.flush() == ""

    check()


def test_streaming_any_tokens_adds_up_to_their_decoding(small_tokenizer: Tokenizer):
    @given(st.lists(st.integers(0, small_tokenizer.vocab_size - 1)))
    def check(ids: list[int]) -> None:
        decoder = small_tokenizer.stream_decoder()
        streamed = "".join([*(decoder.push(token) for token in ids), decoder.flush()])
        assert streamed == small_tokenizer.decode(ids)

    check()


def test_an_incomplete_character_comes_out_at_the_end_as_the_replacement_character(small_tokenizer: Tokenizer):
    sheep = [3 + byte for byte in "🐑".encode()]
    decoder = small_tokenizer.stream_decoder()
    assert [decoder.push(token) for token in sheep] == ["", "", "", "🐑"]
    assert [decoder.push(token) for token in sheep[:2]] == ["", ""]
    assert decoder.flush() == "\ufffd"


def test_the_trained_model_has_llamas_conventions(small_tokenizer: Tokenizer):
    processor = processor_of(small_tokenizer)
    assert [processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()] == [0, 1, 2, -1]
    assert [processor.id_to_piece(3 + byte) for byte in range(256)] == [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = processor.encode("in 2034\nthe\n", out_type=str)
    assert [piece for piece in pieces if piece.strip("▁").isdigit()] == ["2", "0", "3", "4"]
    assert pieces.count("<0x0A>") == 2
    assert pieces[0].startswith("▁")


def test_indentation_becomes_one_token():
    source = ["def f(x):\n    if x:\n        return x\n    return y\n"] * 50
    tokenizer = train_tokenizer(source, 290)
    processor = processor_of(tokenizer)
    assert "▁" * 4 in processor.encode("x\n    if", out_type=str)


def test_training_twice_gives_the_same_model(documents: list[str], small_tokenizer: Tokenizer):
    assert train_tokenizer(documents, 400).sha256 == small_tokenizer.sha256


@pytest.mark.parametrize(("vocab_size", "mend"), [(100_000, "too large"), (10, "too small")])
def test_an_impossible_vocabulary_size_names_the_possible_one(vocab_size: int, mend: str, documents: list[str]):
    with pytest.raises(UserError, match=rf"--vocab-size {vocab_size} is {mend}.*at (most|least) \d+"):
        train_tokenizer(documents[:20], vocab_size)


def test_a_long_text_is_encoded_as_the_library_does_in_one_go(small_tokenizer: Tokenizer, documents: list[str]):
    text = "\n".join(documents * 5)
    processor = processor_of(small_tokenizer)
    assert len(text) > 1 << 17
    assert small_tokenizer.encode(text) == processor.encode(text)
    batch = small_tokenizer.encode_batch(["short", text, "", "end"])
    assert [row.tolist() for row in batch] == processor.encode(["short", text, "", "end"])


@pytest.mark.assets
@pytest.mark.parametrize("corpus", ["stories_valid", "stackexchange", "wiki"])
def test_llama2c_binary_of_llama_2_encodes_and_decodes_as_its_model(assets: Path, corpus: str):
    text = (assets / f"corpora/{corpus}.txt").read_text(encoding="utf-8")[:400_000]
    model = sentencepiece.SentencePieceProcessor(model_file=str(assets / "tokenizers/llama2/tokenizer.model"))
    binary = load_tokenizer(assets / "tokenizers/llama2/tokenizer.bin")
    ids = binary.encode(text)
    assert ids == model.encode(text)
    assert binary.decode(ids) == model.decode(ids) == text
    assert (binary.vocab_size, binary.bos_id, binary.eos_id) == (32000, 1, 2)


def greedy_encoder(binary: bytes) -> Callable[[str], list[int]]:
    """llama2.c's `encode`, written from its description: the best-scored pair is merged until none is in the table."""
    pieces: list[tuple[float, bytes]] = []
    position = 4
    while position < len(binary):
        score, length = struct.unpack_from("<fi", binary, position)
        pieces.append((score, binary[position + 8 : position + 8 + length]))
        position += 8 + length
    ids_of = {piece: i for i, (_, piece) in reversed(list(enumerate(pieces)))}

    def encode(text: str) -> list[int]:
        tokens: list[int] = []
        for character in " " + text if text else "":
            encoded = character.encode()
            tokens += [ids_of[encoded]] if encoded in ids_of else [byte + 3 for byte in encoded]
        while True:
            joined = [ids_of.get(pieces[a][1] + pieces[b][1]) for a, b in pairwise(tokens)]
            merges = [(-pieces[token][0], place, token) for place, token in enumerate(joined) if token is not None]
            if not merges:
                return tokens
            _, place, token = min(merges)
            tokens[place : place + 2] = [token]

    return encode


@pytest.mark.assets
def test_llama2c_binary_of_stories_encodes_as_llama2c(assets: Path):
    file = assets / "tokenizers/tok512/tok512.bin"
    tokenizer, greedy = load_tokenizer(file), greedy_encoder(file.read_bytes())
    stories = (assets / "corpora/stories_valid.txt").read_text(encoding="utf-8").split("\n<|endoftext|>\n")[:40]
    for text in [*stories, *TEXTS]:
        assert tokenizer.encode(text) == greedy(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 512


@pytest.mark.assets
@pytest.mark.parametrize("file", ["tok512/tok512.bin", "llama2/tokenizer.bin"])
def test_any_text_is_encoded_as_llama2c_does(assets: Path, file: str):
    tokenizer = load_tokenizer(assets / "tokenizers" / file)
    greedy = greedy_encoder((assets / "tokenizers" / file).read_bytes())

    @given(st.one_of(texts, st.text("theLily  --123\n.éß漢🐑", max_size=60)))
    def check(text: str) -> None:
        assert tokenizer.encode(text) == greedy(text)

    check()


def llama2c_file(pieces: list[bytes], longest: int = 8) -> bytes:
    return struct.pack("<i", longest) + b"".join(
        struct.pack("<fi", -float(i), len(p)) + p for i, p in enumerate(pieces)
    )


BYTES = [f"<0x{byte:02X}>".encode() for byte in range(256)]
HEAD = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (llama2c_file([*HEAD, *BYTES])[:-3], "impossible length"),
        (llama2c_file([*HEAD, *BYTES]) + b"\0\0", "ends within piece 259"),
        (llama2c_file([*HEAD, *BYTES], longest=2**31 - 1), "longest piece"),
        (llama2c_file([*HEAD, *BYTES[1:], b"x"]), "ids 3 to 258"),
        (llama2c_file([*HEAD, *BYTES, b"\xff\xfe"]), "piece 259 is not UTF-8"),
        (struct.pack("<ifi", 8, 0.0, 2**31 - 1) + b"<unk>", "piece 0 has an impossible length"),
        (llama2c_file([*HEAD, *BYTES, b""]), "piece 259 has an impossible length of 0 bytes"),
        (llama2c_file([*HEAD, *BYTES, b"a", b"a"]), "not a SentencePiece model"),
        (
            llama2c_file([*HEAD, *BYTES])[:4] + struct.pack("<f", float("nan")) + llama2c_file([*HEAD, *BYTES])[8:],
            "score",
        ),
    ],
)
def test_a_damaged_llama2c_binary_is_refused(tmp_path: Path, content: bytes, complaint: str):
    file = tmp_path / "tokenizer.bin"
    file.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(file)


def test_a_llama2c_binary_of_more_pieces_than_any_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shearling.data.tokenizers.llama2c.MOST_PIECES", 260)
    file = tmp_path / "tokenizer.bin"
    file.write_bytes(llama2c_file([*HEAD, *BYTES, b"a"]))
    assert load_tokenizer(file).vocab_size == 260
    file.write_bytes(llama2c_file([*HEAD, *BYTES, b"a", b"b"]))
    with pytest.raises(UserError, match="it has more than 260 pieces"):
        load_tokenizer(file)


def test_a_sentencepiece_model_larger_than_any_is_refused_before_the_library_sees_it(
    tmp_path: Path, small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    file = small_tokenizer.save(tmp_path)
    monkeypatch.setattr("shearling.data.tokenizers.sentence_piece.LARGEST_MODEL", file.stat().st_size - 1)
    with pytest.raises(UserError, match=r"tokenizer\.model: larger than any SentencePiece model"):
        load_tokenizer(file)


def test_what_the_library_says_of_a_file_is_one_line_whatever_its_pieces(tmp_path: Path):
    file = tmp_path / "tokenizer.bin"
    file.write_bytes(llama2c_file([*HEAD, *BYTES, b"a\n\nb", b"a\n\nb"]))
    with pytest.raises(UserError, match=r"a b is already defined") as refused:
        load_tokenizer(file)
    assert len(str(refused.value).splitlines()) == 1


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """A byte-level BPE tokenizer of the `tokenizers` library that truncates, pads and adds special tokens."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    library.train_from_iterator(["the cat sat on the mat and the dog ran"] * 5, trainer)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    library.enable_truncation(4)
    library.enable_padding(length=8)
    file = tmp_path / "tokenizer.json"
    library.save(str(file))
    return file


def test_tokenizers_json_gives_the_tokens_of_the_text_alone(byte_level: Path):
    tokenizer = load_tokenizer(byte_level)
    library = tokenizers.Tokenizer.from_file(str(byte_level))
    library.no_truncation()
    library.no_padding()
    text = "the cat sat on the mat"
    expected = library.encode(text, add_special_tokens=False).ids
    assert len(expected) > 4
    assert tokenizer.encode(text) == expected
    np.testing.assert_array_equal(tokenizer.encode_batch([text, ""])[0], expected)
    assert tokenizer.kind == "tokenizers"


@given(texts)
def test_byte_level_decoding_gives_back_any_text(text: str):
    vocabulary = {character: i for i, character in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(tokenizers.models.BPE({**vocabulary, "<s>": 256}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = HuggingFaceTokenizer(library.to_str().encode())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text == library.decode(ids)
    decoder = tokenizer.stream_decoder()
    assert "".join(decoder.push(token) for token in ids) + decoder.flush() == text


@pytest.mark.parametrize("name", ["<|endoftext|>", "<s>"])
def test_text_cannot_forge_a_boundary(name: str, byte_level: Path, small_tokenizer: Tokenizer):
    for tokenizer in (load_tokenizer(byte_level), small_tokenizer):
        ids = tokenizer.encode(f"one{name}two")
        assert tokenizer.bos_id not in ids
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == f"one{name}two"


def test_a_tokenizer_whose_bos_text_can_write_is_refused():
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    with pytest.raises(UserError, match="turns the text '<s>' into the token that begins a document"):
        HuggingFaceTokenizer(library.to_str().encode())


def test_a_tokenizer_without_bos_says_which_names_were_looked_for():
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    with pytest.raises(UserError, match=r"<s>, <\|begin_of_text\|>, <bos>, <\|endoftext\|>, \[CLS\]"):
        HuggingFaceTokenizer(library.to_str().encode())


@pytest.mark.assets
@pytest.mark.parametrize("given_as", ["gpt2", "gpt2/gpt2_vocab.json"])
def test_gpt2_files_encode_as_transformers_does(assets: Path, given_as: str):
    transformers = pytest.importorskip("transformers")
    folder = assets / "tokenizers/gpt2"
    tokenizer = load_tokenizer(assets / "tokenizers" / given_as)
    reference = transformers.GPT2Tokenizer(
        vocab=str(folder / "gpt2_vocab.json"), merges=str(folder / "gpt2_merges.txt")
    )
    text = (assets / "corpora/stackexchange.txt").read_text(encoding="utf-8")[:50_000].replace("<|endoftext|>", "")
    assert tokenizer.encode(text) == reference(text)["input_ids"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.bos_id == 50256


@pytest.mark.parametrize("which", ["small", "byte_level"])
def test_a_saved_tokenizer_is_the_same_when_loaded(which: str, small_tokenizer, byte_level: Path, tmp_path: Path):
    tokenizer = small_tokenizer if which == "small" else load_tokenizer(byte_level)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.sha256 == tokenizer.sha256
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"{", b"{}", b'{"model": 1}', json.dumps([1]).encode()])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path, content: bytes):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(file)


FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
UNIGRAM = {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}
MERGED = {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2}, "merges": [["a", "b"]], "continuing_subword_prefix": "##"}
TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": []}


@pytest.mark.parametrize(
    "content",
    [
        {"model": UNIGRAM},
        {"model": MERGED},
        {"model": {**MERGED, "merges": []}, "post_processor": {**TEMPLATE, "special_tokens": {}}},
    ],
    ids=["unknown characters", "merges", "template"],
)
def test_what_the_library_fails_at_is_refused_by_name(tmp_path: Path, content: dict[str, Any]):
    file = tmp_path / "tokenizer.json"
    added = [{"id": 0, "content": "<s>", "special": True, **dict.fromkeys(FLAGS, False)}]
    file.write_text(json.dumps({"version": "1.0", "added_tokens": added, **content}))
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer of the `tokenizers` library"):
        load_tokenizer(file)


@pytest.mark.parametrize("write", [to_sentencepiece, to_tokenizer_bin, to_tokenizer_json])
def test_a_file_with_some_bytes_changed_is_read_or_refused_by_name(write, small_tokenizer: Tokenizer, tmp_path: Path):
    content = write(small_tokenizer)
    bytes_ = st.one_of(
        st.binary(max_size=4), st.sampled_from([b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b'":{', b"null"])
    )
    changes = st.lists(st.tuples(st.integers(0, len(content)), bytes_, st.integers(0, 8)), min_size=1, max_size=3)
    file = tmp_path / "tokenizer.bin"
    complaints: list[str] = []

    @settings(max_examples=200)
    @given(changes, st.booleans())
    def check(changes: list[tuple[int, bytes, int]], cut: bool) -> None:
        damaged = content
        for place, new, gone in changes:
            damaged = damaged[:place] + new + damaged[place + gone :]
        file.write_bytes(damaged[: changes[0][0]] if cut else damaged)
        try:
            tokenizer = load_tokenizer(file)
            tokenizer.decode([*tokenizer.encode("the cat 🐑 <s>"), 0, 1, 2, 259, 399, 400])
        except UserError as error:
            complaints.append(str(error))

    check()
    assert complaints
    assert all("tokenizer.bin" in complaint for complaint in complaints)


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path: Path):
    with pytest.raises(UserError, match=r"no tokenizer in this folder.*tokenizer\.model"):
        load_tokenizer(tmp_path)


def test_gpt2s_vocabulary_alone_asks_for_its_merges(tmp_path: Path):
    (tmp_path / "gpt2_vocab.json").write_text('{"a": 0}')
    with pytest.raises(UserError, match=r"merges are missing: put gpt2_merges\.txt beside it"):
        load_tokenizer(tmp_path / "gpt2_vocab.json")


def test_a_data_folder_stands_for_the_tokenizer_in_it(tmp_path: Path, small_tokenizer: Tokenizer):
    small_tokenizer.save(tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path).sha256 == small_tokenizer.sha256
