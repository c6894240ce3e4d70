"""Text that streams out of tokenizers whose tokens' text depends on their neighbours."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from libraries import berts_word_pieces

from shearling.data.tokenizers import HuggingFaceTokenizer
from shearling.data.tokenizers.streaming import LONGEST_HELD, WindowStreamDecoder


def word_pieces() -> tokenizers.Tokenizer:
    words = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "sheep",
        "##s",
        "##'",
        "'",
        "t",
        "isn",
        ".",
        ",",
        "do",
        "not",
        "##ly",
        "é",
    ]
    library = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.decoder = tokenizers.decoders.WordPiece()
    library.add_special_tokens(["[CLS]", "[SEP]"])
    return library


def metaspace() -> tokenizers.Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("▁the", -2.0), ("▁▁", -2.0), ("a", -3.0), ("é", -3.0), ("s▁s", -3.0)]
    library = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    library.decoder = tokenizers.decoders.Metaspace()
    library.add_special_tokens(["<s>", "</s>"])
    return library


def word_ends() -> tokenizers.Tokenizer:
    pieces = ["<s>", "low", "low</w>", "er</w>", "é", "</w>", "a</w>"]
    library = tokenizers.Tokenizer(tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    library.decoder = tokenizers.decoders.BPEDecoder()
    library.add_special_tokens(["<s>"])
    return library


def bytes_after_spaces() -> tokenizers.Tokenizer:
    pieces = {"<s>": 0, "▁a": 1, "b": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, [], byte_fallback=True))
    library.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace()]
    )
    library.add_special_tokens(["<s>"])
    return library


KINDS = [word_pieces, metaspace, word_ends, bytes_after_spaces]


@pytest.mark.parametrize("make", KINDS)
def test_streaming_any_tokens_adds_up_to_what_the_library_decodes(make):
    library = make()
    tokenizer = HuggingFaceTokenizer(library.to_str().encode())
    valid = st.lists(st.integers(0, min(tokenizer.vocab_size, 20) - 1), max_size=30)

    @given(valid)
    def check(ids: list[int]) -> None:
        decoder = tokenizer.stream_decoder()
        for _ in range(2):  # flushed, it begins anew
            assert "".join([*map(decoder.push, ids), decoder.flush()]) == library.decode(ids)

    check()


def test_a_character_in_bytes_comes_out_whole():
    tokenizer = HuggingFaceTokenizer(bytes_after_spaces().to_str().encode())
    decoder = tokenizer.stream_decoder()
    given_out = [decoder.push(token) for token in [1, *(3 + byte for byte in "🐑".encode()), 1]]
    assert given_out == ["a", "", "", "", "🐑", " a"]


def test_text_is_given_out_as_soon_as_it_is_certain():
    tokenizer = HuggingFaceTokenizer(word_pieces().to_str().encode())
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(token) for token in (1, 3, 4, 5, 10)] == ["", "the", " sheep", "s", "."]


@pytest.mark.parametrize(
    "ids", [[3, 4, 5] * 1000, [3] + [1] * 3000, [9, 6, 8] * 1000], ids=["words", "special", "joined"]
)
def test_each_token_costs_the_same_however_long_the_text_is(ids: list[int]):
    tokenizer = HuggingFaceTokenizer(word_pieces().to_str().encode())
    decoded: list[int] = []

    def decode(some: Sequence[int]) -> str:
        decoded.append(len(some))
        return tokenizer.decode(some)

    decoder = WindowStreamDecoder(decode, frozenset({1, 2}))
    text = "".join([*map(decoder.push, ids), decoder.flush()])
    assert text == tokenizer.decode(ids)
    assert sum(decoded) <= 4 * len(ids)


def test_what_never_becomes_certain_is_held_back_only_so_long():
    longest = 0

    def decode(some: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(some))
        return "\ufffd" * len(some)

    decoder = WindowStreamDecoder(decode, frozenset())
    assert "".join([*map(decoder.push, range(1000)), decoder.flush()]) == "\ufffd" * 1000
    assert longest <= 2 * LONGEST_HELD


@pytest.mark.assets
def test_berts_word_pieces_stream_as_they_decode(assets: Path):
    library = berts_word_pieces(assets)
    tokenizer = HuggingFaceTokenizer(library.to_str().encode())
    text = (assets / "corpora/wiki.txt").read_text(encoding="utf-8")[:20_000]
    ids = tokenizer.encode(text)
    decoder = tokenizer.stream_decoder()
    assert "".join([*map(decoder.push, ids), decoder.flush()]) == library.decode(ids)
