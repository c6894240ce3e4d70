"""Runs that are killed, asked to stop, or run out of disk, and are then resumed."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shearling.config import dump
from shearling.training.checkpoints import saved_steps, step_folder, verify, weights_hash
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder
from shearling.training.spec import ExperimentSpec

KILLS = 20

FORKED = """
# Each line of standard input forks a process that resumes the run, and kills it once it has taken that many steps.
import os, signal, sys, time
from pathlib import Path
from shearling.config import load
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder
from shearling.training.spec import ExperimentSpec

config = load(ExperimentSpec, Path(sys.argv[1])).value
metrics = RunFolder(config.output_dir).metrics

def size():
    return metrics.stat().st_size if metrics.exists() else 0

for line in sys.stdin:
    steps, delay = map(float, line.split())
    child = os.fork()
    if child == 0:
        train(config, resume=True)
        os._exit(0)
    grown, last = 0, size()
    while grown < steps and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.0005)
        grown, last = grown + (size() > last), size()
    if grown >= steps:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(flush=True)
"""


def final_hash(config: ExperimentSpec) -> str:
    return weights_hash(step_folder(RunFolder(config.output_dir).checkpoints, config.training.steps))


def written(config: ExperimentSpec, path: Path) -> Path:
    path.write_text(dump(config))
    return path


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "shearling", "train", str(config), *arguments]


@pytest.mark.slow
def test_twenty_random_kills_leave_no_trace_in_the_final_weights(experiment, tmp_path):
    options = {"training": {"steps": 300, "save_every": 4, "evaluate_every": 50}}
    whole, killed = experiment(**options), experiment(**options, output_dir=str(tmp_path / "killed"))
    train(whole)
    draw, path = random.Random(time.time_ns()), written(killed, tmp_path / "killed.yaml")
    driver = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    root, reached = RunFolder(killed.output_dir).checkpoints, []
    for _ in range(KILLS):
        # A few kills fall before the first step; the delay spreads them over steps, saving and evaluation.
        driver.stdin.write(f"{draw.randint(0, 20)} {draw.uniform(0, 0.05)}\n")
        driver.stdin.flush()
        driver.stdout.readline()
        reached.append(max(saved_steps(root), default=0))
    driver.communicate()
    assert 0 < reached[-1] < 300, f"the kills did not fall within the run: {reached}"
    train(killed, resume=True)
    assert final_hash(killed) == final_hash(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_asked_to_stop_saves_first_and_resumes_bit_identical(experiment, tmp_path, number, status):
    options = {"training": {"steps": 300, "save_every": None, "evaluate_every": None}}
    whole, stopped = experiment(**options), experiment(**options, output_dir=str(tmp_path / "stopped"))
    train(whole)
    path, run = written(stopped, tmp_path / "stopped.yaml"), RunFolder(stopped.output_dir)
    process = subprocess.Popen(command(path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (run.metrics.exists() and len(run.metrics.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    assert "Traceback" not in output
    assert "--resume" in output
    saved = max(saved_steps(run.checkpoints))
    assert saved == max(line["step"] for line in run.read_metrics())
    assert 3 <= saved < 300
    train(stopped, resume=True)
    assert final_hash(stopped) == final_hash(whole)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_in_words_and_leaves_the_last_checkpoint_whole(experiment, tmp_path):
    """A limit on file sizes makes the system refuse a write in the middle of a checkpoint, as a full disk does."""
    whole, starved = experiment(), experiment(output_dir=str(tmp_path / "starved"))
    train(whole)
    path, run = written(starved, tmp_path / "starved.yaml"), RunFolder(starved.output_dir)
    process = subprocess.Popen(
        [sys.executable, "-c", LIMITED, str(path), "5"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert "the last whole checkpoint is of step 4" in output
    assert saved_steps(run.checkpoints)[-1] == 4
    verify(step_folder(run.checkpoints, 4))
    assert not list(run.checkpoints.glob(".draft_step*"))
    train(starved, resume=True)
    assert final_hash(starved) == final_hash(whole)


LIMITED = f"""
# The command line, but from step sys.argv[2] on no file may grow beyond 64 KiB.
import resource, sys
import shearling.training.loop as loop
from shearling.cli import main

real = loop.train_step

def train_step(state, *arguments, **named):
    if state.progress.step == int(sys.argv[2]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, {resource.RLIM_INFINITY}))
    return real(state, *arguments, **named)

loop.train_step = train_step
main(["train", sys.argv[1]])
"""


def test_a_second_ctrl_c_ends_at_once(experiment):
    from shearling.errors import Interrupted
    from shearling.training.interrupts import Interrupts

    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
