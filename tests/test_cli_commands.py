"""The commands from text to a trained model that writes, as a user runs them, and what they refuse."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shearling.cli import main
from shearling.config import dump
from shearling.training.checkpoints import saved_steps
from shearling.training.resolve import resolve
from shearling.training.run_folder import RunFolder

LARGEST = {"parameters": 10**6, "tokens": 20_000}
"""What a fuzzed experiment may cost."""


def run(*arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of a command, in this process: a traceback would end the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def refusal(*arguments: str, lines: int = 2) -> str:
    """The errors of a command that must fail through the user's mistake."""
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    errors = err.splitlines()
    assert 0 < len(errors) <= lines
    assert all(line.startswith("error: ") for line in errors)
    return err


@pytest.fixture
def config(experiment, tmp_path) -> Path:
    """A file with a tiny experiment of four steps; its run goes to `run` beside it."""
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(experiment(training={"steps": 4, "evaluate_every": 2})))
    return path


def test_text_becomes_a_model_that_writes_and_trains_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stories.txt").write_text("\n<|endoftext|>\n".join(f"Lily had {i} cats. Tom had {i % 7}." for i in range(300)))
    status, out, err = run("prepare", "stories.txt", "--out", "shards", "--vocab-size", "290", "--json")
    assert status == 0, err
    assert json.loads(out) == json.loads(Path("shards/manifest.json").read_text())

    Path("tiny.yaml").write_text(
        "name: tiny\noutput_dir: run\n"
        "model: {d_model: 16, n_layers: 1, n_heads: 2, intermediate_size: 32, vocab_size: 290, max_seq_len: 16}\n"
        "data: {path: shards, seq_len: 16, validation_tokens: 100}\n"
        "training: {steps: 6, tokens_per_update: 64, evaluate_every: 3, save_every: 2, schedule: {warmup_steps: 1}}\n"
    )
    status, out, _ = run("train", "tiny.yaml")
    assert status == 0
    assert "validation loss (nats/token)" in out
    assert out.splitlines()[-1] == "loss curve: run/loss_curve.png"
    assert Path("run/loss_curve.png").read_bytes().startswith(b"\x89PNG")

    status, out, err = run("generate", "run", "-i", "Lily had", "-n", "12", "-t", "0")
    assert (status, out[:8]) == (0, "Lily had")
    assert re.fullmatch(r"achieved tok/s: \d+\.\d\d", err.splitlines()[-1])
    assert run("generate", "run", "-i", "Lily had", "-n", "12", "-t", "0")[1] == out

    shutil.rmtree("run/model/step_00000006")
    status, out, err = run("train", "tiny.yaml", "--resume", "--json")
    assert status == 0
    assert "resumed at step 4" in err
    assert json.loads(out) == json.loads(Path("run/results.json").read_text())
    assert json.loads(out)["step"] == 6


class TestTrain:
    def test_takes_overrides_in_all_their_forms(self, config, tmp_path):
        where = tmp_path / "elsewhere"
        status, out, _ = run(
            "train", str(config), f"output_dir={where}", "training.steps=3", "--n_layers", "1", "seed=7", "--json"
        )
        assert status == 0
        assert json.loads(out)["step"] == 3
        kept = yaml.safe_load(RunFolder(where).config.read_text())
        assert (kept["training"]["steps"], kept["model"]["n_layers"], kept["seed"]) == (3, 1, 7)
        assert not (tmp_path / "run").exists()

    def test_prints_nothing_but_json_even_when_it_warns(self, config, tmp_path):
        assert run("train", str(config), "save_every=1")[0] == 0
        (tmp_path / "run/model/step_00000004/state.json").write_text("{}")
        status, out, err = run("train", str(config), "save_every=1", "--resume", "--json")
        assert status == 0
        assert json.loads(out)["step"] == 4
        assert "warning: " in err
        assert "step_00000004: damaged checkpoint" in err

    def test_goes_on_with_other_trackers_and_folders_of_the_same_run(self, config, tmp_path):
        assert run("train", str(config))[0] == 0
        (tmp_path / "run").rename(tmp_path / "moved")
        assert run("train", str(config), f"output_dir={tmp_path / 'moved'}", "log_every=2", "--resume")[0] == 0


