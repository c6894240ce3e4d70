"""Special tokens by their names, and where a folder's files name them."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from shearling.data.tokenizers import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from shearling.data.tokenizers.conversion import to_tokenizer_json
from shearling.errors import UserError

TURN = "<|im_start|>user\nhi  there<|im_end|>\n<|im_start|>assistant\n"


def chat_tokenizer(**flags: Any) -> tokenizers.Tokenizer:
    """A byte-level tokenizer with tokens for a chat's turns, those of `<|im_end|>` with the given flags."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(["<|endoftext|>", "<|im", *alphabet])}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    library.add_tokens(["<tool>"])
    library.add_special_tokens([tokenizers.AddedToken("<|im_end|>", special=True, **flags), "<|im"])
    return library


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    file = tmp_path / "chat" / "tokenizer.json"
    file.parent.mkdir()
    chat_tokenizer().save(str(file))
    return file


def test_special_tokens_are_known_by_name(chat_file: Path, small_tokenizer: Tokenizer):
    assert small_tokenizer.special_ids == {"<s>": 1, "</s>": 2}
    specials = load_tokenizer(chat_file).special_ids
    assert specials == {"<|endoftext|>": 0, "<|im": 1, "<|im_start|>": 258, "<|im_end|>": 260}


@pytest.mark.parametrize("flags", [{}, {"rstrip": True}, {"lstrip": True}, {"single_word": True}])
def test_names_in_a_chat_are_found_as_the_library_finds_them(flags: dict[str, bool]):
    library = chat_tokenizer(**flags)
    tokenizer = HuggingFaceTokenizer(library.to_str().encode())

    @given(
        st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "<|im", "<tool>", " ", "\n", "a", "é", "|>"])).map(
            "".join
        )
    )
    def check(text: str) -> None:
        assert tokenizer.encode_with_specials(text) == library.encode(text, add_special_tokens=False).ids

    check()


def test_finding_names_in_a_chat_lets_no_document_forge_one(chat_file: Path, small_tokenizer: Tokenizer):
    for tokenizer, text in ((load_tokenizer(chat_file), TURN), (small_tokenizer, "<s>a</s>")):
        special = set(tokenizer.special_ids.values())
        assert special & set(tokenizer.encode_with_specials(text))
        for ids in (tokenizer.encode(text), tokenizer.encode_batch([text])[0].tolist()):
            assert not special & set(ids)
            assert tokenizer.decode(ids) == text


@pytest.mark.assets
def test_llama_2s_chat_is_encoded_as_metas_code_does(assets: Path):
    model = assets / "tokenizers/llama2/tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    turns = [("[INST] Hi  there [/INST]", " Hello! "), ("[INST] Who? [/INST]", " Me ")]
    # llama/generation.py: each turn's prompt and answer as one text, between BOS and EOS
    expected = [i for ask, say in turns for i in [1, *processor.encode(ask + say), 2]]
    text = "".join(f"<s>{ask}{say}</s>" for ask, say in turns)
    tokenizer = load_tokenizer(model)
    assert tokenizer.encode_with_specials(text) == expected
    assert HuggingFaceTokenizer(to_tokenizer_json(tokenizer)).encode_with_specials(text) == expected


def test_a_text_without_names_is_encoded_as_ever(small_tokenizer: Tokenizer):
    for text in ("", " ", "the  cat\n"):
        assert small_tokenizer.encode_with_specials(text) == small_tokenizer.encode(text)


@pytest.mark.parametrize("as_object", [False, True])
def test_the_config_beside_a_tokenizer_json_names_bos_and_eos(chat_file: Path, as_object: bool):
    assert load_tokenizer(chat_file).bos_id == 0
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    config = {key: {"content": name, "special": True} if as_object else name for key, name in names.items()}
    chat_file.with_name("tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ x }}"}))
    for path in (chat_file, chat_file.parent):
        tokenizer = load_tokenizer(path)
        assert (tokenizer.bos_id, tokenizer.eos_id) == (258, 260)


def test_a_config_that_names_no_bos_leaves_the_usual_one(chat_file: Path):
    chat_file.with_name("tokenizer_config.json").write_text('{"bos_token": null}')
    assert load_tokenizer(chat_file).bos_id == 0


def test_unusual_bos_and_eos_are_saved_with_the_tokenizer(chat_file: Path, tmp_path: Path):
    content = chat_file.read_bytes()
    HuggingFaceTokenizer(content, bos="<|im_start|>", eos="<|im_end|>").save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.bos_id, again.eos_id, again.serialized) == (258, 260, content)
    HuggingFaceTokenizer(content).save(tmp_path / "usual")
    assert [file.name for file in (tmp_path / "usual").iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("{", "tokenizer_config.json: not JSON"),
        ("[]", "tokenizer_config.json: not a JSON object"),
        ('{"bos_token": 3}', "tokenizer_config.json: bos_token is no text"),
        ('{"eos_token": "<nosuch>"}', "tokenizer.json: it has no token '<nosuch>'"),
    ],
)
def test_a_damaged_config_is_refused_by_name(chat_file: Path, config: str, complaint: str):
    chat_file.with_name("tokenizer_config.json").write_text(config)
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(chat_file)


def test_a_folders_tokenizer_json_is_taken_where_it_has_tokens_that_the_model_lacks(
    tmp_path: Path, small_tokenizer: Tokenizer
):
    small_tokenizer.save(tmp_path)
    library = tokenizers.Tokenizer.from_str(to_tokenizer_json(small_tokenizer).decode())
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).kind == "sentencepiece"
    library.add_special_tokens(["<|im_start|>"])
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).special_ids["<|im_start|>"] == 400
    assert load_tokenizer(tmp_path / "tokenizer.model").kind == "sentencepiece"


@pytest.mark.parametrize(
    "content", ["", "{}", '{"added_tokens": [3]}', '{"added_tokens": [{"id": "x"}]}', '{"added_tokens": [']
)
def test_a_tokenizer_json_that_is_none_does_not_hinder_the_model_beside_it(
    tmp_path: Path, content: str, small_tokenizer: Tokenizer
):
    small_tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    assert load_tokenizer(tmp_path).kind == "sentencepiece"


def test_metas_tiktoken_file_is_named_as_what_it_is(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\nIw== 2\n")
    with pytest.raises(UserError, match=r"tokenizer\.model: a tiktoken vocabulary.*give the tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_ids_beyond_the_vocabulary_give_no_text(chat_file: Path, small_tokenizer: Tokenizer):
    for tokenizer in (load_tokenizer(chat_file), small_tokenizer):
        ids = tokenizer.encode("a cat")
        beyond = [*ids, tokenizer.vocab_size, 1 << 20]
        decoder = tokenizer.stream_decoder()
        assert tokenizer.decode(beyond) == "".join(map(decoder.push, beyond)) == "a cat"
