"""Extending a stable phase: the same run, to the last bit, as if the longer horizon had been known."""

import pytest

from shearling.errors import UserError
from shearling.training import checkpoints
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder, read_json

SHORT = {"steps": 8, "schedule": {"kind": "wsd", "cooldown": 0.5, "warmup_steps": 0}, "evaluate_every": None}
LONG = {**SHORT, "steps": 14}


def final_hash(config) -> str:
    return read_json(RunFolder(config.output_dir).results)["weights_sha256"]


@pytest.fixture
def extended(experiment, tmp_path):
    """A run to step 8, and what makes of it another: `extended(training=…)`."""
    train(experiment(training=SHORT))

    def make(training=LONG, name="longer", **options):
        config = experiment(training=training, output_dir=str(tmp_path / name), **options)
        train(config, extend=experiment(training=SHORT).output_dir)
        return config

    return make


def test_is_the_run_that_knew_its_horizon(experiment, extended, tmp_path):
    at_once = experiment(training=LONG, output_dir=str(tmp_path / "at_once"))
    train(at_once)
    longer = extended()
    assert final_hash(longer) == final_hash(at_once)
    lines = [[line for line in RunFolder(run.output_dir).read_metrics() if "loss" in line] for run in (longer, at_once)]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert str(experiment(training=SHORT).output_dir) == read_json(RunFolder(longer.output_dir).provenance)["extended"]


def test_begins_where_the_cool_down_began(experiment, extended):
    run = RunFolder(experiment(training=SHORT).output_dir)
    assert checkpoints.saved_steps(run.checkpoints) == [5, 6, 8]  # at half the horizon the rate is whole
    extended()
    assert read_json(checkpoints.step_folder(run.checkpoints, 8) / "state.json")["progress"]["cooling_since"] == 5


def test_keeps_the_last_stable_checkpoint(experiment):
    config = experiment(training={**SHORT, "save_every": 1, "evaluate_every": 1, "keep_last": 1})
    train(config)
    assert 5 in checkpoints.saved_steps(RunFolder(config.output_dir).checkpoints)


def test_extends_an_extension(experiment, extended, tmp_path):
    longer = extended()
    longest = experiment(training={**SHORT, "steps": 20}, output_dir=str(tmp_path / "longest"))
    train(longest, extend=longer.output_dir)
    at_once = experiment(training={**SHORT, "steps": 20}, output_dir=str(tmp_path / "at_once"))
    train(at_once)
    assert final_hash(longest) == final_hash(at_once)


def test_goes_on_after_it_was_interrupted(experiment, extended, tmp_path):
    longer = extended()
    again = experiment(training={**LONG, "save_every": 2}, output_dir=str(tmp_path / "again"))
    train(again, extend=experiment(training=SHORT).output_dir)
    run = RunFolder(again.output_dir)
    checkpoints.shutil.rmtree(checkpoints.step_folder(run.checkpoints, 14))
    run.results.unlink()
    train(again, resume=True, extend=experiment(training=SHORT).output_dir)
    assert final_hash(again) == final_hash(longer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training": {**LONG, "optimizer": {"learning_rate": 0.5}}}, "training.optimizer.learning_rate"),
        ({"seed": 1}, "seed"),
        ({"training": {**SHORT, "steps": 7}}, "longer horizon"),
        ({"training": {**LONG, "schedule": {**LONG["schedule"], "cooldown": 1.0}}}, "longer horizon"),
        ({"training": {**LONG, "optimizer": {"weight_decay_end": 0.0}}}, "weight_decay_end"),
    ],
)
def test_refuses_what_the_stable_phase_would_not_have_been(extended, options, message):
    with pytest.raises(UserError, match=message):
        extended(**options)


def test_refuses_a_run_without_a_stable_phase(experiment, tmp_path):
    config = experiment()
    train(config)
    with pytest.raises(UserError, match="has no stable phase"):
        train(experiment(output_dir=str(tmp_path / "longer")), extend=config.output_dir)


def test_refuses_what_is_no_run(experiment, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        train(experiment(training=LONG), extend=tmp_path)
