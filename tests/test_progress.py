"""What is told of how far work is: lines where there is no terminal, a bar where there is one."""

import io
from collections.abc import Callable

import pytest

from shearling import progress
from shearling.progress import Progress, console_progress, console_report


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a clock will show, one for each look at it."""
    times: list[float] = []
    monkeypatch.setattr(progress.time, "monotonic", lambda: times.pop(0))
    return times


def shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> list[str]:
    """What stderr has got when work is done, as a terminal 120 columns wide. The last line shows the cursor again."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    work()
    return screen.getvalue().splitlines()


def test_a_line_has_rate_and_time_left_of_what_came_in_this_process(clock, capsys):
    clock += [0.0, 0.0, 20.0]
    with console_progress("tiny", 10_000_000, 2_000_000) as advance:
        advance(4_000_000)
    assert capsys.readouterr().err == "tiny: 6.0 of 10.0 MB, 0.2 MB/s, 20 s left\n"


def test_lines_come_now_and_then(clock, capsys):
    clock += [0.0, 0.0, 9.0, 10.0, 19.0, 20.0]
    with console_progress("tiny", 10_000_000) as advance:
        for _ in range(4):
            advance(1_000_000)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["2.0", "4.0"]


def test_phases_have_clocks_of_their_own_and_may_count_and_know_no_end(clock, capsys):
    clock += [0.0, 0.0, 50.0, 100.0, 120.0]
    with console_report("documents", decimals=0) as report:
        report(Progress("sampling", 0, 80_000_000))
        report(Progress("sampling", 50_000_000, 80_000_000, items=1_200))
        report(Progress("tokenizing", 1_000_000, None, items=64))
        report(Progress("tokenizing", 40_000_000, None, items=2_400))
    assert capsys.readouterr().err.splitlines() == [
        "sampling: 50 of 80 MB, 1,200 documents, 1.0 MB/s, 30 s left",
        "tokenizing: 40 MB, 2,400 documents, 2.0 MB/s",
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    def work() -> None:
        with console_progress("tiny", 10_000_000, 2_000_000) as advance:
            advance(4_000_000)

    last = shown_on_a_terminal(monkeypatch, work)[-2]
    assert "tiny" in last
    assert "6.0/10.0 MB" in last
    assert "document" not in last


def test_a_terminal_gets_a_bar_for_each_phase_with_its_count(monkeypatch):
    def work() -> None:
        with console_report("documents") as report:
            report(Progress("sampling", 8_000_000, 8_000_000, items=1_200))
            report(Progress("tokenizing", 3_000_000, 8_000_000, items=640))

    sampling, tokenizing, _ = shown_on_a_terminal(monkeypatch, work)[-3:]
    assert "sampling" in sampling
    assert "1,200 documents" in sampling
    assert "tokenizing" in tokenizing
    assert "3.0/8.0 MB" in tokenizing
    assert "640 documents" in tokenizing
