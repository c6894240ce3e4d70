"""What a run shows and records."""

import contextlib
import json
import re

import pytest
from rich.console import Console

from shearling.training import monitor as module
from shearling.training.monitor import Monitor, StepFigures
from shearling.training.run_folder import RunFolder


class Notebook:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.lines.append((step, figures))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def run(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.log.parent.mkdir()
    return run


def figures(step: int, of: int = 10, loss: float = 2.0) -> StepFigures:
    """Step `step` of `of`, at two seconds a step."""
    return StepFigures(
        step=step, tokens=100 * step, loss=loss, learning_rate=1e-3, gradient_norm=1.5, tokens_per_second=50.0,
        mfu=0.25, seconds=2.0 * step, done=step / of,
    )  # fmt: skip


def test_each_step_is_a_line_of_metrics_and_goes_to_every_tracker(run):
    trackers = [Notebook(), Notebook()]
    with Monitor(run, trackers, log_every=1) as monitor:
        for step in (1, 2):
            monitor.step(figures(step))
        monitor.record(2, {"validation_loss": 3.0})
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines[1] == {
        "step": 2, "tokens": 200, "loss": 2.0, "learning_rate": 1e-3, "gradient_norm": 1.5, "tokens_per_second": 50.0,
        "mfu": 0.25, "seconds": 4.0,
    }  # fmt: skip
    assert lines[2] == {"step": 2, "validation_loss": 3.0}
    for tracker in trackers:
        assert [{"step": step, **values} for step, values in tracker.lines] == lines


def test_steps_before_the_first_are_kept_from_trackers(run):
    tracker = Notebook()
    with Monitor(run, [tracker], log_every=1) as monitor:
        for step in (-1, 0):
            monitor.record(step, {"x": 1.0})
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [-1, 0]
    assert tracker.lines == [(0, {"x": 1.0})]


def test_a_line_is_on_its_way_to_disk_before_the_next_step(run):
    with Monitor(run, [], log_every=1) as monitor:
        monitor.step(figures(1))
        assert len(run.read_metrics()) == 1


def test_steps_between_those_to_be_logged_leave_no_line(run):
    with Monitor(run, [], log_every=3) as monitor:
        for step in range(1, 8):
            monitor.step(figures(step))
    assert [line["step"] for line in run.read_metrics()] == [3, 6]


def test_a_resumed_run_appends(run):
    for step in (1, 2):
        with Monitor(run, [], log_every=1) as monitor:
            monitor.step(figures(step))
            monitor.say(f"at {step}")
    assert [line["step"] for line in run.read_metrics()] == [1, 2]
    assert re.findall(r"at \d", run.log.read_text()) == ["at 1", "at 2"]


def test_what_is_said_is_shown_and_logged_with_the_time_as_it_stands(run, capsys):
    text = "loss [bold]1.5[/bold] " + "and more of it " * 20
    with Monitor(run, [], log_every=1) as monitor:
        monitor.say(text)
    assert text in capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d " + re.escape(text) + "\n", run.log.read_text())


def test_nothing_but_figures_asked_for_goes_to_standard_output(run, capsys):
    with Monitor(run, [], log_every=1) as monitor:
        monitor.say("hello")
        monitor.step(figures(1))
    assert capsys.readouterr().out == ""


class TestWithoutATerminal:
    def test_a_line_now_and_then_says_how_far_the_run_is_and_how_long_it_takes(self, run, capsys, monkeypatch):
        monkeypatch.setattr(module, "_PLAIN_SECONDS", 0.0)
        with Monitor(run, [], log_every=1) as monitor:
            for step in range(1, 5):
                monitor.step(figures(step))
        assert capsys.readouterr().err.splitlines()[-1] == (
            "step 4 (40%): loss 2.000, lr 1.0e-03, 50 tok/s, 25% of peak, 0:12 left"  # 6 steps at 2 s
        )

    def test_a_fast_run_is_not_talked_about_at_each_step(self, run, capsys):
        with Monitor(run, [], log_every=1) as monitor:
            for step in range(1, 5):
                monitor.step(figures(step))
        assert "step" not in capsys.readouterr().err


def test_a_terminal_has_a_bar_with_the_smoothed_loss(run, monkeypatch, capsys):
    monkeypatch.setattr(
        module, "Console", lambda **options: Console(**options, force_terminal=True, width=120, color_system=None)
    )
    with Monitor(run, [], log_every=1) as monitor:
        monitor.step(figures(1, loss=4.0))
        monitor.step(figures(2, loss=2.0))
    shown = capsys.readouterr().err
    assert "step 2" in shown
    assert "loss 3.800" in shown  # 0.9 of 4 and 0.1 of 2
    assert "20%" in shown


def test_trackers_and_files_are_closed_when_a_run_fails(run):
    tracker = Notebook()
    with contextlib.suppress(RuntimeError), Monitor(run, [tracker], log_every=1) as monitor:
        raise RuntimeError
    assert tracker.closed
    with pytest.raises(ValueError, match="closed file"):
        monitor.record(2, {})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61, "1:01"), (59.6, "1:00"), (3599, "59:59"), (360_000, "100:00:00")]
)
def test_time_left_reads_as_on_a_clock(seconds, text):
    assert module._clock(seconds) == text
