"""Comparisons from configs to comparison.json: trained once, resumed, tuned, and none dropped."""

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shearling.cli import main
from shearling.config import dump
from shearling.errors import Interrupted, UserError
from shearling.experiments.compare import compare, make_plan, runs
from shearling.experiments.compare.plan import Arm
from shearling.experiments.compare.tasks import make_task, position, work_done
from shearling.training import loop, run_folder
from shearling.training.run_folder import RunFolder, read_json


class InThisProcess:
    """Stands for a process that trains: it has done so once it is made."""

    def __init__(self, task, threads) -> None:
        task.config.output_dir.mkdir(parents=True, exist_ok=True)
        self.returncode = 0
        try:
            loop.train(task.config, resume=True)
        except UserError as error:
            self.returncode = 2
            task.log.write_text(f"error: {error}\n")

    def poll(self) -> int:
        return self.returncode

    wait = poll

    def send_signal(self, number: int) -> None:
        pass


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Runs train in this process, one at a time, without the seconds that a process and the peak take to measure."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "_start", InThisProcess)
    monkeypatch.setattr(runs, "_POLL_SECONDS", 0)
    monkeypatch.setattr(loop, "measure_peak", lambda device, dtype: 1e9)


@pytest.fixture
def arms(experiment, tmp_path) -> list[str]:
    """Two arms, of RMSNorm and of LayerNorm."""
    for kind in ("rmsnorm", "layernorm"):
        (tmp_path / f"{kind}.yaml").write_text(dump(experiment(name=kind, model={"norm": {"kind": kind}})))
    return [str(tmp_path / "rmsnorm.yaml"), str(tmp_path / "layernorm.yaml")]


def times(out: Path) -> dict[str, int]:
    """When each run of a comparison got its results."""
    return {
        path.parent.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in sorted(out.rglob("results.json"))
    }


