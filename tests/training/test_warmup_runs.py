"""A run with a phase on random data: what it trains on, records and counts, and that it survives."""

import math
import signal

import pytest

from shearling.errors import Interrupted, UserError
from shearling.experiments.curves import draw_loss_curve
from shearling.training import checkpoints, loop, warmup
from shearling.training.loop import train
from shearling.training.resolve import resolve
from shearling.training.run_folder import RunFolder, read_json
from shearling.training.schedules import learning_rate_factor
from shearling.training.spec import ExperimentSpec
from shearling.training.step import update


@pytest.fixture(autouse=True)
def _peak_unmeasured(monkeypatch):
    monkeypatch.setattr(loop, "measure_peak", lambda *_: 1e9)  # measuring takes most of a tiny run's time


def final_hash(config: ExperimentSpec) -> str:
    folder = checkpoints.step_folder(RunFolder(config.output_dir).checkpoints, config.training.steps)
    return checkpoints.weights_hash(folder)


def lines_of(config: ExperimentSpec) -> list[dict]:
    return RunFolder(config.output_dir).read_metrics()


class TestARun:
    def test_trains_on_the_same_batches_as_one_without_the_phase(self, warmed, experiment, tmp_path, monkeypatch):
        seen = []
        real = loop.train_step

        def spy(state, batch, *arguments, **named):
            seen.append(batch.tokens)
            return real(state, batch, *arguments, **named)

        monkeypatch.setattr(loop, "train_step", spy)
        train(warmed())
        train(experiment(output_dir=str(tmp_path / "plain")))
        assert len(seen) == 24
        assert all((a == b).all() for a, b in zip(seen[:12], seen[12:], strict=True))

    def test_accounts_for_the_phase_apart_from_training(self, warmed):
        config = warmed("unigram", learning_rate=1e-2)
        results = train(config)
        lines = lines_of(config)
        losses = [line["random_warmup_loss"] for line in lines if "random_warmup_loss" in line]
        flops_per_token = resolve(config).flops_per_token
        told = results["random_warmup"]
        assert told == {
            "kind": "unigram", "steps": 5, "seconds": told["seconds"], "tokens": 5 * 256,
            "flops": 5 * 256 * flops_per_token, "first_loss": losses[0], "last_loss": losses[-1],
        }  # fmt: skip
        assert losses[-1] < losses[0]
        assert 0 < told["seconds"] < results["seconds"]
        assert (results["step"], results["tokens"], results["flops"]) == (12, 12 * 256, 12 * 256 * flops_per_token)
        trained = results["seconds"] - told["seconds"]
        assert results["tokens_per_second"] == pytest.approx(results["tokens"] / trained)
        assert read_json(RunFolder(config.output_dir).results) == results

    def test_without_one_says_so(self, experiment):
        assert train(experiment())["random_warmup"] is None

    def test_records_the_phase_before_step_0_under_names_of_its_own(self, warmed):
        config = warmed(learning_rate=2e-3)
        train(config)
        lines = lines_of(config)
        assert [line["step"] for line in lines[:6]] == [-5, -4, -3, -2, -1, 0]
        assert lines[0].keys() == {
            "step", "random_warmup_loss", "random_warmup_learning_rate", "random_warmup_gradient_norm",
        }  # fmt: skip
        assert "validation_loss" in lines[5]
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
        assert draw_loss_curve(RunFolder(config.output_dir), "warmed").exists()

    @pytest.mark.parametrize(("schedule", "taken"), [("fresh", 0), ("continue", 5)])
    def test_follows_the_schedule_from_where_the_policy_says(self, warmed, schedule, taken):
        training = {"schedule": {"warmup_steps": 7}}
        config = warmed(schedule=schedule, training=training)
        train(config)
        rates = [line["learning_rate"] for line in lines_of(config) if "loss" in line]
        first_at_peak = 7 - taken
        assert rates[:first_at_peak] == pytest.approx([1e-2 * (taken + t + 1) / 8 for t in range(first_at_peak)])
        assert rates[first_at_peak] == pytest.approx(1e-2)
        spec = config.training.schedule
        assert rates == pytest.approx([1e-2 * learning_rate_factor(spec, t, t / 12, 12, taken) for t in range(12)])
        assert rates[-1] < 0.4e-2

    def test_of_minutes_cools_down_over_those_that_the_phase_left(self, warmed, monkeypatch):
        options = {"evaluate_every": None, "save_every": None, "schedule": {"warmup_steps": 0}}
        config = warmed(steps=1, training={"minutes": 0.1, **options})
        now = [0.0]
        real = warmup.update

        def slow(*arguments, **named):
            now[0] += 3.0
            return real(*arguments, **named)

        def step(state, *arguments, **named):
            now[0] += 0.5
            state.progress.step += 1
            return 1.0, 1.0

        monkeypatch.setattr("time.perf_counter", lambda: now[0])
        monkeypatch.setattr(warmup, "update", slow)
        monkeypatch.setattr(loop, "train_step", step)
        results = train(config)
        rates = [line["learning_rate"] for line in lines_of(config) if "loss" in line]
        assert len(rates) == 6
        assert rates[0] == pytest.approx(1e-2)
        assert rates[3] == pytest.approx(1e-2 * 0.55)
        assert results["seconds"] == 6.0

    def test_of_fewer_minutes_than_the_phase_takes_is_told_to_shorten_it(self, warmed):
        with pytest.raises(
            UserError, match=r"random_warmup\.steps 1,000,000 leaves nothing of the run's 0\.005 minutes"
        ):
            train(warmed(steps=1_000_000, training={"minutes": 0.005}))

    def test_whose_phase_diverges_ends_with_that_as_its_result(self, warmed, monkeypatch):
        config = warmed(steps=9, training={"max_skipped": 3})
        broken = []

        def update_until(state, *arguments, **named):
            broken.append(state.progress.warmed.steps >= 4)
            return (math.nan, 1.0) if broken[-1] else update(state, *arguments, **named)

        monkeypatch.setattr(warmup, "update", update_until)
        with pytest.raises(
            UserError, match=r"random warm-up step 7: .* 3 steps in a row(?s:.*)random_warmup\.learning_rate"
        ):
            train(config)
        results = read_json(RunFolder(config.output_dir).results)
        assert (results["outcome"], results["tokens"], results["skipped_steps"]) == ("diverged", 0, 3)
        assert results["random_warmup"]["steps"] == 7
        assert results["random_warmup"]["last_loss"] < 10
        assert results["first"]["loss"] == results["loss"] < 10
        with pytest.raises(UserError, match="the run diverged"):
            train(config, resume=True)


