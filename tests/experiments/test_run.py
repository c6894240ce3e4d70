"""A run notes the equations of what it trains: once, by the code that trains, however it ends."""

import math

import pytest

from shearling.config import dump
from shearling.errors import Interrupted, UserError
from shearling.experiments import run as module
from shearling.experiments.equations import model_equations
from shearling.experiments.run import run_experiment
from shearling.training.run_folder import RunFolder


def written(config, folder):
    path = folder / "config.yaml"
    path.write_text(dump(config))
    return path


def test_a_finished_run_has_its_equations_in_full(experiment, tmp_path):
    config = experiment(training={"steps": 3}, model={"placement": {"kind": "lns"}})
    run_experiment(written(config, tmp_path), [], resume=False)
    text = RunFolder(config.output_dir).equations.read_text()
    assert text == model_equations(config.model, whole=True) + "\n"
    assert "c = 1, 0.70711" in text


def test_a_run_that_diverged_has_them_too(experiment, tmp_path):
    config = experiment(training={"steps": 9, "max_skipped": 1, "optimizer": {"learning_rate": 1e30}})
    with pytest.raises(UserError, match="not finite"):
        run_experiment(written(config, tmp_path), [], resume=False)
    assert RunFolder(config.output_dir).equations.exists()


def test_a_run_that_was_interrupted_has_them_too(experiment, tmp_path, monkeypatch):
    config = experiment(training={"steps": 3})

    def interrupted(*arguments):
        train(*arguments)
        RunFolder(config.output_dir).results.unlink()
        raise Interrupted(2)

    train = module.train
    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(Interrupted):
        run_experiment(written(config, tmp_path), [], resume=False)
    assert RunFolder(config.output_dir).equations.exists()


@pytest.fixture
def ran(experiment, tmp_path):
    """A run that has ended, and its config's path."""
    config = experiment(training={"steps": 3})
    path = written(config, tmp_path)
    run_experiment(path, [], resume=False)
    return path, RunFolder(config.output_dir)


def test_going_on_keeps_what_the_beginning_noted(ran):
    path, run = ran
    run.equations.write_text("what began it\n")
    run_experiment(path, [], resume=True)
    assert run.equations.read_text() == "what began it\n"


def test_a_run_that_had_ended_before_gets_none_of_today(ran):
    path, run = ran
    run.equations.unlink()
    run_experiment(path, [], resume=True)
    assert not run.equations.exists()


@pytest.mark.parametrize("difference", ["another config", "other code"])
def test_another_run_in_the_folder_gets_none_of_this_one(ran, monkeypatch, difference):
    path, run = ran
    run.equations.unlink()
    run.results.unlink()
    if difference == "other code":
        monkeypatch.setattr(module, "custom_code_hash", lambda spec: "c0de")
        monkeypatch.setattr(module, "train", lambda *_: {})
        run_experiment(path, [], resume=True)
    else:
        with pytest.raises(UserError, match="began with other values"):
            run_experiment(path, ["model.placement.kind=post"], resume=True)
    assert not run.equations.exists()


def test_a_run_that_begins_again_drops_what_was_noted_before(ran):
    path, run = ran
    run.equations.write_text("of an earlier attempt\n")
    run.results.unlink()
    for checkpoint in run.checkpoints.iterdir():
        checkpoint.rename(run.path / f"gone_{checkpoint.name}")
    run_experiment(path, [], resume=False)
    assert "every layer (2)" in run.equations.read_text()


def test_what_is_in_the_way_is_told_and_hides_nothing(experiment, tmp_path, monkeypatch, capsys):
    config = experiment(training={"steps": 3})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomically", full)
    results, _ = run_experiment(written(config, tmp_path), [], resume=False)
    assert math.isfinite(results["loss"])
    assert "equations.txt: not written: [Errno 28] No space left on device" in capsys.readouterr().err