class TestTrainRefuses:
    def test_a_config_that_is_not_there(self, tmp_path):
        assert "nowhere.yaml" in refusal("train", str(tmp_path / "nowhere.yaml"))

    def test_a_folder_for_a_config(self, tmp_path):
        assert str(tmp_path) in refusal("train", str(tmp_path))

    def test_a_model_s_file_naming_what_an_experiment_needs_besides(self, root):
        errors = refusal("train", str(root / "configs/models/llama-15m.yaml"), lines=4)
        for key in ("name", "output_dir", "data.path", "training"):
            assert f"llama-15m.yaml: {key}: " in errors

    @pytest.mark.parametrize("made", [False, True])
    def test_data_that_are_not_prepared_naming_the_command(self, config, tmp_path, made):
        if made:
            (tmp_path / "data").mkdir()
        error = refusal("train", str(config), f"data.path={tmp_path / 'data'}")
        assert f"{tmp_path / 'data'}: no prepared data here; make it with `shearling prepare" in error

    def test_data_whose_shards_were_altered(self, config, corpus, tmp_path):
        data = shutil.copytree(corpus, tmp_path / "data")
        shard = next(data.glob("train_*.bin"))
        shard.write_bytes(shard.read_bytes()[:-2] + b"\x01\x00")
        assert shard.name in refusal("train", str(config), f"data.path={data}")

    @pytest.mark.parametrize(
        ("override", "named"),
        [
            ("n_heads=3", "n_heads"),
            ("steps=0", "training.steps"),
            ("learning_rate=-1", "learning_rate"),
            ("learning_rate=nan", "learning_rate"),
            ("tokens=100", "raise training.tokens"),
            ("seq_len=31", "seq_len"),
            ("vocab_size=200", "model.vocab_size"),
            ("warmup_steps=4", "training.schedule.warmup_steps"),
            ("trackers=[nobody]", "trackers"),
            ("precision=fp8", "precision"),
            ("stepz=3", "stepz"),
            ("device=cuda", "training.device"),
        ],
    )
    def test_a_wrong_value_naming_its_key(self, config, tmp_path, monkeypatch, override, named):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert named in refusal("train", str(config), override)
        assert not (tmp_path / "run" / "experiment_config.yaml").exists()

    def test_an_output_dir_that_holds_a_run_naming_both_ways_out(self, config, tmp_path):
        assert run("train", str(config))[0] == 0
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
        error = refusal("train", str(config))
        assert str(tmp_path / "run") in error
        assert "--resume" in error
        assert "output_dir" in error
        del before[tmp_path / "run" / ".lock"]
        assert all(path.stat().st_mtime_ns == modified for path, modified in before.items())

    def test_to_resume_another_config(self, config):
        assert run("train", str(config))[0] == 0
        assert "training.optimizer.learning_rate" in refusal("train", str(config), "--resume", "learning_rate=5e-4")

    @pytest.mark.parametrize("place", ["tiny.yaml", "tiny.yaml/run"])
    def test_an_output_dir_that_cannot_be_a_folder(self, config, tmp_path, place):
        assert f"{tmp_path / place}: cannot be written" in refusal(
            "train", str(config), f"output_dir={tmp_path / place}"
        )


class TestGenerateRefuses:
    @pytest.mark.parametrize("made", [False, True])
    def test_a_folder_without_a_model(self, tmp_path, made):
        folder = tmp_path / "folder"
        if made:
            folder.mkdir()
        reason = "no model that is read here; looked for experiment_config.yaml" if made else "no such file or folder"
        assert f"{folder}: {reason}" in refusal("generate", str(folder))

    @pytest.mark.parametrize(
        "option",
        [("-n", "-1"), ("-n", "x"), ("-t", "-0.5"), ("-t", "nan"), ("-p", "1.5"), ("-s", "-1"), ("-s", str(2**64))],
    )
    def test_options_out_of_range_naming_them(self, tmp_path, option):
        status, out, err = run("generate", str(tmp_path), *option)
        assert (status, out) == (2, "")
        assert f"'{option[0]}'" in err
        assert "Traceback" not in err

    def test_a_prompt_without_room(self, config, tmp_path):
        assert run("train", str(config))[0] == 0
        assert "the model's context takes 1 to 32" in refusal("generate", str(tmp_path / "run"), "-i", "Lily " * 50)


class TestPrepareRefuses:
    def test_a_source_that_is_not_there(self, tmp_path):
        error = refusal("prepare", str(tmp_path / "gone.txt"), "--out", str(tmp_path / "shards"))
        assert str(tmp_path / "gone.txt") in error
        assert not (tmp_path / "shards" / "manifest.json").exists()

    def test_to_go_without_a_folder_to_write_to(self, tmp_path):
        status, _, err = run("prepare", str(tmp_path))
        assert status == 2
        assert "--out" in err

    @pytest.mark.parametrize("option", [("--vocab-size", "3"), ("--validation-share", "1.5"), ("--workers", "0")])
    def test_options_out_of_range(self, tmp_path, option):
        (tmp_path / "a.txt").write_text("Some text.\n" * 50)
        status, _, err = run("prepare", str(tmp_path / "a.txt"), "--out", str(tmp_path / "shards"), *option)
        assert status == 2
        assert "Traceback" not in err

    def test_a_tokenizer_that_is_none(self, tmp_path):
        text = tmp_path / "a.txt"
        text.write_text("Some text.\n" * 50)
        assert "a.txt" in refusal("prepare", str(text), "--out", str(tmp_path / "shards"), "--tokenizer", str(text))


