"""Run folders as models: what training leaves is what the trained network computes, and what is written reads back."""

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from oracles import in_memory
from safetensors import safe_open

from shearling.data.tokenizers import load_tokenizer
from shearling.engine.reference import ReferenceEngine
from shearling.errors import UserError
from shearling.formats import Checkpoint, open_checkpoint
from shearling.formats.checkpoint import rotary_order
from shearling.formats.run_folder import read_run_folder, write_run_folder
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer
from shearling.quantization import QUANTIZED, parse_codec
from shearling.training.checkpoints import load_checkpoint, load_latest, saved_steps, step_folder
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder
from shearling.training.state import load_weights

TOKENS = list(range(5, 25))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_experiment):
    """A run of twelve steps with checkpoints of steps 10 and 12; tests that alter it take a copy."""
    config = make_experiment(tmp_path_factory.mktemp("trained"))
    train(config)
    return config


@pytest.fixture
def run(trained, tmp_path) -> RunFolder:
    return RunFolder(shutil.copytree(trained.output_dir, tmp_path / "copy", symlinks=True))


def network(config, step: int) -> Transformer:
    """The model as the training loop would evaluate it at a step."""
    model = Transformer(config.model).eval()
    run = RunFolder(config.output_dir)
    load_weights(model, load_checkpoint(step_folder(run.checkpoints, step)).weights)
    model.step = step
    return model


def torch_logits(model: Transformer) -> np.ndarray:
    with torch.no_grad():
        return model.logits(model(torch.tensor([TOKENS])))[0].numpy()


def logits(checkpoint: Checkpoint) -> np.ndarray:
    return ReferenceEngine(checkpoint).session().feed_for_all_logits(TOKENS)


def drawn(**options) -> Checkpoint:
    """A model of random numbers, as a reader of another format would give it."""
    shape = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "intermediate_size": 128, "vocab_size": 60}
    spec = ModelSpec.model_validate(shape | {"max_seq_len": 32, "init_std": 0.3} | options)
    return in_memory(Transformer(spec), "made/of numbers", stop_ids=(2, 7), chat_template="{{ messages }}")


def written(folder: Path, checkpoint: Checkpoint, codec=None) -> Checkpoint:
    counted: list[int] = []
    write_run_folder(folder, checkpoint, codec=codec, progress=counted.append)
    weights = folder / "model" / "latest" / "model.safetensors"
    assert sum(counted) == weights.stat().st_size
    return read_run_folder(folder)


