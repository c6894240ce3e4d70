"""Text and a tokenizer that tests of the data package share."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from shearling.data.tokenizers import SentencePieceTokenizer, Tokenizer, train_tokenizer

TEXT = "the a little cat dog sat ran on in mat house garden and then was very happy sad 12 345 été naïve 🐑"


def _make_documents(count: int, seed: int = 0) -> list[str]:
    """Texts of unequal length, each unlike the others."""
    draw = random.Random(seed)
    words = TEXT.split()
    return [
        f"Story {seed}.{i}\n" + " ".join(draw.choices(words, k=draw.randint(5, 120))) + ".\n\tEnd" for i in range(count)
    ]


@pytest.fixture(scope="session")
def make_documents() -> Callable[..., list[str]]:
    """Makes so many documents; another seed makes others."""
    return _make_documents


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return _make_documents(400)


@pytest.fixture(scope="session")
def small_tokenizer(documents: list[str]) -> Tokenizer:
    return train_tokenizer(documents, 400)


@pytest.fixture(scope="session")
def small_tokenizer_file(small_tokenizer: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tokenizer.save(tmp_path_factory.mktemp("tokenizer"))
