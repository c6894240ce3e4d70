"""The verdict: from losses to words, on made-up runs whose truth is known."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shearling.data.prepare import prepare
from shearling.experiments.compare.budgets import equal_budgets
from shearling.experiments.compare.outcomes import Reading, Result, unigram_loss
from shearling.experiments.compare.plan import Arm, Plan
from shearling.experiments.compare.table import render
from shearling.experiments.compare.tuning import Tuning, tuning_seed
from shearling.experiments.compare.verdict import compare_arms, comparison
from shearling.experiments.compare.words import in_words
from shearling.experiments.statistics import Difference, independent_difference, paired_difference

UNIFORM = math.log(300)


def result(loss: float | None, seed: int = 0, *, rate: float = 1e-2, **options) -> Result:
    """A run of 3,000 tokens and 30 seconds whose loss falls in a straight line; None: it diverged half-way."""
    first = UNIFORM
    diverged = loss is None
    end = 0.5 if diverged else 1.0
    curve = [Reading(int(3000 * x), first + ((loss or 3.0) - first) * x) for x in (0, end / 2, end)]
    made = Result(
        seed=seed, learning_rate=rate, folder=f"runs/a/seed-{seed}", outcome="diverged" if diverged else "ok",
        loss=first if diverged else loss, raw_loss=loss, first_loss=first, ceiling=first,
        bits_per_byte=None if diverged else loss / 3, tokens=3000, flops=10**9, seconds=30.0, tokens_per_second=100.0,
        seconds_per_token=0.01, curve=tuple(curve),
    )  # fmt: skip
    return replace(made, **options)


@pytest.fixture
def plan(experiment):
    """A plan of three seeds over arms of these names: `plan("a", "b")`, with its arms' norms all different."""

    def made(*names: str, count: int = 3, seeds: tuple[int, ...] | None = None, **options) -> Plan:
        configs = [
            experiment(name=name, seed=seeds[i] if seeds else 0, model={"norm": {"kind": "rmsnorm", "eps": 10.0**-i}})
            for i, name in enumerate(names)
        ]
        arms = tuple(Arm(name, config) for name, config in zip(names, configs, strict=True))
        return replace(Plan(arms, names[0], count, None, ()), **options)

    return made


def judged(plan: Plan, losses: dict[str, list[float | Result | None]], tunings=None) -> dict:
    results = {
        name: [
            each if isinstance(each, Result) else result(each, seed)
            for each, seed in zip(own, plan.seeds(arm), strict=True)
        ]
        for (name, own), arm in zip(losses.items(), plan.arms, strict=True)
    }
    found = comparison("made-up", plan, results, tunings or {}, threads=1, jobs=2, warnings=["of before"])
    assert found == json.loads(json.dumps(found, allow_nan=False))
    return found


class TestAnAAComparison:
    """Arms that do not differ are called different as often as the level says, whatever the design."""

    @pytest.mark.parametrize("seeds", [None, (0, 100)], ids=["paired", "independent"])
    @pytest.mark.parametrize("count", [3, 5])
    def test_of_two_arms_is_called_different_in_at_most_5_of_100(self, plan, count, seeds):
        a_a, repetitions, draw = plan("a", "b", count=count, seeds=seeds), 1000, np.random.default_rng(count)
        different = covered = 0
        for _ in range(repetitions):
            shared = draw.normal(2.3, 0.02, count) if a_a.paired else 2.3  # what a seed does to all arms alike
            losses = {name: (shared + draw.normal(0, 0.01, count)).tolist() for name in "ab"}
            difference, p = compare_arms(losses, a_a)["b"]
            different += in_words(difference, p, 1).startswith(("better", "worse"))
            covered += difference.low <= 0 <= difference.high
        tolerance = 4 * math.sqrt(0.05 * 0.95 * repetitions)
        assert different <= 0.05 * repetitions + tolerance
        assert covered >= 0.95 * repetitions - tolerance
        if a_a.paired:  # Welch's test is a little shy of its level with samples this small
            assert different >= 0.05 * repetitions - tolerance

    def test_of_many_arms_finds_a_false_winner_in_at_most_5_of_100(self, plan):
        a_a, repetitions, draw = plan(*"abcdef"), 1000, np.random.default_rng(0)
        families = 0
        for _ in range(repetitions):
            found = compare_arms({name: draw.normal(2.3, 0.01, 3).tolist() for name in "abcdef"}, a_a)
            families += any(p < 0.05 for _, p in found.values())
        assert families <= 0.05 * repetitions + 4 * math.sqrt(0.05 * 0.95 * repetitions)


