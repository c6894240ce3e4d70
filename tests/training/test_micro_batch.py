"""Micro-batches that are measured: chosen once, kept, and without a trace in the weights."""

import pytest
import torch

from shearling.training import micro_batch
from shearling.training.loop import train
from shearling.training.micro_batch import choose_micro_batch
from shearling.training.run_folder import RunFolder, read_json
from shearling.training.state import build_state

CPU = torch.device("cpu")


@pytest.fixture
def timed(monkeypatch):
    """`timed({1: 1.0, 2: 1.5})`: passes of so many sequences take so many seconds."""

    def set_times(seconds):
        monkeypatch.setattr(micro_batch, "_pass", lambda state, config, sequences: seconds[sequences])

    return set_times


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0, 2: 1.5, 4: 2.8, 8: 6.1}, 4),  # from 4 on a sequence takes longer
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 1),  # nothing is gained
        ({1: 1.0, 2: 1.99, 4: 3.9, 8: 3.0}, 8),
        ({1: 9.0}, 1),  # too long to try more
    ],
)
def test_the_fastest_is_taken_and_of_equals_the_smallest(experiment, timed, seconds, expected):
    timed(seconds)
    config = experiment(training={"tokens_per_update": 256, "micro_batch": "auto"}, data={"seq_len": 32})
    assert choose_micro_batch(build_state(config, CPU, False), config) == expected


def test_measuring_leaves_no_trace(experiment):
    config = experiment(training={"micro_batch": "auto"})
    state, untouched = build_state(config, CPU, False), build_state(config, CPU, False)
    assert choose_micro_batch(state, config) >= 1
    for ours, theirs in zip(state.model.parameters(), untouched.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.grad is None
    assert state.optimizer.tensors().keys() == untouched.optimizer.tensors().keys()


def test_a_run_keeps_what_it_measured(experiment, monkeypatch, timed, tmp_path):
    timed({1: 1.0, 2: 1.5, 4: 4.0, 8: 8.0, 16: 16.0})
    measured = experiment(training={"steps": 4, "save_every": 2, "micro_batch": "auto"})
    given = experiment(training={"steps": 4, "save_every": 2, "micro_batch": 2}, output_dir=str(tmp_path / "given"))
    assert train(measured)["weights_sha256"] == train(given)["weights_sha256"]
    state = RunFolder(measured.output_dir).checkpoints / "latest" / "state.json"
    assert read_json(state)["progress"]["micro_batch"] == 2
