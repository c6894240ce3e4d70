"""Planning: laws against known laws, choices against limiting cases, configs that can be trained."""

import math
from pathlib import Path

import numpy as np
import pytest

from shearling.config import load
from shearling.errors import UserError
from shearling.experiments.plan import choose, machine, make
from shearling.experiments.plan.explain import explain
from shearling.experiments.plan.laws import Law, Point, effective_tokens, fit, read_runs
from shearling.models.cost import parameters, training_flops_per_token
from shearling.models.spec import ModelSpec
from shearling.training.loop import train
from shearling.training.spec import ExperimentSpec

TRUE = Law(0.5, 20.0, 0.3, 100.0, 0.35, "made up")
ELSEWHERE = Law(0.3, 12.0, 0.25, 60.0, 0.28, "another")


def points(sizes, lengths) -> list[Point]:
    return [Point(n, d, TRUE.loss(n, d), Path("run")) for n in sizes for d in lengths]


class TestLaws:
    def test_many_runs_give_the_law_back(self):
        found = fit(points([1e6, 3e6, 9e6], [1e6, 4e6, 16e6]), ELSEWHERE)
        for n, tokens in ((1e6, 1e6), (5e6, 8e6), (30e6, 60e6)):  # the last lies far beyond
            assert found.loss(n, tokens) == pytest.approx(TRUE.loss(n, tokens), rel=0.01)

    def test_few_runs_move_its_height_alone(self):
        found = fit(points([2e6], [3e6]), ELSEWHERE)
        assert found.loss(2e6, 3e6) == pytest.approx(TRUE.loss(2e6, 3e6))
        assert found.loss(8e6, 9e6) / ELSEWHERE.loss(8e6, 9e6) == pytest.approx(
            TRUE.loss(2e6, 3e6) / ELSEWHERE.loss(2e6, 3e6)
        )

    @pytest.mark.parametrize(
        ("sizes", "lengths", "what"), [([1e6], [1e6, 9e6], "sizes"), ([1e6, 9e6], [1e6], "lengths")]
    )
    def test_runs_too_much_alike_are_refused(self, sizes, lengths, what):
        with pytest.raises(UserError, match=what):
            fit(points(sizes, lengths) * 3, ELSEWHERE)

    def test_repeated_text_is_worth_less_and_less(self):
        assert effective_tokens(5e6, 1e7) == 5e6
        assert effective_tokens(4e7, 1e7) == pytest.approx(4e7, rel=0.1)  # up to four epochs: nearly as good as new
        assert effective_tokens(1e12, 1e7) == pytest.approx(16.4e7)

    def test_runs_are_read_from_their_folders(self, experiment):
        config = experiment()
        results = train(config)
        (point,) = read_runs([config.output_dir])
        assert (point.n, point.bits_per_byte) == (parameters(config.model).multiplied, results["bits_per_byte"])
        assert point.tokens == results["tokens"]

    def test_what_is_no_run_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="holds no finished run"):
            read_runs([tmp_path])


class TestSpeed:
    speed = machine.Speed((128, 256), (1.0, 2.0), (0.1, 0.4), 4096, 5.0)

    def test_is_what_was_measured_at_its_widths(self):
        assert self.speed.tokens_per_second(128, 10) == pytest.approx(4096 / 2.0)
        assert self.speed.tokens_per_second(256, 5) == pytest.approx(4096 / 4.0)

    def test_lies_on_a_power_law_between_and_beyond(self):
        assert self.speed.tokens_per_second(512, 1) == pytest.approx(4096 / (4.0 + 1.6))
        assert self.speed.tokens_per_second(181, 0) == pytest.approx(4096 / math.sqrt(2), rel=1e-2)

    def test_is_measured_by_training(self, monkeypatch, corpus):
        monkeypatch.setattr(machine, "CPU_WIDTHS", (64, 128))
        monkeypatch.setattr(machine, "pick_compile", lambda *_, **__: (False, "off"))

        def experiment(d_model: int, n_layers: int) -> ExperimentSpec:
            return ExperimentSpec.model_validate(
                {
                    "name": "speed", "output_dir": "unused", "data": {"path": "unused", "seq_len": 32},
                    "model": choose.model_options(d_model, n_layers, 300, 32),
                    "training": {"steps": 1, "tokens_per_update": 256, "schedule": {"warmup_steps": 0}},
                }
            )  # fmt: skip

        said: list[str] = []
        speed = machine.measure_speed(experiment, "cpu", said.append)
        config = experiment(128, 4)
        seconds, _ = machine._time_steps(config, machine.pick_device("cpu"), False)
        assert np.log(speed.tokens_per_second(128, 4) * seconds / 256) == pytest.approx(0, abs=np.log(3))
        assert len(said) == 4


