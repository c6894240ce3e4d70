"""The command line as a user meets it."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shearling.cli import main
from shearling.engine.templates import MEND
from shearling.errors import Interrupted, UserError

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
            "plan",
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


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_the_flag_that_mends_a_chat_template_is_there(command, capsys):
    (flag,) = re.findall(r"--[\w-]+", MEND)
    assert status(command, "--help") == 0
    assert f" {flag} " in capsys.readouterr().out


def test_a_chat_s_flags_are_refused_where_a_text_is_continued(capsys):
    assert status("generate", "a.bin", "--llama2-template") == 2
    assert "--llama2-template: a text to continue is no conversation: add -m chat" in capsys.readouterr().err


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


def test_an_input_that_ends_where_nothing_expects_it_is_a_defect_too(monkeypatch, capsys):
    def ended(*_):
        raise EOFError("of a file, say")

    monkeypatch.setattr("shearling.experiments.summary.summarize", ended)
    with pytest.raises(RuntimeError, match="internal error") as caught:
        main(["show", PRELN])
    assert isinstance(caught.value.__cause__, EOFError)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (UserError("mend it"), 2)])
def test_what_ends_a_command_sets_the_status(monkeypatch, raised, code):
    def ended(*_):
        raise raised

    monkeypatch.setattr("shearling.experiments.summary.summarize", ended)
    assert status("show", PRELN) == code


def test_ctrl_c_ends_the_line_and_says_so(monkeypatch, capsys):
    def ended(*_):
        print("half a li", end="")
        raise KeyboardInterrupt

    monkeypatch.setattr("shearling.experiments.summary.summarize", ended)
    assert status("show", PRELN) == 130
    assert capsys.readouterr() == ("half a li", "\ninterrupted\n")


def test_ctrl_c_while_the_command_line_is_read_says_so(monkeypatch, capsys):
    def ended(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("typer.main.get_command", ended)
    assert status("show", PRELN) == 130
    assert capsys.readouterr() == ("", "\ninterrupted\n")


def test_a_run_that_has_answered_ctrl_c_by_saving_says_no_more(monkeypatch, capsys):
    def ended(*_):
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("shearling.experiments.summary.summarize", ended)
    assert status("show", PRELN) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize(
    "command", [["schema"], ["--help"], ["show", PRELN, "--json"], ["download", "--list"]], ids=" ".join
)
def test_output_that_finds_no_room_ends_any_command_with_a_line(command):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "shearling", *command], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    line = "error: standard output: cannot be written (No space left on device): make room, or send it elsewhere\n"
    assert (done.returncode, done.stderr) == (1, line)


@pytest.mark.parametrize("command", [["schema"], ["--help"], ["download", "--list"]], ids=" ".join)
def test_a_reader_that_has_gone_ends_any_command_in_silence(command):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "shearling", *command], stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_the_error_of_a_file_is_not_taken_for_that_of_the_output(monkeypatch):
    def broken(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shearling.experiments.summary.summarize", broken)
    with pytest.raises(OSError, match="No space left"):
        main(["show", PRELN])


def test_without_an_output_a_command_still_runs():
    command = [sys.executable, "-m", "shearling", "schema"]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, b"")


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
