"""A model that computes NaN is not shipped: conversion names what is not finite, and leaves nothing."""

import json
import re

import numpy as np
import pytest
from convert_models import left_in, made

from shearling.cli import main
from shearling.engine.reference import ReferenceEngine
from shearling.errors import UserError
from shearling.experiments.convert import convert
from shearling.experiments.convert.perplexity import perplexity
from shearling.formats import Checkpoint, StoredTensor, open_checkpoint
from shearling.formats.run_folder import write_run_folder
from shearling.quantization import CODECS

UP = "layers.1.feedforward.branch.up_proj.weight"
GAIN = "layers.0.attention.norm.weight"


def spoiled(folder, *names: str, number: float = float("nan"), codec: str = "f32", **options):
    """A run folder of `made` with the last number of these tensors replaced."""
    source = open_checkpoint(made(folder.with_name("whole"), **options))
    tensors = dict(source.tensors)
    for name in names:
        numbers = tensors[name].read().copy()
        numbers.flat[-1] = number
        tensors[name] = StoredTensor(numbers.shape, CODECS[codec], CODECS[codec].encode(numbers))
    write_run_folder(folder, Checkpoint(source.spec, tensors, source.rotary, "made"), progress=lambda _: None)
    return folder


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.gguf", {}), ("a.gguf", {"quantize": "q8_0"}), ("a.bin", {}), ("hf", {}), ("run", {"to": "run"})],
)
def test_a_model_with_a_nan_is_refused_by_the_tensor_s_name(tmp_path, name, options):
    source = spoiled(tmp_path / "source", UP)
    with pytest.raises(UserError, match=rf"source: NaN or infinite numbers in {re.escape(UP)}: the model is damaged"):
        convert(source, tmp_path / name, **options)
    assert left_in(tmp_path) == {"whole", "source"}


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
def test_every_kind_of_float_is_looked_at(tmp_path, number, codec):
    source = spoiled(tmp_path / "source", UP, GAIN, number=number, codec=codec)
    with pytest.raises(UserError, match=rf"({GAIN}, {UP}|{UP}, {GAIN}): the model is damaged"):
        convert(source, tmp_path / "a.gguf")


def test_a_row_that_no_logit_hangs_on_is_looked_at_too(tmp_path):
    """Of an embedding apart from the head, the tokens that are compared meet few rows."""
    source = spoiled(tmp_path / "source", "embed.weight", tie_embeddings=False)
    with pytest.raises(UserError, match=r"numbers in embed\.weight: "):
        convert(source, tmp_path / "a.gguf")


def test_of_many_the_first_are_named_and_the_rest_counted(tmp_path):
    names = [f"layers.{layer}.feedforward.branch.{matrix}_proj.weight" for layer in (0, 1) for matrix in ("gate", "up")]
    with pytest.raises(UserError, match=r"(layers\.\d\.feedforward\S+, ){2}layers\S+ and 1 more: the model"):
        convert(spoiled(tmp_path / "source", *names), tmp_path / "a.gguf")


def test_a_model_whose_finite_weights_give_no_finite_logits_is_refused(tmp_path):
    source = spoiled(tmp_path / "source", "final_norm.weight", number=3e38, init_std=10)
    with pytest.raises(UserError, match="source: its logits are not finite, though its weights are"):
        convert(source, tmp_path / "a.gguf")
    assert left_in(tmp_path) == {"whole", "source"}


def test_a_perplexity_beyond_any_number_is_refused(tmp_path):
    folder = made(tmp_path / "source", init_std=1e5)
    with pytest.raises(UserError, match=r"--data: with a loss of [\d,]+ a token the perplexity is beyond any number"):
        perplexity(ReferenceEngine(open_checkpoint(folder)), list(range(100)))


def test_the_command_s_figures_are_json_that_others_read(tmp_path, capsys):
    def no_number(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    with pytest.raises(SystemExit) as ended:
        main(["convert", str(made(tmp_path / "source")), str(tmp_path / "a.gguf"), "--quantize", "q4_0", "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out, parse_constant=no_number)["logits"]["largest"] > 0