class TestTheVerdict:
    def test_names_the_direction_the_size_the_interval_and_p(self):
        better = Difference(3, -0.0312, -0.0504, -0.0121, 0.004, 0.01, 0.02)
        assert in_words(better, 0.008, 2) == "better by 0.031 nats (0.012 to 0.050), p 0.008 after Holm"
        worse = Difference(3, 1.234, 1.2329, 1.2351, 1e-7, 0.001, 0.02)
        assert in_words(worse, 1e-7, 1) == "worse by 1.2340 nats (1.2329 to 1.2351), p < 0.0001"

    def test_tells_what_could_have_been_seen_where_nothing_was(self):
        nothing = Difference(3, 0.004, -0.011, 0.019, 0.4, 0.01, 0.0196)
        assert in_words(nothing, 0.4, 1) == "not distinguishable at this scale: 3 seeds could have seen 0.02 nats"

    def test_tells_where_only_the_number_of_arms_speaks_against_it(self):
        lucky = Difference(3, -0.03, -0.05, -0.01, 0.03, 0.01, 0.02)
        assert in_words(lucky, 0.06, 2) == (
            "not distinguishable, counting all arms: p 0.03 alone, p 0.06 after Holm over 2 arms; "
            "3 seeds could have seen 0.02 nats"
        )

    def test_of_one_seed_says_nothing_of_chance(self, plan):
        found = judged(plan("a", "b", count=1), {"a": [3.0], "b": [2.9]})
        versus = found["arms"][1]["versus"]
        assert versus["verdict"] == "one seed says nothing of chance (better by 0.1 nats on it)"
        assert versus["difference"] == pytest.approx(-0.1)
        assert {versus[key] for key in ("low", "high", "p", "p_holm", "sd", "smallest_visible")} == {None}
        assert found["arms"][0]["sd"] is None

    def test_of_equal_losses_says_so(self, plan):
        found = judged(plan("a", "b"), {"a": [3.0, 2.9, 2.8], "b": [3.0, 2.9, 2.8]})
        assert found["arms"][1]["versus"]["verdict"] == "the same loss on every seed"

    def test_of_a_constant_difference_is_certain(self, plan):
        versus = judged(plan("a", "b"), {"a": [3.0, 2.0, 1.0], "b": [2.5, 1.5, 0.5]})["arms"][1]["versus"]
        assert versus["verdict"] == "better by 0.5000 nats (0.5000 to 0.5000), p < 0.0001"
        assert (versus["sd"], versus["p"], versus["smallest_visible"]) == (0, 0, 0)

    def test_tells_what_could_have_been_seen_after_holm(self, plan):
        losses = {"a": [3.0, 3.1, 3.2], "b": [3.01, 3.09, 3.2], "c": [3.0, 3.12, 3.19]}
        few = judged(plan("a", "b"), {name: losses[name] for name in "ab"})["arms"][1]["versus"]
        many = judged(plan("a", "b", "c"), losses)["arms"][1]["versus"]
        assert many["smallest_visible"] > few["smallest_visible"]
        assert many["verdict"].endswith(f"could have seen {many['smallest_visible']:.2g} nats")

    def test_pairs_the_arms_that_share_the_baseline_s_seeds(self, plan):
        losses = {"a": [3.0, 3.1, 3.2], "b": [2.9, 3.05, 3.1], "c": [2.9, 3.05, 3.1]}
        found = judged(plan("a", "b", "c", seeds=(0, 0, 100)), losses)
        b, c = (arm["versus"] for arm in found["arms"][1:])
        assert (found["paired"], b["paired"], c["paired"]) == (False, True, False)
        assert b["p"] == paired_difference(losses["b"], losses["a"]).p
        assert c["p"] == independent_difference(losses["c"], losses["a"]).p
        assert "over 3 seeds, paired and independent samples" in render(found)