class TestReading:
    def test_gives_the_trained_network(self, trained):
        np.testing.assert_allclose(
            logits(open_checkpoint(trained.output_dir)), torch_logits(network(trained, 12)), atol=1e-4
        )

    def test_gives_the_run_s_tokenizer_whose_bos_ends_a_text(self, trained):
        checkpoint = read_run_folder(trained.output_dir)
        theirs = load_tokenizer(trained.output_dir / "tokenizer")
        assert checkpoint.tokenizer.sha256 == theirs.sha256
        assert checkpoint.stop_ids == (theirs.bos_id,)

    def test_needs_nothing_of_the_optimizer(self, run, trained):
        for folder in run.checkpoints.glob("step_*"):
            (folder / "optimizer.safetensors").unlink()
        np.testing.assert_array_equal(logits(read_run_folder(run.path)), logits(read_run_folder(trained.output_dir)))

    @pytest.mark.parametrize("name", ["model.safetensors", "state.json", "checksums.json"])
    @pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:], lambda b: b""])
    def test_passes_over_a_damaged_checkpoint_with_a_warning(self, run, trained, name, damage):
        file = step_folder(run.checkpoints, 12) / name
        file.write_bytes(damage(file.read_bytes()))
        warnings: list[str] = []
        checkpoint = read_run_folder(run.path, warn=warnings.append)
        np.testing.assert_allclose(logits(checkpoint), torch_logits(network(trained, 10)), atol=1e-4)
        assert "step_00000012: damaged checkpoint" in warnings[0]

    def test_refuses_a_run_of_which_no_checkpoint_is_whole(self, run):
        for file in run.checkpoints.glob("step_*/model.safetensors"):
            file.write_bytes(b"")
        with pytest.raises(UserError, match="no whole checkpoint is left"):
            read_run_folder(run.path, warn=lambda _: None)

    def test_refuses_a_run_without_a_checkpoint(self, run):
        shutil.rmtree(run.checkpoints)
        with pytest.raises(UserError, match="no whole checkpoint: train the run first"):
            read_run_folder(run.path)

    def test_refuses_another_tokenizer(self, run, assets):
        shutil.copy(assets / "tokenizers" / "llama2" / "tokenizer.model", run.tokenizer / "tokenizer.model")
        with pytest.raises(UserError, match="not the tokenizer that the model was trained with: put that one back"):
            read_run_folder(run.path)

    @pytest.mark.parametrize(("own", "mend"), [("is there", "leave -z out"), ("is gone", "give that one")])
    def test_refuses_another_tokenizer_that_is_given_with_what_to_do_about_it(self, run, assets, own, mend):
        if own == "is gone":
            shutil.rmtree(run.tokenizer)
        given = assets / "tokenizers" / "llama2" / "tokenizer.model"
        with pytest.raises(UserError, match=rf"tokenizer\.model: not the tokenizer that .* trained with: {mend}$"):
            open_checkpoint(run.path, given)

    def test_refuses_a_tokenizer_that_is_named_and_not_there(self, tmp_path):
        written(tmp_path / "run", drawn())  # which has none of its own
        with pytest.raises(UserError, match="nowhere: no such tokenizer file"):
            open_checkpoint(tmp_path / "run", tmp_path / "nowhere")

    def test_refuses_weights_that_are_not_the_config_s(self, run):
        text = run.config.read_text()
        assert "intermediate_size: 64" in text
        run.config.write_text(text.replace("intermediate_size: 64", "intermediate_size: 96"))
        with pytest.raises(UserError, match=r"not this model's: layers\.0\.feedforward.* differ"):
            read_run_folder(run.path)

    @pytest.mark.parametrize(
        ("edit", "words"),
        [
            (lambda text: text.replace("n_layers: 2", "n_layers: -2"), r"model\.n_layers"),
            (lambda text: text.replace("n_layers: 2", "n_layers: two"), r"model\.n_layers"),
            (lambda text: "model: [1, 2]\n", "model"),
            (lambda text: "a: &x [1]\nb: *x\n", "anchors"),
            (lambda text: "{", "not YAML"),
        ],
    )
    def test_refuses_a_damaged_config_by_file_and_key(self, run, edit, words):
        run.config.write_text(edit(run.config.read_text()))
        with pytest.raises(UserError, match=rf"experiment_config\.yaml.*{words}"):
            read_run_folder(run.path)

    def test_imports_no_torch(self, trained):
        code = "import sys\nfrom pathlib import Path\nfrom shearling.formats import open_checkpoint\n"
        code += f"open_checkpoint(Path({str(trained.output_dir)!r})).tensors['embed.weight'].read()\n"
        code += "sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


class TestWhatTrainingAloneKnows:
    def test_scaled_gains_are_plain_pre_norm(self, experiment):
        config = experiment(model={"placement": {"kind": "lns_gain"}}, training={"steps": 3})
        train(config)
        checkpoint = read_run_folder(config.output_dir)
        assert checkpoint.spec.placement.kind == "pre"
        np.testing.assert_allclose(logits(checkpoint), torch_logits(network(config, 3)), atol=1e-4)

    @pytest.mark.parametrize("kind", ["pre", "lns_gain"])
    def test_a_residual_warm_up_is_in_the_weights_at_each_step(self, experiment, kind):
        """Of two blocks the first is whole after 5 steps, the second after 10."""
        config = growing(experiment, kind)
        train(config)
        for step in (12, 6, 2):
            checkpoint = read_run_folder(config.output_dir)
            assert checkpoint.notes["step"] == step
            assert checkpoint.spec.placement.residual_warmup is None
            np.testing.assert_allclose(logits(checkpoint), torch_logits(network(config, step)), atol=1e-4)
            forget_from(config, step)
            forget_from(config, {12: 8, 6: 4}.get(step, step))

    def test_a_residual_warm_up_that_no_weights_can_hold_is_not_written(self, experiment, tmp_path):
        config = growing(experiment, "sandwich")
        train(config)
        assert read_run_folder(config.output_dir).spec.placement.residual_warmup is None
        forget_from(config, 10)
        with pytest.raises(UserError, match="residual_warmup has not ended"):
            write_run_folder(tmp_path / "out", read_run_folder(config.output_dir), progress=lambda _: None)
        assert not (tmp_path / "out").exists()


