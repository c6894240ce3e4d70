"""Profiles: of the steps that are asked for, on disk, and without any trace in the run's result."""

import json

from shearling.training.loop import train
from shearling.training.run_folder import RunFolder


def test_a_profile_has_the_steps_that_were_asked_for_and_changes_no_weight(experiment, tmp_path):
    plain, profiled = (
        experiment(training={"profile": steps}, output_dir=str(tmp_path / str(steps))) for steps in (None, 3)
    )
    assert train(plain)["weights_sha256"] == train(profiled)["weights_sha256"]
    assert not RunFolder(plain.output_dir).profile.exists()
    folder = RunFolder(profiled.output_dir).profile
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"] == "Optimizer.step#AdamW.step" for event in events) == 3
    assert "aten::mm" in (folder / "table.txt").read_text()
    assert f"profile: {folder}" in RunFolder(profiled.output_dir).log.read_text()


def test_a_profile_that_a_run_cannot_fill_has_what_there_was(experiment):
    config = experiment(training={"profile": 100})
    assert train(config)["outcome"] == "finished"
    events = json.loads((RunFolder(config.output_dir).profile / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"] == "Optimizer.step#AdamW.step" for event in events) == 12 - 2