class TestResuming:
    @pytest.mark.parametrize(
        "options",
        [
            {"kind": "iid_unpaired"},
            {"kind": "gaussian", "optimizer_state": "carry", "model": {"dropout": 0.1, "tie_embeddings": False}},
            {"kind": "shuffled", "keep": "moments"},
            {"kind": "unigram", "schedule": "continue", "optimizer_state": "carry"},
        ],
        ids=lambda options: options["kind"],
    )
    @pytest.mark.parametrize("at", [0, 1, 2, 4, 5, 7])
    def test_ends_bit_identical_wherever_it_was_cut_off(self, warmed, tmp_path, monkeypatch, options, at):
        """Cut off before step `at` of phase (of five) and training together; every second step saves."""
        whole, stopped = warmed(**options), warmed(**options, output_dir=str(tmp_path / "stopped"))
        train(whole)

        def crashing(real):
            def step(state, *arguments, **named):
                if state.progress.warmed.steps + state.progress.step == at:
                    raise RuntimeError("crash")
                return real(state, *arguments, **named)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(warmup, "update", crashing(update))
            patch.setattr(loop, "train_step", crashing(loop.train_step))
            with pytest.raises(RuntimeError, match="crash"):
                train(stopped)
        results = train(stopped, resume=True)
        assert final_hash(stopped) == final_hash(whole)
        assert [line["step"] for line in lines_of(stopped)] == [line["step"] for line in lines_of(whole)]
        expected = read_json(RunFolder(whole.output_dir).results)
        for told in (results["random_warmup"], expected["random_warmup"]):
            del told["seconds"]
        assert results["random_warmup"] == expected["random_warmup"]
        assert (results["first"], results["loss"]) == (expected["first"], expected["loss"])

    def test_after_a_signal_takes_up_the_very_step(self, warmed, tmp_path, monkeypatch):
        whole, stopped = warmed(), warmed(output_dir=str(tmp_path / "stopped"))
        train(whole)
        taken = []

        def interrupted(state, *arguments, **named):
            if len(taken) == 3:
                raise Interrupted(signal.SIGTERM)
            taken.append(state.progress.warmed.steps)
            return update(state, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(warmup, "update", interrupted)
            with pytest.raises(Interrupted):
                train(stopped)
            run = RunFolder(stopped.output_dir)
            assert "interrupted: saved at random warm-up step 3;" in run.log.read_text()
            patch.setattr(
                warmup, "update", lambda s, *a, **n: (taken.append(s.progress.warmed.steps), update(s, *a, **n))[1]
            )
            train(stopped, resume=True)
        assert taken == [0, 1, 2, 3, 4]
        assert final_hash(stopped) == final_hash(whole)

    def test_makes_up_for_the_evaluation_of_step_0(self, warmed, tmp_path, monkeypatch):
        whole, stopped = warmed(keep="moments"), warmed(keep="moments", output_dir=str(tmp_path / "stopped"))
        expected = train(whole)

        def interrupted(*arguments, **named):
            raise Interrupted(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "evaluate", interrupted)
            with pytest.raises(Interrupted):
                train(stopped)
        assert train(stopped, resume=True)["first"] == expected["first"]
        assert final_hash(stopped) == final_hash(whole)
        assert [line["step"] for line in lines_of(stopped)] == [line["step"] for line in lines_of(whole)]

    def test_with_another_phase_is_refused(self, warmed):
        train(warmed())
        with pytest.raises(UserError, match=r"random_warmup\.learning_rate"):
            train(warmed(learning_rate=2e-3), resume=True)