def growing(experiment, kind: str):
    """An experiment that keeps all its checkpoints, of every second step."""
    return experiment(
        model={"placement": {"kind": kind, "residual_warmup": 5}, "feedforward_bias": True},
        training={"steps": 12, "save_every": 2, "keep_last": 9},
    )


def forget_from(config, step: int) -> None:
    """Remove the checkpoints of a step and of those after it."""
    root = RunFolder(config.output_dir).checkpoints
    for saved in saved_steps(root):
        if saved >= step:
            shutil.rmtree(step_folder(root, saved))


class TestWriting:
    def test_gives_back_the_model_to_the_last_bit(self, tmp_path):
        before = drawn()
        after = written(tmp_path / "run", before)
        assert after.spec == before.spec
        assert after.tensors.keys() == before.tensors.keys()
        for name, tensor in before.tensors.items():
            np.testing.assert_array_equal(after.tensors[name].read(), tensor.read())

    def test_keeps_what_ends_a_text_and_the_chat_template(self, tmp_path):
        after = written(tmp_path / "run", drawn())
        assert (after.stop_ids, after.chat_template) == ((2, 7), "{{ messages }}")

    def test_keeps_the_tokenizer(self, tmp_path, assets):
        tokenizer = load_tokenizer(assets / "tokenizers" / "tok512" / "tok512.bin")
        before = replace(drawn(vocab_size=512), load_tokenizer=lambda: tokenizer)
        after = written(tmp_path / "run", before)
        assert after.tokenizer.encode("Lily saw Zoë") == tokenizer.encode("Lily saw Zoë")

    def test_puts_adjacent_rotary_rows_into_our_order(self, tmp_path):
        before = drawn()
        turned = {
            name: tensor.reordered(rotary_order(64, 4, "adjacent")) if "q_proj" in name
            else tensor.reordered(rotary_order(32, 2, "adjacent")) if "k_proj" in name else tensor
            for name, tensor in before.tensors.items()
        }  # fmt: skip
        after = written(tmp_path / "run", Checkpoint(before.spec, turned, "adjacent", "made"))
        for name, tensor in before.tensors.items():
            np.testing.assert_array_equal(after.tensors[name].read(), tensor.read())

    @pytest.mark.parametrize("name", ["f16", "bf16"])
    def test_in_half_precision_is_read_by_the_safetensors_library(self, tmp_path, name):
        before = drawn()
        written(tmp_path / "run", before, parse_codec(name))
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[name]
        with safe_open(tmp_path / "run" / "model" / "latest" / "model.safetensors", framework="pt") as file:
            assert set(file.keys()) == before.tensors.keys()
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                expected = torch.from_numpy(before.tensors[key].read())
                expected = expected if expected.ndim == 1 else expected.to(dtype)
                assert torch.equal(file.get_tensor(key), expected)

    @pytest.mark.parametrize("name", QUANTIZED)
    def test_quantized_gives_back_what_the_codec_does(self, tmp_path, name):
        before, codec = drawn(), parse_codec(name)
        after = written(tmp_path / "run", before, codec)
        for key, tensor in before.tensors.items():
            stored, numbers = after.tensors[key], tensor.read()
            if numbers.ndim == 2:
                assert (stored.codec.name, stored.codec.group) == (codec.name, codec.group)
                numbers = codec.decode(codec.encode(numbers))
            np.testing.assert_array_equal(stored.read(), numbers)
        weights = tmp_path / "run" / "model" / "latest" / "model.safetensors"
        assert weights.stat().st_size < 0.5 * sum(tensor.nbytes for tensor in before.tensors.values())

    def test_quantized_again_without_a_codec_copies_the_parts(self, tmp_path):
        once = written(tmp_path / "once", drawn(), parse_codec("int4", 32))
        twice = written(tmp_path / "twice", once)
        for name, tensor in once.tensors.items():
            for mine, theirs in zip(tensor.parts, twice.tensors[name].parts, strict=True):
                np.testing.assert_array_equal(mine, theirs)

    def test_leaves_matrices_that_are_no_whole_groups_in_f16_and_says_so(self, tmp_path):
        before = drawn(intermediate_size=100)
        notes = write_run_folder(tmp_path / "run", before, codec=parse_codec("q8_0"), progress=lambda _: None)
        assert notes == [
            "2 matrices are f16, since their rows are no whole groups: layers.0.feedforward.branch.down_proj.weight …"
        ]
        kinds = {name: tensor.codec.name for name, tensor in read_run_folder(tmp_path / "run").tensors.items()}
        assert kinds["layers.1.feedforward.branch.down_proj.weight"] == "f16"
        assert kinds["layers.1.feedforward.branch.up_proj.weight"] == "q8_0"

    def test_leaves_a_folder_whose_config_the_config_reader_takes(self, tmp_path):
        written(tmp_path / "run", drawn())
        config = yaml.safe_load((tmp_path / "run" / "experiment_config.yaml").read_text())
        assert config.keys() == {"name", "model"}
        assert config["name"] == "of-numbers"
        assert config["model"]["norm"] == {"kind": "rmsnorm", "eps": 1e-6}

    def test_says_where_the_model_came_from(self, tmp_path):
        written(tmp_path / "run", drawn())
        assert json.loads((tmp_path / "run" / "provenance.json").read_text())["converted_from"].endswith(
            "made/of numbers"
        )

    def test_of_a_model_beyond_llama_keeps_all_of_it(self, tmp_path):
        before = drawn(arch="gpt2", placement={"kind": "sandwich"}, position={"kind": "learned"}, activation="gelu",
                       norm={"kind": "layernorm"})  # fmt: skip
        after = written(tmp_path / "run", before)
        assert after.spec == before.spec
        assert {name: tensor.shape for name, tensor in after.tensors.items()} == {
            name: tensor.shape for name, tensor in before.tensors.items()
        }


