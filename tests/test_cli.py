"""The command line as a user meets it."""

import json
import os
import subprocess
import sys
import time

import pytest

from shearling.cli import main
from shearling.errors import UserError

PRELN = "configs/experiments/preln.yaml"


@pytest.fixture(autouse=True)
def _in_the_repository(root, monkeypatch):
    monkeypatch.chdir(root)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "shearling", *arguments], capture_output=True, text=True, timeout=60)


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return caught.value.code or 0


def seconds(*arguments: str) -> float:
    """The least of five: what the program takes, not what the machine was busy with."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert run(*arguments).returncode == 0
        times.append(time.perf_counter() - start)
    return min(times)


def test_help_answers_in_under_three_tenths_of_a_second():
    assert seconds("--help") < 0.3


def test_show_answers_in_seconds():
    assert seconds("show", PRELN) < 8  # two or three on a quiet machine: the equations need PyTorch


def test_every_command_is_in_the_help(capsys):
    assert status("--help") == 0
    out = capsys.readouterr().out
    listed = {line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()}
    assert listed == {
        "show", "schema", "prepare", "train", "compare", "report", "convert", "download", "generate", "chat", "bench",
    }  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [["show"], ["schema"], ["prepare"], ["train"], ["compare"], ["report"], ["convert"], ["download"], ["generate"],
     ["chat"], ["bench", "train"]],
    ids=" ".join,
)  # fmt: skip
def test_every_command_has_a_help_that_says_what_it_does(command, capsys):
    assert status(*command, "--help") == 0
    usage, _, rest = capsys.readouterr().out.strip().partition("\n")
    assert f" {' '.join(command)} [OPTIONS]" in usage
    assert rest.partition("Options:")[0].strip()


def test_show_takes_overrides_after_the_config(capsys):
    assert status("show", PRELN, "--learning_rate", "2e-4", "training.minutes=3", "--json", "n_layers=2") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"]["training.optimizer.learning_rate"] == 2e-4
    assert shown["config"]["training.steps"] is None
    assert shown["config"]["model.n_layers"] == 2
    assert shown["origins"]["model.n_layers"] == "command line"


def test_a_user_s_mistakes_end_with_status_two_and_a_line_each(capsys):
    assert status("show", PRELN, "learnin_rate=1", "n_layers=many") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "error: command line: learnin_rate: unknown key: did you mean training.optimizer.learning_rate?",
        'error: command line: model.n_layers: should be a valid integer, not "many"',
    ]


def test_a_defect_keeps_its_traceback(monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("shearling.experiments.summary.summarize", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["show", PRELN])


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (UserError("mend it"), 2)])
def test_what_ends_a_command_sets_the_status(monkeypatch, raised, code):
    def ended(*_):
        raise raised

    monkeypatch.setattr("shearling.experiments.summary.summarize", ended)
    assert status("show", PRELN) == code


def test_a_missing_argument_is_a_usage_error():
    done = run("show")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_terminal_without_unicode_is_no_error():
    done = subprocess.run(
        [sys.executable, "-m", "shearling", "show", PRELN],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0
    assert b"learning rate" in done.stdout


def test_the_schema_is_written_where_asked(tmp_path, capsys):
    assert status("schema", "--out", str(tmp_path / "schema.json")) == 0
    written = json.loads((tmp_path / "schema.json").read_text())
    assert status("schema") == 0
    assert written == json.loads(capsys.readouterr().out)
    assert "training" in written["properties"]


def test_a_schema_that_cannot_be_written_is_a_user_s_mistake(tmp_path, capsys):
    assert status("schema", "--out", str(tmp_path / "gone" / "schema.json")) == 2
    assert "gone" in capsys.readouterr().err