class TestLossesInAnotherUnit:
    """Figures stay; there is no verdict, and no other arm's p is adjusted for what was not tested."""

    @pytest.fixture
    def found(self, plan, experiment, tmp_path):
        def of(**options) -> dict:
            two = plan("a", "b")
            three = replace(two, arms=(*two.arms, Arm("c", experiment(name="c", **options))))
            return judged(three, {"a": [3.0, 3.1, 3.2], "b": [2.9, 3.05, 3.1], "c": [1.0, 1.1, 1.3]})

        return of

    def check(self, found: dict, why: str) -> None:
        b, c = (arm["versus"] for arm in found["arms"][1:])
        assert c["verdict"] == f"no verdict in nats: {why}"
        assert (c["comparable"], c["p_holm"], c["smallest_visible"]) == (False, None, None)
        assert c["difference"] < -1
        assert (b["comparable"], b["p_holm"]) == (True, b["p"])
        assert "bits per byte: 1.0333 a, 1.0056 b, 0.3778 c" in render(found)

    def test_of_another_objective(self, found):
        masked = {"model": {"arch": "bert"}, "training": {"objective": {"kind": "masked_token"}}}
        self.check(found(**masked), "another objective than the baseline's, whose loss measures something else")

    def test_of_another_tokenizer(self, found, tmp_path):
        (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(f"Story {i} is told." for i in range(300)))
        prepare([str(tmp_path / "text.txt")], tmp_path / "new", vocab_size=290)
        other = {"data": {"path": str(tmp_path / "new")}}
        self.check(found(**other), "another tokenizer than the baseline's: compare bits per byte")


class TestARunThatFailed:
    def test_counts_as_a_model_that_knows_nothing_and_is_told_first(self, plan):
        found = judged(plan("a", "b"), {"a": [3.0, 3.1, 3.05], "b": [2.9, None, 2.95]})
        arm = found["arms"][1]
        assert [run["outcome"] for run in arm["runs"]] == ["ok", "diverged", "ok"]
        assert [run["raw_loss"] for run in arm["runs"]] == [2.9, None, 2.95]
        assert arm["mean"] == pytest.approx((2.9 + UNIFORM + 2.95) / 3)
        versus = arm["versus"]
        assert versus["verdict"] == (
            "1 of 3 runs diverged; of all runs, with losses capped at ln V: not distinguishable at this scale"
        )
        assert (versus["capped"], versus["smallest_visible"]) == (True, None)
        assert versus["p_holm"] == versus["p"] > 0.05

    def test_of_the_baseline_is_told_too(self, plan):
        found = judged(plan("a", "b"), {"a": [3.0, None, None], "b": [2.9, 2.9, 2.95]})
        assert found["arms"][1]["versus"]["verdict"].startswith("2 of 3 baseline runs diverged; of all runs, ")

    def test_in_every_seed_is_worse_than_one_that_did_not(self, plan):
        found = judged(plan("a", "b"), {"a": [3.0, 3.01, 3.02], "b": [None] * 3})
        assert "with losses capped at ln V: worse by 2.69" in found["arms"][1]["versus"]["verdict"]

    def test_in_every_seed_of_both_arms_leaves_no_verdict(self, plan):
        collapsed = [result(loss, outcome="collapsed") for loss in (5.5, 5.51, 5.52)]
        versus = judged(plan("a", "b"), {"a": [None] * 3, "b": collapsed})["arms"][1]["versus"]
        assert versus["verdict"] == (
            "both failed in every run: 3 of 3 runs collapsed to unigram level, 3 of 3 baseline runs diverged"
        )
        assert (versus["p_holm"], versus["smallest_visible"]) == (None, None)
        assert judged(plan("a", "b"), {"a": [None] * 3, "b": [None] * 3})["budgets"] == []