@pytest.mark.usefixtures("quick")
class TestAComparison:
    def test_trains_every_arm_on_every_seed_and_judges(self, arms):
        judged, out = compare(make_plan([*arms, "steps=40"], seeds=2))
        assert out == Path("outputs/compare/rmsnorm-layernorm")
        assert judged == read_json(out / "comparison.json")
        assert list(times(out)) == [f"runs/{arm}/seed-{i}" for arm in ("layernorm", "rmsnorm") for i in (0, 1)]
        for arm in judged["arms"]:
            assert [run["seed"] for run in arm["runs"]] == [0, 1]
            for run in arm["runs"]:
                results = read_json(out / run["folder"] / "results.json")
                assert (run["loss"], run["outcome"]) == (results["loss"], "ok")
                assert run["first_loss"] == results["first"]["loss"] > run["loss"]
        assert judged["arms"][1]["versus"]["n"] == 2
        assert [budget["kind"] for budget in judged["budgets"]] == ["tokens", "flops", "seconds"]
        assert judged["differs"] == ["model.norm.kind", "model.norm.eps", "model.norm.bias"]

    def test_pairs_its_runs_by_the_same_batches_and_initial_tensors(self, arms):
        from safetensors.torch import load_file

        _, out = compare(make_plan([*arms, "learning_rate=1e-30", "weight_decay=0"], seeds=1), threads=1)
        weights = [
            load_file(out / "runs" / arm / "seed-0" / "model" / "latest" / "model.safetensors")
            for arm in ("rmsnorm", "layernorm")
        ]
        shared = [name for name in weights[0] if name in weights[1]]
        assert len(shared) == len(weights[0])
        assert all((weights[0][name] == weights[1][name]).all() for name in shared)

    def test_repeats_no_finished_run(self, arms):
        plan = make_plan(arms, seeds=2)
        first, out = compare(plan)
        before = times(out)
        again, _ = compare(plan)
        assert times(out) == before
        assert {**again, "command": 0} == {**first, "command": 0}

    def test_adds_seeds_to_those_there_and_says_that_a_verdict_had_been_seen(self, arms):
        first, out = compare(make_plan(arms, seeds=1))
        before = times(out)
        more, _ = compare(make_plan(arms, seeds=2))
        assert before.items() <= times(out).items()
        assert not any("seeds were added" in warning for warning in first["warnings"])
        assert any("seeds were added after a verdict over 1:" in warning for warning in more["warnings"])

    def test_says_that_a_verdict_over_more_seeds_or_against_another_arm_had_been_seen(self, arms):
        first, _ = compare(make_plan(arms, seeds=2))
        again, _ = compare(make_plan(arms, seeds=2))
        assert not any("earlier verdict" in warning for warning in (*first["warnings"], *again["warnings"]))
        fewer, _ = compare(make_plan(arms, seeds=1))
        assert any("earlier verdict was over more seeds, 2:" in warning for warning in fewer["warnings"])
        other, _ = compare(make_plan(arms, seeds=2, baseline="layernorm"))
        assert any("earlier verdict was against rmsnorm:" in warning for warning in other["warnings"])

    def test_warns_of_runs_from_code_that_no_commit_holds(self, arms, monkeypatch):
        for commit, dirty in (("abc", False), ("abc-dirty", True), (None, False)):
            monkeypatch.setattr(run_folder, "_git_commit", lambda commit=commit: commit)
            judged, _ = compare(make_plan(arms, seeds=1), Path(f"out-{commit}"))
            assert any("2 of 2 runs come from code with" in warning for warning in judged["warnings"]) == dirty

    def test_takes_a_home_folder_that_the_shell_did_not_see(self, arms, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        _, out = compare(make_plan(arms, seeds=1), Path("~/out"))
        assert out == tmp_path / "home" / "out"
        with pytest.raises(UserError, match="no such home folder"):
            compare(make_plan(arms, seeds=1), Path("~nobody-of-this-name/out"))

    def test_tells_of_arms_that_it_leaves_out(self, arms, experiment, tmp_path):
        third = tmp_path / "third.yaml"
        third.write_text(dump(experiment(name="third", model={"norm": {"kind": "scalenorm"}})))
        out = tmp_path / "out"
        compare(make_plan([*arms, str(third)], seeds=1), out)
        judged, _ = compare(make_plan(arms, seeds=1), out)
        assert "arms begun in this folder are left out: third" in judged["warnings"]

    def test_counts_a_diverging_arm_as_an_outcome_and_does_not_repeat_it(self, arms, experiment, tmp_path):
        wild = tmp_path / "wild.yaml"
        options = {"optimizer": {"learning_rate": 1e6}, "steps": 60, "max_skipped": 3, "clip": None}
        wild.write_text(dump(experiment(name="wild", training=options)))
        given = [arms[0], str(wild), "steps=60", "max_skipped=3", "clip=null"]
        plan = make_plan(given, seeds=2, over=["learning_rate"])
        judged, out = compare(plan)
        before = times(out)
        arm = judged["arms"][1]
        assert {run["outcome"] for run in arm["runs"]} == {"diverged"}
        for run in arm["runs"]:
            assert run["raw_loss"] is None
            assert run["loss"] == judged["ceiling"] == math.log(300)
            assert read_json(out / run["folder"] / "results.json")["outcome"] == "diverged"
        assert arm["versus"]["difference"] > 1
        assert arm["versus"]["verdict"].startswith("2 of 2 runs diverged; ")
        assert compare(plan)[0]["arms"] == judged["arms"]
        assert times(out) == before

    def test_caps_a_loss_above_that_of_knowing_nothing_and_calls_it_collapsed(self, arms, experiment, tmp_path):
        wild = tmp_path / "wild.yaml"
        wild.write_text(dump(experiment(name="wild", training={"optimizer": {"learning_rate": 3.0}})))
        judged, _ = compare(make_plan([arms[0], str(wild)], seeds=1, over=["learning_rate"]))
        (run,) = judged["arms"][1]["runs"]
        assert run["raw_loss"] > run["loss"] == judged["ceiling"]
        assert run["outcome"] == "collapsed"

    def test_tunes_each_arm_and_goes_on_at_its_best(self, arms):
        judged, out = compare(make_plan([*arms, "learning_rate=1e-3", "steps=10"], seeds=1, tune="lr"))
        seeds = {run["seed"] for arm in judged["arms"] for run in arm["runs"]}
        for arm in judged["arms"]:
            tuning = arm["tuning"]
            rates = [point["learning_rate"] for point in tuning["points"]]
            assert {1e-3 * factor for factor in (0.25, 0.5, 1, 2, 4)} < set(rates)
            assert rates == sorted(rates)
            best = min(tuning["points"], key=lambda point: point["loss"])["learning_rate"]
            assert best > 4e-3, "the best of these tiny runs lies beyond the grid"
            assert (best in (rates[0], rates[-1])) == tuning["best_at_edge"]
            assert arm["learning_rate"] == best
            assert tuning["seed"] not in seeds
            assert all(read_json(out / point["folder"] / "results.json") for point in tuning["points"])
            assert tuning["sensitivity"] > 0

    def test_tunes_over_the_grid_that_is_given(self, arms):
        judged, _ = compare(make_plan([*arms, "steps=4"], seeds=1, tune="lr", grid="1e-6,1e-2,1e6"))
        for arm in judged["arms"]:
            assert [point["learning_rate"] for point in arm["tuning"]["points"]] == [1e-6, 1e-2, 1e6]
            assert arm["learning_rate"] == 1e-2
        assert "training.optimizer.learning_rate" not in judged["differs"]
        assert judged["recipe"]["training.optimizer.learning_rate"] == 1e-2


@pytest.mark.usefixtures("quick")
class TestRefusals:
    @pytest.fixture
    def begun(self, arms, tmp_path) -> Path:
        out = tmp_path / "out"
        compare(make_plan(arms, seeds=1), out, threads=1)
        return out

    def test_of_other_options_name_them(self, arms, begun):
        with pytest.raises(UserError, match=r"rmsnorm began with other values of training\.clip(?s:.*)another --out"):
            compare(make_plan([*arms, "clip=0.5"], seeds=1), begun)

    def test_of_another_number_of_threads(self, arms, begun):
        with pytest.raises(UserError, match="begun with --threads 1"):
            compare(make_plan(arms, seeds=1), begun, threads=2)

    def test_of_tuning_what_was_begun_untuned(self, arms, begun):
        with pytest.raises(UserError, match="begun without tuning"):
            compare(make_plan(arms, seeds=1, tune="lr"), begun)

    def test_of_a_folder_that_holds_something_else(self, arms, begun, corpus):
        for folder in (begun / "runs" / "rmsnorm" / "seed-0", corpus):
            with pytest.raises(UserError, match="choose another --out"):
                compare(make_plan(arms, seeds=1), folder)

    def test_of_a_run_that_is_not_the_plan_s(self, arms, begun):
        run = RunFolder(begun / "runs" / "rmsnorm" / "seed-0")
        run.config.write_text(run.config.read_text().replace("clip: 1.0", "clip: 0.5"))
        with pytest.raises(UserError, match=r"seed-0: holds a run with other values of training\.clip"):
            compare(make_plan(arms, seeds=1), begun)

    @pytest.mark.parametrize("what", ["data", "tokenizer", "code"])
    def test_of_a_run_on_what_has_changed_since(self, arms, begun, what):
        run = RunFolder(begun / "runs" / "layernorm" / "seed-0")
        provenance = read_json(run.provenance)
        provenance["hashes"][what] = "0" * 64
        run.provenance.write_text(json.dumps(provenance))
        with pytest.raises(UserError, match=rf"holds a run with another .*{what}"):
            compare(make_plan(arms, seeds=1), begun)

    def test_of_a_second_comparison_in_the_folder_at_a_time(self, arms, begun):
        from shearling.files import locked

        with locked(begun), pytest.raises(UserError, match="another process"):
            compare(make_plan(arms, seeds=1), begun)

    def test_a_run_that_ends_without_results_stops_all_and_shows_its_last_words(self, arms, monkeypatch, tmp_path):
        def crash(*arguments, **options):
            raise UserError("the disk is made of cheese")

        monkeypatch.setattr(loop, "train", crash)
        with pytest.raises(UserError, match=r"rmsnorm, seed 0, ended with status 2(?s:.*)made of cheese"):
            compare(make_plan(arms), tmp_path / "out")


@pytest.mark.usefixtures("quick")
def test_an_interrupted_comparison_goes_on_where_it_was(arms, monkeypatch, tmp_path):
    plan, out, real = make_plan(arms, seeds=2), tmp_path / "out", runs._start

    def start(task, threads):
        if len(times(out)) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(task, threads)

    monkeypatch.setattr(runs, "_start", start)
    with pytest.raises(Interrupted):
        compare(plan, out, jobs=1)
    before = times(out)
    assert len(before) == 3
    assert not (out / "comparison.json").exists()
    monkeypatch.setattr(runs, "_start", real)
    compare(plan, out, jobs=1)
    assert before.items() < times(out).items()


class TestHowManyRunsGoSideBySide:
    @pytest.fixture
    def arm(self, experiment) -> Arm:
        return Arm("a", experiment(training={"device": "cpu"}))

    @pytest.mark.parametrize(("cores", "threads", "expected"), [(8, 1, 8), (8, 3, 2), (2, 4, 1)])
    def test_depends_on_the_cores(self, arm, monkeypatch, cores, threads, expected):
        monkeypatch.setattr(runs, "available_cores", lambda: cores)
        monkeypatch.setattr(runs, "_free_memory", lambda: 2**50)
        assert runs.side_by_side([arm], threads) == expected

    def test_depends_on_the_memory_of_the_largest_arm(self, arm, experiment, monkeypatch):
        large = Arm("b", experiment(training={"device": "cpu"}, model={"vocab_size": 2**20}))
        monkeypatch.setattr(runs, "available_cores", lambda: 64)
        monkeypatch.setattr(runs, "_free_memory", lambda: 3 * (runs.LIBRARIES + large.resolved.memory.total))
        assert runs.side_by_side([arm, large], 1) == 3
        monkeypatch.setattr(runs, "_free_memory", lambda: 0)
        assert runs.side_by_side([arm, large], 1) == 1

    def test_is_one_where_they_share_a_gpu(self, experiment, monkeypatch):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert runs.side_by_side([Arm("a", experiment())], 1) == 1


def test_how_far_a_run_has_come_is_read_off_the_end_of_its_metrics(experiment, tmp_path):
    arm = Arm("a", experiment(training={"steps": 10}, random_warmup={"kind": "gaussian", "steps": 10}))
    task = make_task(arm, tmp_path / "run", "seed 0", 0)
    assert (position(task), work_done(task)) == (None, 0)
    task.run.path.mkdir()
    lines = [{"step": -6, "random_warmup_loss": 5.0}]
    for more, expected, share in (
        ([], (-6, 5.0), 0.2),
        ([{"step": i, "loss": 9.0 - i, "filling": "x" * 2000} for i in range(1, 6)], (5, 4.0), 0.75),
        ([{"step": 5, "validation_loss": 4.5}], (5, 4.0), 0.75),
    ):
        lines += more
        task.run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "lo')
        assert position(task) == expected
        assert work_done(task) == pytest.approx(share * task.work)


class TestTheCommand:
    def run(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(["compare", *arguments])
        return ended.value.code or 0, out.getvalue(), err.getvalue()

    @pytest.mark.usefixtures("quick")
    def test_prints_verdicts_and_table_or_json(self, arms):
        status, text, err = self.run(*arms, "--seeds", "2", "--steps", "4", "clip=0.5")
        assert status == 0, err
        assert text.startswith("rmsnorm-layernorm: against rmsnorm\n  layernorm  ")
        assert text.endswith("\n\nreport: outputs/compare/rmsnorm-layernorm/report.html\n")
        assert "2 arms × seeds 0, 1; " in err
        assert "layernorm, seed 1: loss " in err
        status, text, err = self.run(*arms, "--seeds", "2", "--steps", "4", "clip=0.5", "--json")
        assert status == 0
        assert err.endswith("report: outputs/compare/rmsnorm-layernorm/report.html\n")
        judged = json.loads(text)
        assert (judged["recipe"]["training.steps"], judged["recipe"]["training.clip"]) == (4, 0.5)

    @pytest.mark.usefixtures("quick")
    def test_has_printed_everything_when_the_report_cannot_be_written(self, arms, tmp_path):
        (tmp_path / "out" / "report.html").mkdir(parents=True)
        status, text, err = self.run(*arms, "--seeds", "1", "--steps", "4", "--out", str(tmp_path / "out"))
        assert status == 2
        assert "rmsnorm-layernorm" not in text
        assert "unigram loss" in text
        assert "the report cannot be written" in err

    def test_names_each_key_in_which_the_arms_must_not_differ(self, arms):
        Path(arms[1]).write_text(Path(arms[1]).read_text().replace("n_layers: 2", "n_layers: 3"))
        status, text, err = self.run(*arms)
        assert (status, text) == (2, "")
        assert err.splitlines()[0] == "error: model.n_layers: 2 in rmsnorm, 3 in layernorm"
        assert all(line.startswith("error: ") for line in err.splitlines())

    @pytest.mark.slow
    def test_asked_to_stop_lets_its_runs_save_and_goes_on_to_the_same_figures(self, arms, tmp_path):
        command = [sys.executable, "-m", "shearling", "compare", *arms, "--seeds", "1", "--jobs", "2", "steps=150"]
        command += ["save_every=null", "evaluate_every=null"]
        whole = subprocess.run([*command, "--out", str(tmp_path / "whole"), "--json"], capture_output=True, check=True)
        stopped = tmp_path / "stopped"
        process = subprocess.Popen([*command, "--out", str(stopped)], stderr=subprocess.PIPE, text=True)
        first = RunFolder(stopped / "runs" / "rmsnorm" / "seed-0")
        while not (first.metrics.exists() and len(first.metrics.read_text().splitlines()) > 20):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "the same command goes on" in err
        assert "Traceback" not in err
        assert not first.results.exists()
        assert "interrupted: saved at step" in (first.path / "console.log").read_text()
        subprocess.run([*command, "--out", str(stopped)], capture_output=True, check=True)
        assert "resumed at step" in (first.path / "console.log").read_text()
        got, expected = read_json(stopped / "comparison.json"), json.loads(whole.stdout)
        assert [[run["loss"] for run in arm["runs"]] for arm in got["arms"]] == [
            [run["loss"] for run in arm["runs"]] for arm in expected["arms"]
        ]
        assert (got["threads"], got["jobs"]) == (1, 2)
