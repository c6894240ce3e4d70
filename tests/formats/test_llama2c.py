"""llama2.c's files: held against bytes laid out here from the format's description, and `transformers`' logits."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from llama2c_files import checkpoint_of, file_of, llama, quantized
from oracles import assert_same, in_memory, our_logits, their_logits

from shearling.config import load
from shearling.data.tokenizers import load_tokenizer
from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.formats.in_torch import load_transformer
from shearling.formats.llama2c import group_size, read_llama2c, write_llama2c
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer
from shearling.quantization import CODECS, parse_codec
from shearling.training.spec import ExperimentSpec

MODELS = {
    "shared": {"tie_word_embeddings": True},
    "separate classifier": {"tie_word_embeddings": False},
    "grouped queries": {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "one key head, separate": {"tie_word_embeddings": False, "num_key_value_heads": 1},
}


def weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: checkpoint.in_rotary("halves", name).read() for name in checkpoint.tensors}


@pytest.fixture
def written(tmp_path):
    """What is written of a checkpoint: `written(checkpoint, version=1)`."""

    def write(checkpoint: Checkpoint, version: int, codec=None) -> Path:
        path = tmp_path / f"written-v{version}.bin"
        write_llama2c(path, checkpoint, version=version, codec=codec, progress=lambda count: None)
        return path

    return write


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
class TestAModel:
    @pytest.mark.parametrize("version", [0, 1])
    def test_that_is_read_has_the_logits_of_transformers(self, options, version, bin_file):
        model = llama(**options)
        assert_same(our_logits(read_llama2c(bin_file(file_of(model, version)))), their_logits(model))

    def test_of_version_2_has_those_of_transformers_with_the_same_rounded_weights(self, options, bin_file):
        model = llama(**options)
        checkpoint = read_llama2c(bin_file(file_of(model, 2)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:  # row for row the same groups, in whatever order the rows are
                    groups = parameter.view(-1, 16)
                    scales = groups.abs().amax(1, keepdim=True) / 127
                    parameter.copy_((torch.round(groups / scales) * scales).view_as(parameter))
        assert_same(our_logits(checkpoint), their_logits(model))

    @pytest.mark.parametrize("version", [0, 1, 2])
    def test_is_written_byte_for_byte(self, options, version, bin_file, written):
        model = llama(**options)
        checkpoint = read_llama2c(bin_file(file_of(model, 1)))
        found = written(checkpoint, version).read_bytes()
        expected = file_of(model, version)
        if version:
            assert found == expected
        else:  # cosines and sines may differ in their last bit
            assert found[:28] == expected[:28]
            assert len(found) == len(expected)
            np.testing.assert_allclose(np.frombuffer(found[28:], "<f4"), np.frombuffer(expected[28:], "<f4"), atol=1e-6)

    def test_comes_back_the_same_through_all_versions(self, options, bin_file, written):
        first = read_llama2c(bin_file(file_of(llama(**options), 0)))
        last = first
        for version in (1, 0, 1):
            last = read_llama2c(written(last, version))
        for name, array in weights(first).items():
            np.testing.assert_array_equal(weights(last)[name], array)
        quantized_once = read_llama2c(written(last, 2))
        through_floats = read_llama2c(written(quantized_once, 0))
        for name, array in weights(quantized_once).items():
            np.testing.assert_array_equal(weights(through_floats)[name], array)
        assert through_floats.spec == first.spec


def test_queries_and_keys_in_halves_are_written_adjacent(bin_file, written):
    model = llama(num_key_value_heads=2, tie_word_embeddings=True)
    adjacent = read_llama2c(bin_file(file_of(model, 1)))
    halves = replace(
        adjacent,
        rotary="halves",
        tensors={name: adjacent.in_rotary("halves", name) for name in adjacent.tensors},
    )
    assert written(halves, 1).read_bytes() == file_of(model, 1)


class TestTheStories:
    @pytest.fixture
    def stories(self, assets):
        return assets / "models" / "stories260K.bin"

    def test_are_the_model_that_they_are(self, stories):
        spec = read_llama2c(stories).spec
        assert (spec.d_model, spec.intermediate_size, spec.n_layers, spec.n_heads, spec.kv_heads) == (64, 172, 5, 8, 4)
        assert (spec.vocab_size, spec.max_seq_len, spec.tie_embeddings) == (512, 512, True)

    def test_are_written_byte_for_byte_but_for_the_tables(self, stories, written):
        found, expected = written(read_llama2c(stories), 0).read_bytes(), stories.read_bytes()
        tables = 4 * 512 * 8  # at the end, since the classifier is shared
        assert found[:-tables] == expected[:-tables]
        np.testing.assert_allclose(
            np.frombuffer(found[-tables:], "<f4"), np.frombuffer(expected[-tables:], "<f4"), atol=1e-6
        )

    def test_go_on_greedily_as_run_does(self, stories, assets):
        tokenizer = load_tokenizer(assets / "tokenizers" / "tok512" / "tok512.bin")
        checkpoint = read_llama2c(stories)
        model = load_transformer(checkpoint)
        tokens = [1]
        with torch.no_grad():
            for _ in range(40):
                tokens.append(int(model.logits(model(torch.tensor([tokens])))[0, -1].argmax()))
        told = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
        assert tokenizer.decode(tokens).startswith(told)

    def test_are_quantized_in_groups_of_four(self, stories, written):
        path = written(read_llama2c(stories), 2)
        assert struct.unpack_from("<i", path.read_bytes(), 37) == (4,)  # of 64 and 172
        exact, rounded = weights(read_llama2c(stories)), weights(read_llama2c(path))
        assert max(np.abs(exact[name] - rounded[name]).max() for name in exact) < 0.02

    def test_that_were_exported_in_groups_that_do_not_divide_the_hidden_width_are_read_as_they_were_meant(
        self, bin_file
    ):
        model = llama(intermediate_size=36, tie_word_embeddings=True)  # rows of w2 end within groups of 16
        checkpoint = read_llama2c(bin_file(file_of(model, 2, group=16)))
        w2 = model.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
        blob = quantized(w2, 16)
        integers = np.frombuffer(blob[: w2.size], np.int8).reshape(-1, 16)
        scales = np.frombuffer(blob[w2.size :], "<f4")
        np.testing.assert_array_equal(
            checkpoint.tensors["layers.1.feedforward.branch.down_proj.weight"].read(),
            (integers * scales[:, None]).reshape(w2.shape),
        )


class TestTheGroup:
    def checkpoint(self, dim, hidden_dim, bin_file) -> Checkpoint:
        return read_llama2c(bin_file(file_of(llama(hidden_size=dim, intermediate_size=hidden_dim), 1)))

    @pytest.mark.parametrize(
        ("dim", "hidden_dim", "group"), [(64, 172, 4), (288, 768, 32), (768, 2048, 64), (64, 170, 2), (128, 352, 32)]
    )  # of stories260K, 15M and 110M, and others
    def test_is_the_largest_power_of_two_that_divides_both_widths(self, dim, hidden_dim, group):
        assert group_size(ModelSpec(d_model=dim, intermediate_size=hidden_dim, n_heads=2)) == group

    def test_that_does_not_exist_is_refused_before_a_file_is_made(self, bin_file, written, tmp_path):
        with pytest.raises(
            UserError, match=r"no power of two divides both 32 \(dim\) and 45 \(hidden_dim\).* version 1"
        ):
            written(self.checkpoint(32, 45, bin_file), 2)
        assert not (tmp_path / "written-v2.bin").exists()

    @pytest.mark.parametrize(("dim", "hidden_dim", "group"), [(32, 48, 8), (48, 45, 3), (96, 288, 48)])
    def test_that_is_asked_for_is_taken(self, bin_file, written, dim, hidden_dim, group):
        path = written(self.checkpoint(dim, hidden_dim, bin_file), 2, codec=parse_codec("int8", group))
        assert read_llama2c(path).tensors["embed.weight"].codec.group == group

    @pytest.mark.parametrize("group", [32, 1])
    def test_that_does_not_divide_both_or_is_one_weight_is_refused(self, bin_file, written, group):
        with pytest.raises(UserError, match=rf"groups of {group}: .* both 32 .* and 48 .* take groups of 16"):
            written(self.checkpoint(32, 48, bin_file), 2, codec=parse_codec("int8", group))

    def test_of_the_source_is_kept_and_nothing_is_rounded_again(self, bin_file, written):
        path = bin_file(file_of(llama(tie_word_embeddings=False), 2, group=8))
        assert written(read_llama2c(path), 2).read_bytes() == path.read_bytes()


class TestTheTokenizer:
    @pytest.fixture
    def model(self, assets, tmp_path):
        path = tmp_path / "model.bin"
        path.write_bytes((assets / "models" / "stories260K.bin").read_bytes())
        return path

    @pytest.fixture
    def tok512(self, assets):
        return assets / "tokenizers" / "tok512" / "tok512.bin"

    @pytest.mark.parametrize("name", ["tokenizer.bin", "tok512.bin"])
    def test_beside_the_model_is_found(self, model, tok512, name):
        model.with_name(name).write_bytes(tok512.read_bytes())
        assert read_llama2c(model).tokenizer.sha256 == load_tokenizer(tok512).sha256

    def test_of_another_size_is_passed_over(self, model, tok512, assets):
        model.with_name("tokenizer.bin").write_bytes((assets / "tokenizers/llama2/tokenizer.bin").read_bytes())
        assert read_llama2c(model).tokenizer is None
        model.with_name("tok512.bin").write_bytes(tok512.read_bytes())
        assert read_llama2c(model).tokenizer.vocab_size == 512

    def test_that_is_given_goes_before_the_one_beside(self, model, tok512, assets):
        model.with_name("tokenizer.bin").write_bytes(b"no tokenizer")
        assert read_llama2c(model, tok512).tokenizer.vocab_size == 512

    def test_that_is_given_and_larger_than_the_model_is_refused(self, model, assets):
        checkpoint = read_llama2c(model, assets / "tokenizers/llama2/tokenizer.bin")
        with pytest.raises(UserError, match="32000 tokens, and the model only 512"):
            _ = checkpoint.tokenizer

    def test_stops_at_bos(self, model):
        assert read_llama2c(model).stop_ids == (1,)


def test_eps_and_theta_that_were_rounded_to_float32_on_the_way_are_the_same(written):
    near = {"norm": {"kind": "rmsnorm", "eps": float(np.float32(1e-5))}}
    assert read_llama2c(written(checkpoint_of(**near), 1)).spec.norm.eps == 1e-5


@pytest.mark.parametrize("version", [0, 1, 2])
def test_progress_adds_up_to_the_file(version, tmp_path):
    progress = []
    write_llama2c(tmp_path / "x.bin", checkpoint_of(), version=version, progress=progress.append)
    assert sum(progress) == (tmp_path / "x.bin").stat().st_size


def test_a_model_in_bf16_is_written_as_the_same_numbers_in_f32(written):
    plain = checkpoint_of()
    bf16 = CODECS["bf16"]
    halved = {name: StoredTensor(t.shape, bf16, bf16.encode(t.read())) for name, t in plain.tensors.items()}
    back = weights(read_llama2c(written(replace(plain, tensors=halved), 1)))
    for name, array in back.items():
        exact = plain.in_rotary("halves", name).read()
        np.testing.assert_array_equal(array, torch.tensor(exact).bfloat16().float().numpy())


def test_a_piece_at_a_time_gives_the_same_file(written, monkeypatch):
    whole = written(checkpoint_of(), 2).read_bytes()
    for module in ("checkpoint", "llama2c"):
        monkeypatch.setattr(f"shearling.formats.{module}.NUMBERS_AT_ONCE", 100)
    assert written(checkpoint_of(), 2).read_bytes() == whole


def test_weights_are_views_of_the_file(bin_file):
    tensors = read_llama2c(bin_file(file_of(llama(), 1))).tensors
    assert not any(part.flags.owndata or part.flags.writeable for tensor in tensors.values() for part in tensor.parts)


def test_the_demo_s_model_is_one_that_llama2_c_runs(root, tmp_path):
    spec = load(ExperimentSpec, root / "configs/experiments/demo.yaml").value.model
    checkpoint = in_memory(Transformer(spec))
    for version in (0, 2):
        path = tmp_path / f"demo-v{version}.bin"
        write_llama2c(path, checkpoint, version=version, progress=lambda _: None)
        assert read_llama2c(path).spec.d_model == spec.d_model