VALUES: dict[str, list[object]] = {
    "seed": [0, 2**63 - 1],
    "model.d_model": [6, 8, 96],
    "model.n_layers": [1, 5],
    "model.n_heads": [1, 4, 16],
    "model.n_kv_heads": [None, 1, 2],
    "model.intermediate_size": [1, 7],
    "model.vocab_size": [299, 300, 301, 4096],
    "model.max_seq_len": [33, 10**12],
    "model.activation": ["gelu"],
    "model.norm": [
        {"kind": "rmsnorm", "eps": 1e-300},
        {"kind": "layernorm", "eps": 1e30},
        {"kind": "layernorm", "bias": False},
    ],
    "model.position.theta": [1e-300, 1.0, 1e300],
    "model.attention_bias": [True],
    "model.feedforward_bias": [True],
    "model.tie_embeddings": [False],
    "model.dropout": [0.5, 1 - 1e-16],
    "model.attention_dropout": [0.5, 1 - 1e-16],
    "model.init_std": [1e-300, 1e3, 1e30, 1e300],
    "data.seq_len": [1, 2, 16, 31],
    "data.mask_documents": [True],
    "data.validation_tokens": [1, 2, 2**62],
    "training.steps": [None, 1, 2],
    "training.tokens": [1.0, 300.0],
    "training.flops": [1.0, 1e8],
    "training.minutes": [1e-300, 1e-3],
    "training.tokens_per_update": [32, 64, 100],
    "training.micro_batch": [1, 3, 2**62],
    "training.precision": ["bf16", "fp32"],
    "training.clip": [None, 1e-300, 1e300],
    "training.optimizer.learning_rate": [1e-300, 1e10, 1e300],
    "training.optimizer.betas": [[0, 0], [0.999999, 1 - 1e-16]],
    "training.optimizer.eps": [1e-300, 1e300],
    "training.optimizer.weight_decay": [0, 1e300],
    "training.schedule.warmup_steps": [0, 1, 100],
    "training.schedule.min_ratio": [0, 1],
    "training.checkpoint_activations": [True],
    "training.evaluate_every": [None, 1, 2**62],
    "training.save_every": [None, 1, 2**62],
    "training.keep_last": [1, 2**62],
    "training.log_every": [2, 2**62],
    "training.max_skipped": [1, 2**62],
}
"""Values at the ends of each option's range, and some beyond what the rest of the config allows."""


def mutated(text: str, changes: dict[str, object]) -> str:
    data = yaml.safe_load(text)
    for key, value in changes.items():
        *holders, leaf = key.split(".")
        place = data
        for holder in holders:
            place = place[holder]
        place[leaf] = value
        if leaf in ("tokens", "flops", "minutes"):
            place["steps"] = None
    return yaml.safe_dump(data)


def is_small(path: Path) -> bool:
    """Whether a config that can be shown costs no more than a test may; one that cannot is refused at once."""
    from shearling.config import load
    from shearling.errors import UserError
    from shearling.training.spec import ExperimentSpec

    try:
        spec = load(ExperimentSpec, path).value
        resolved = resolve(spec)
    except UserError:
        return True
    tokens = resolved.total_tokens or spec.training.tokens_per_update
    return resolved.parameters.total <= LARGEST["parameters"] and tokens <= LARGEST["tokens"]


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_experiment_trains_and_writes_or_is_refused_with_a_clear_error(
    data, make_experiment, tmp_path_factory, monkeypatch
):
    monkeypatch.setattr("shearling.training.loop.measure_peak", lambda *_: 1e9)  # most of a tiny run's time
    folder = tmp_path_factory.mktemp("fuzz")
    training = {"steps": 2, "schedule": {"warmup_steps": 0}}
    text = dump(make_experiment(folder, training=training, data={"validation_tokens": 200}))
    keys = data.draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4, unique=True))
    (folder / "config.yaml").write_text(mutated(text, {key: data.draw(st.sampled_from(VALUES[key])) for key in keys}))
    if not is_small(folder / "config.yaml"):
        return
    for command in (["train", str(folder / "config.yaml")], ["generate", str(folder / "run"), "-n", "2"]):
        status, out, err = run(*command)
        if status:
            assert status == 2
            assert out == "" or command[0] == "generate"  # which finds on the way that a model has diverged
            assert err.splitlines()[-1].startswith("error: ")
            return
    assert saved_steps(folder / "run" / "model")