class TestDamagedParts:
    @pytest.fixture
    def weights(self, tmp_path) -> Path:
        written(tmp_path / "run", drawn(), parse_codec("int4"))
        return (tmp_path / "run" / "model" / "latest" / "model.safetensors").resolve()

    def altered(self, weights: Path, edit) -> Path:
        """The folder with its header edited, and its checksum that of the edited file."""
        content = weights.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        table = json.loads(header["__metadata__"]["shearling.codecs"])
        header["__metadata__"]["shearling.codecs"] = json.dumps(edit(table))
        text = json.dumps(header).encode()
        weights.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
        return self.signed(weights)

    def signed(self, weights: Path) -> Path:
        from shearling.files import sha256_file

        sums = weights.with_name("checksums.json")
        sums.write_text(json.dumps(json.loads(sums.read_text()) | {"model.safetensors": sha256_file(weights)}))
        return weights.parents[2]

    @pytest.mark.parametrize(
        "change",
        [
            lambda entry: ["nf5", *entry[1:]],
            lambda entry: ["q8_0", 32, entry[2]],
            lambda entry: [entry[0], 32, entry[2]],
            lambda entry: [entry[0], 0, entry[2]],
            lambda entry: [*entry[:2], [64, 65]],
            lambda entry: [*entry[:2], [64]],
            lambda entry: [*entry[:2], [-64, 64]],
            lambda entry: [*entry[:2], [1 << 60, 64]],
            lambda entry: entry[:2],
            lambda entry: "int4",
            lambda entry: None,
        ],
    )
    def test_in_the_table_of_codecs_are_refused(self, weights, change):
        name = "layers.0.attention.branch.q_proj.weight"
        folder = self.altered(weights, lambda table: table | {name: change(table[name])})
        with pytest.raises(UserError):
            read_run_folder(folder)

    def test_a_scale_that_is_not_finite_is_refused(self, weights):
        content = bytearray(weights.read_bytes())
        length = struct.unpack("<Q", content[:8])[0]
        start = json.loads(content[8 : 8 + length])["embed.weight.part1"]["data_offsets"][0]
        content[8 + length + start : 8 + length + start + 2] = np.float16(np.nan).tobytes()
        weights.write_bytes(content)
        with pytest.raises(UserError, match=r"embed\.weight: a scale of its int4 weights is NaN"):
            read_run_folder(self.signed(weights))


def test_training_s_own_checkpoints_still_load(trained):
    """The reader above does without training's; both see the same step."""
    run = RunFolder(trained.output_dir)
    latest = load_latest(run.checkpoints, warn=lambda _: None)
    assert latest is not None
    ours = read_run_folder(run.path)
    for name, tensor in latest.weights.items():
        np.testing.assert_array_equal(ours.tensors[name].read(), tensor.numpy())