class TestTheFile:
    def test_tells_what_differs_and_what_is_shared(self, plan):
        found = judged(plan("a", "b", "c"), {"a": [3.0, 3.1, 3.2], "b": [2.9, 3.2, 3.0], "c": [2.0, 2.1, 2.2]})
        assert found["differs"] == ["model.norm.eps"]
        assert [arm["options"] for arm in found["arms"]] == [{"model.norm.eps": 10.0**-i} for i in range(3)]
        assert found["recipe"]["training.steps"] == 12
        assert not {"model.norm.eps", "name", "output_dir", "seed"} & found["recipe"].keys()
        assert (found["baseline"], found["seeds"], found["paired"]) == ("a", [0, 1, 2], True)
        assert found["ceiling"] == UNIFORM
        assert found["warnings"][0] == "of before"
        assert "tuned for none" in found["warnings"][1]
        assert found["arms"][0]["versus"] is None

    @pytest.mark.parametrize(
        ("options", "same"),
        [
            ({"model": {"norm": {"kind": "layernorm"}}}, True),
            ({"training": {"optimizer": {"learning_rate": 3e-3}}}, True),
            ({"model": {"d_model": 64}}, False),
            ({"data": {"mask_documents": True}}, False),
            ({"model": {"norm": {"kind": "layernorm"}}, "seed": 9}, False),
        ],
    )
    def test_tells_whether_runs_of_one_seed_begin_alike(self, experiment, options, same):
        arms = (Arm("a", experiment()), Arm("b", experiment(**options)))
        found = judged(Plan(arms, "a", 2, None, ()), {"a": [3.0, 3.1], "b": [2.9, 3.2]})
        assert found["same_start"] == same

    def test_warns_of_runs_that_did_not_go_at_one_speed(self, plan):
        slow = [result(2.9, seed, seconds_per_token=0.01 * (1 + 0.06 * seed)) for seed in range(3)]
        warnings = judged(plan("a", "b"), {"a": [3.0, 3.1, 3.2], "b": slow})["warnings"]
        assert warnings[-1] == (
            "b: its runs went at 89 to 100 tokens/s, with --jobs 2: losses at equal seconds are rough"
        )
        assert not any(warning.startswith("a: ") for warning in warnings)

    def test_holds_the_tuning_of_each_arm(self, plan):
        tuned = plan("a", "b", grid=())
        points = tuple(result(loss, 9, rate=rate) for loss, rate in ((3.0, 1e-3), (2.5, 2e-3), (4.0, 4e-3)))
        tunings = {"a": Tuning(9, points), "b": Tuning(9, points[:2])}
        found = judged(tuned, {"a": [3.0] * 3, "b": [2.9] * 3}, tunings)
        a, b = (arm["tuning"] for arm in found["arms"])
        assert [point["learning_rate"] for point in a["points"]] == [1e-3, 2e-3, 4e-3]
        assert (a["best_at_edge"], b["best_at_edge"]) == (False, True)
        assert a["sensitivity"] == pytest.approx((0.5 + 0 + 1.5) / 3)
        assert any(warning.startswith("b: the best learning rate, 0.002,") for warning in found["warnings"])

    def test_is_read_as_a_table(self, plan):
        text = render(judged(plan("a", "longer"), {"a": [3.0, 3.1, 3.2], "longer": [2.9, 2.95, 3.0]}))
        lines = text.splitlines()
        assert lines[0] == "made-up: against a"
        assert lines[1].startswith("  longer  ")
        header = next(line for line in lines if line.startswith("arm "))
        rows = [lines[lines.index(header) + i] for i in (1, 2)]
        assert rows[0].endswith("baseline")
        assert len(rows[1]) == len(header)
        assert "warning: of before" in lines


