"""Memory over a long run."""

import pytest

from shearling.bench.process import anonymous_bytes
from shearling.training import loop
from shearling.training.loop import train


@pytest.mark.skipif(anonymous_bytes() is None, reason="only Linux says what memory a process has of its own")
def test_does_not_grow_over_two_thousand_steps(experiment, monkeypatch):
    held: dict[int, int] = {}
    record = loop._record_step

    def weighed(job, state, *figures):
        record(job, state, *figures)
        if state.progress.step in (500, 2000):
            held[state.progress.step] = anonymous_bytes()

    monkeypatch.setattr(loop, "_record_step", weighed)
    train(experiment(training={"steps": 2000, "evaluate_every": 100, "save_every": 250}))
    assert held[2000] - held[500] < 8 << 20  # the allocator's noise; 5 kB a step would be as much