SPEED = machine.Speed((128, 256, 512), (0.05, 0.08, 0.16), (0.02, 0.05, 0.15), 4096, 10.0)


def choices(budget: choose.Budget, available: int = 10**12, law: Law = TRUE) -> list[choose.Choice]:
    return choose.candidates(budget, SPEED, law, 4096, 256, available, 64)


class TestChoices:
    def test_a_larger_budget_buys_a_larger_model_and_a_lower_loss(self):
        small, large = (choose.best(choices(b), b) for b in (choose.Budget(minutes=2), choose.Budget(minutes=200)))
        assert large.n > small.n
        assert large.loss < small.loss

    def test_minutes_pay_for_what_is_left_of_them(self):
        for choice in choices(choose.Budget(minutes=3)):
            rate = SPEED.tokens_per_second(choice.d_model, choice.n_layers)
            assert choice.tokens == pytest.approx(170 * rate)

    def test_flops_are_spent(self):
        for choice in choices(choose.Budget(flops=1e15)):
            spec = ModelSpec.model_validate(choose.model_options(choice.d_model, choice.n_layers, 4096, 256))
            assert choice.tokens * training_flops_per_token(spec, 256) == pytest.approx(1e15)

    def test_with_tokens_alone_chinchilla_gives_the_size(self):
        budget = choose.Budget(tokens=1e9)
        assert choose.best(choices(budget), budget).tokens_per_parameter == pytest.approx(20, rel=0.3)

    def test_little_text_buys_a_larger_model(self):
        budget = choose.Budget(minutes=60)
        plenty, little = (choose.best(choices(budget, available), budget) for available in (10**12, 10**6))
        assert little.n > plenty.n
        assert any("seen" in warning for warning in choose.warnings(little))
        assert not choose.warnings(plenty)

    def test_too_small_a_budget_says_so(self):
        with pytest.raises(UserError, match="pay for no training"):
            choices(choose.Budget(minutes=0.1))

    def test_an_own_embedding_has_its_own_rate_and_a_shared_one_has_none(self):
        budget = choose.Budget(tokens=1e6)
        for tokens, tied in ((3e6, False), (5e6, True)):
            choice = choose.Choice(128, 4, 1_000_000, tokens, None, 1.0, 2.0)
            optimizer = choose.training_options(choice, budget, 256)["optimizer"]
            assert choice.tied == choose.model_options(128, 4, 4096, 256, choice.tied)["tie_embeddings"] == tied
            assert ("rates" in optimizer) == (not tied)

    def test_updates_grow_with_the_run(self):
        assert choose.tokens_per_update(4e6, 256) == 4096
        assert choose.tokens_per_update(4e9, 256) == 65_536  # 4096 · 1000^0.383 = 57,720, to a power of two sequences
        assert choose.tokens_per_update(1.0, 256) == 256


@pytest.mark.parametrize("budget", [{"tokens": 1e6}, {"flops": 1e13}, {"minutes": 2}])
def test_a_plan_is_a_config_that_can_be_trained(corpus, tmp_path, monkeypatch, budget):
    monkeypatch.setattr(make, "measure_speed", lambda *_: SPEED)
    made = make.make_plan(
        choose.Budget(**budget), corpus, tmp_path / "plan.yaml",
        fitted=(), seq_len=64, aspect=64, device="cpu", say=lambda _: None,
    )  # fmt: skip
    config = load(ExperimentSpec, made.config).value
    assert (config.model.d_model, config.model.n_layers) == (made.chosen.d_model, made.chosen.n_layers)
    assert config.training.minutes == budget.get("minutes")
    if "minutes" not in budget:
        assert config.training.tokens == pytest.approx(made.chosen.tokens, abs=1)
    assert made.picture.read_bytes().startswith(b"\x89PNG")
    assert str(choose.Budget(**budget)) in made.config.read_text()


def test_a_config_is_judged_by_the_rules(root):
    path = root / "configs" / "experiments" / "stories-3m.yaml"
    of = {what: remark for what, _, remark in explain(path, ["training.minutes=null", "training.tokens=1e6"])}
    assert of["tokens per parameter"].startswith("short")
    assert "few" in of["steps"]
    assert of["warm-up"].startswith("long")
    of = {
        what: remark
        for what, _, remark in explain(
            path, ["training.minutes=null", "training.tokens=1e9", "training.optimizer.learning_rate=0.5"]
        )
    }
    assert of["tokens per parameter"].startswith("long")
    assert of["learning rate"].startswith("high")
    assert "small for" in of["tokens per update"]