class TestEqualBudgets:
    def budgets(self, plan, **results) -> dict:
        arms = plan(*results).arms
        return {each.kind: each for each in equal_budgets(results, {arm.name: arm.resolved for arm in arms})}

    def test_of_arms_alike_are_their_final_losses(self, plan):
        found = self.budgets(plan, a=[result(3.0), result(3.2)], b=[result(2.0), result(2.2)])
        for kind, at in (("tokens", 3000), ("seconds", 30)):
            assert (found[kind].at, found[kind].mid_run) == (at, False)
            assert found[kind].losses == pytest.approx({"a": 3.1, "b": 2.1})

    def test_read_the_longer_runs_between_their_evaluations(self, plan):
        slow = result(3.0, seconds_per_token=0.02, curve=(Reading(0, 6.0), Reading(2000, 4.0), Reading(3000, 3.0)))
        found = self.budgets(plan, a=[result(3.5)], b=[slow])
        assert (found["seconds"].at, found["seconds"].mid_run) == (30, True)
        assert found["seconds"].losses == pytest.approx({"a": 3.5, "b": 6.0 - 2.0 * 30 / 40})
        assert not found["tokens"].mid_run

    def test_take_an_arm_s_median_speed_that_no_lucky_run_sets(self, plan):
        lucky = [result(3.0, seconds_per_token=pace) for pace in (0.0001, 0.01, 0.0101)]
        found = self.budgets(plan, a=[result(3.5)] * 3, b=lucky)
        assert (found["seconds"].at, found["seconds"].mid_run) == (30, False)

    def test_count_the_seconds_of_a_random_warm_up(self, experiment):
        arms = [Arm("a", experiment()), Arm("b", experiment(random_warmup={"kind": "gaussian", "steps": 6}))]
        found = equal_budgets({"a": [result(3.0)], "b": [result(3.0)]}, {arm.name: arm.resolved for arm in arms})
        seconds = next(each for each in found if each.kind == "seconds")
        assert (seconds.at, seconds.mid_run) == (30, True)
        assert seconds.losses["b"] == pytest.approx(UNIFORM + (3.0 - UNIFORM) * (3000 - 6 * 256) / 3000)

    def test_count_the_flops_of_a_random_warm_up(self, experiment):
        plain, warmed = (
            Arm(name, experiment(random_warmup=warmup))
            for name, warmup in (("a", None), ("b", {"kind": "gaussian", "steps": 6}))
        )
        results = {"a": [result(3.0)], "b": [result(3.0)]}
        found = equal_budgets(results, {arm.name: arm.resolved for arm in (plain, warmed)})
        flops = next(each for each in found if each.kind == "flops")
        assert flops.at == 3000 * plain.resolved.flops_per_token
        spent = flops.at / plain.resolved.flops_per_token - 6 * 256
        assert flops.losses["b"] == pytest.approx(UNIFORM + (3.0 - UNIFORM) * spent / 3000)

    def test_count_a_diverged_run_at_its_ceiling_behind_its_end(self, plan):
        found = self.budgets(plan, a=[result(3.0)], b=[result(None)])
        assert found["tokens"].at == 3000
        assert found["tokens"].losses == pytest.approx({"a": 3.0, "b": UNIFORM})


class TestTuning:
    def test_goes_on_where_the_best_lies_at_an_edge(self):
        def grid(*losses: float) -> Tuning:
            return Tuning(0, tuple(result(loss, rate=2.0**i) for i, loss in enumerate(losses)))

        assert grid(3.0, 2.0, 4.0).beyond == []
        assert grid(2.0, 3.0, 4.0).beyond == [0.5]
        assert grid(4.0, 3.0, 2.0).beyond == [8.0]
        assert grid(3.0).beyond == [0.5, 2.0]

    def test_goes_down_where_all_diverged(self):
        assert Tuning(0, tuple(result(None, rate=rate) for rate in (1.0, 2.0, 4.0))).beyond == [0.5]

    def test_has_a_seed_of_its_own_whatever_the_number_of_seeds(self, plan):
        few, many = plan("a", "b", count=3), plan("a", "b", count=1000)
        assert tuning_seed(few) == tuning_seed(many)
        assert tuning_seed(few) not in many.seeds(many.arms[0])


def test_the_unigram_loss_is_the_cross_entropy_of_smoothed_counts_in_plain_python(corpus: Path):
    from collections import Counter

    from shearling.data.shards import open_dataset
    from shearling.data.stream import EvaluationSet

    train = open_dataset(corpus, "train")
    counts = Counter(train.tokens(0, train.total_tokens).tolist())
    targets = EvaluationSet.take(open_dataset(corpus, "validation"), 500).tokens.tolist()[1:]
    total = train.total_tokens + train.manifest.tokenizer.vocab_size
    expected = -math.fsum(math.log((counts[token] + 1) / total) for token in targets) / len(targets)
    assert unigram_loss(corpus, 500) == pytest.approx(expected)
