"""What a report reads, and the shape it brings it into."""

import json
import math

import numpy as np
import pytest
from report_example import EVERY, FIRST, SEEDS, STEPS, TOKENS, make_comparison, make_results, make_run, write_lines

from shearling.errors import UserError
from shearling.experiments.report.data import (
    Arm,
    Comparison,
    Run,
    SingleRun,
    band,
    diagnostic_names,
    is_paired,
    measured,
    outcomes,
    read,
    thinned,
)


def evaluated(*points: tuple[float, float], outcome: str = "ok") -> Run:
    lines = [{"step": i, "tokens": tokens, "validation_loss": loss} for i, (tokens, loss) in enumerate(points)]
    return Run(None, outcome, lines, [], {})


def diagnosed(*lines: dict) -> Run:
    return Run(None, "ok", [], lines, {})


class TestABandOfCurves:
    def test_has_the_mean_and_the_extremes_over_the_seeds(self):
        found = band([evaluated((0, 6), (10, 3)), evaluated((0, 6), (10, 2)), evaluated((0, 6), (10, 2.5))])
        assert found.x.tolist() == [0, 10]
        assert (found.mean[-1], found.low[-1], found.high[-1]) == (2.5, 2, 3)

    def test_ends_where_the_first_run_ends_and_is_never_of_the_survivors_alone(self):
        found = band([evaluated((0, 6), (10, 3), (20, 2)), evaluated((0, 6), (10, 5), outcome="diverged")])
        assert found.x.tolist() == [0, 10]
        assert found.mean[-1] == 4
        assert [curve.tokens[-1] for curve in found.curves] == [20, 10]

    def test_interpolates_between_evaluations_of_runs_that_were_evaluated_elsewhere(self):
        found = band([evaluated((0, 4), (10, 2)), evaluated((0, 4), (5, 1), (10, 0))])
        assert found.x.tolist() == [0, 5, 10]
        assert found.mean.tolist() == [4, 2, 1]

    def test_counts_the_runs_that_were_never_evaluated(self):
        found = band([evaluated(), evaluated((0, 6), (10, 3))])
        assert (len(found.curves), found.of) == (1, 2)
        nothing = band([evaluated()])
        assert (nothing.curves, nothing.of, len(nothing.x)) == ((), 1, 0)

    def test_has_no_mean_where_the_runs_have_no_tokens_in_common(self):
        found = band([evaluated((200, 3), (400, 2)), evaluated((0, 6), outcome="diverged")])
        assert len(found.x) == len(found.mean) == 0
        assert len(found.curves) == 2

    def test_leaves_out_what_was_not_finite(self):
        run = Run(None, "ok", [{"step": 0, "tokens": 0, "validation_loss": 3.0}, {"step": 1, "tokens": 9}], [], {})
        assert band([run, evaluated((0, 3.0), (9, math.nan))]).x.tolist() == [0]


class TestADiagnostic:
    def test_is_the_mean_over_seeds_by_step_and_layer(self):
        found = measured([diagnosed({"step": 0, "a": [1, 2]}), diagnosed({"step": 0, "a": [3, 6]})], "a")
        assert found.steps.tolist() == [0]
        assert found.mean.tolist() == [[2, 4]]
        assert (found.low.tolist(), found.high.tolist()) == ([[1, 2]], [[3, 6]])

    def test_goes_as_far_as_every_seed(self):
        short, long = diagnosed({"step": 0, "a": 1}), diagnosed({"step": 0, "a": 1}, {"step": 5, "a": 2})
        assert measured([short, long], "a").steps.tolist() == [0]

    def test_is_not_a_number_where_it_is_of_one_seed(self):
        found = measured([diagnosed({"step": 0, "a": [1, None]}), diagnosed({"step": 0, "a": [1, 1]})], "a")
        assert found.mean[0, 0] == 1
        assert math.isnan(found.mean[0, 1])

    def test_may_be_missing_as_a_whole_at_a_step(self):
        found = measured([diagnosed({"step": 0, "a": None}, {"step": 1, "a": [1, 2]})], "a")
        assert np.isnan(found.mean).tolist() == [[True, True], [False, False]]

    def test_tells_how_many_seeds_measured_it(self):
        found = measured([diagnosed({"step": 0, "a": 1}), diagnosed()], "a")
        assert (found.steps.tolist(), found.seeds, found.of) == ([0], 1, 2)

    def test_is_empty_where_nobody_measured_it_or_at_no_common_step(self):
        nobody = measured([diagnosed({"step": 0, "a": 1})], "b")
        assert (len(nobody.steps), nobody.seeds, nobody.of) == (0, 0, 1)
        apart = measured([diagnosed({"step": 0, "a": 1}), diagnosed({"step": 1, "a": 1})], "a")
        assert (len(apart.steps), apart.seeds, apart.of) == (0, 2, 2)

    def test_names_are_told_apart_into_layered_and_scalar(self):
        run = diagnosed({"step": 0, "tokens": 1, "a": None, "s": 1}, {"step": 1, "tokens": 2, "a": [1], "s": None})
        assert diagnostic_names([Arm("arm", {}, (run,))]) == (["a"], ["s"])


def test_thinned_values_are_means_of_neighbours():
    assert thinned(np.arange(6.0), 3).tolist() == [0.5, 2.5, 4.5]
    assert thinned(np.arange(3.0), 300).tolist() == [0, 1, 2]
    assert thinned(np.arange(0.0)).tolist() == []


class TestReading:
    def test_a_comparison_gives_its_arms_with_their_runs(self, tmp_path):
        found = read(make_comparison(tmp_path))
        assert isinstance(found, Comparison)
        assert [arm.name for arm in found.arms] == ["preln", "postln", "peri_ln", "custom_norm"]
        assert [len(arm.runs) for arm in found.arms] == [len(SEEDS)] * 4
        assert outcomes(found.arms[1]) == {"ok": 2, "diverged": 1}
        tokens, losses = found.arms[0].runs[0].curve("validation_loss")
        assert (tokens[0], tokens[1], tokens[-1]) == (0, EVERY * TOKENS, STEPS * TOKENS)
        assert losses[0] == pytest.approx(FIRST, abs=0.05)

    def test_a_run_gives_its_results_and_its_whole_config(self, tmp_path):
        make_results(make_run(tmp_path, "solo", 2.3))
        found = read(tmp_path)
        assert isinstance(found, SingleRun)
        assert (found.name, found.results["loss"]) == ("example", 2.301)
        assert found.options["training.optimizer.learning_rate"] == 1e-3

    def test_a_run_that_has_not_ended_has_no_results(self, tmp_path):
        assert read(make_run(tmp_path, "solo", 2.3)).results is None

    def test_runs_whose_folders_are_gone_are_empty(self, tmp_path):
        make_comparison(tmp_path)
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        assert all(run.metrics == [] == run.diagnostics for arm in read(tmp_path).arms for run in arm.runs)


def test_a_comparison_needs_no_more_than_its_first_version_had(tmp_path):
    found = read(make_comparison(tmp_path))
    for arm in found.figures["arms"]:
        assert "paired" not in (arm["versus"] or {})
    assert [is_paired(found, arm) for arm in found.arms] == [True] * 4
    found.arms[2].figures["versus"]["paired"] = False
    assert [is_paired(found, arm) for arm in found.arms] == [True, True, False, True]


class TestARefusal:
    def test_of_a_folder_of_neither_sort_says_what_to_give(self, tmp_path):
        with pytest.raises(UserError, match=r"neither comparison\.json nor experiment_config\.yaml: give the folder"):
            read(tmp_path)

    @pytest.mark.parametrize("text", ["", "{", "[1]", '{"kind": "other", "version": 1}', '{"kind": "comparison"}'])
    def test_of_a_comparison_that_is_none_names_the_file(self, tmp_path, text):
        (tmp_path / "comparison.json").write_text(text)
        with pytest.raises(UserError, match=r"comparison\.json"):
            read(tmp_path)

    def test_of_another_version_says_to_run_again(self, tmp_path):
        (tmp_path / "comparison.json").write_text(json.dumps({"kind": "comparison", "version": 2}))
        with pytest.raises(UserError, match="of version 2, not 1: run the same `shearling compare` again"):
            read(tmp_path)

    @pytest.mark.parametrize(
        "place",
        [
            ("name",), ("arms",), ("budgets",), ("arms", 0, "runs"), ("arms", 1, "versus", "verdict"),
            ("arms", 1, "runs", 2, "loss"), ("arms", 0, "tuning", "points"), ("budgets", 1, "losses"),
        ],
        ids=str,
    )  # fmt: skip
    @pytest.mark.parametrize("spoil", [lambda part, key: part.pop(key), lambda part, key: part.update({key: object})])
    def test_of_a_comparison_without_a_key_names_the_key(self, tmp_path, place, spoil):
        make_comparison(tmp_path)
        figures = part = json.loads((tmp_path / "comparison.json").read_text())
        for key in place[:-1]:
            part = part[key]
        spoil(part, place[-1])
        (tmp_path / "comparison.json").write_text(json.dumps(figures, default=lambda _: [[None]]))
        with pytest.raises(UserError, match=rf"comparison\.json: {'.'.join(map(str, place))}.*: run the same"):
            read(tmp_path)

    def test_of_a_baseline_that_is_no_arm(self, tmp_path):
        make_comparison(tmp_path)
        text = (tmp_path / "comparison.json").read_text()
        (tmp_path / "comparison.json").write_text(text.replace('"baseline": "preln"', '"baseline": "prenl"'))
        with pytest.raises(UserError, match="baseline: prenl is none of the arms"):
            read(tmp_path)

    @pytest.mark.parametrize("file", ["metrics.jsonl", "diagnostics.jsonl"])
    def test_of_a_broken_line_names_file_and_line(self, tmp_path, file):
        make_run(tmp_path, "solo", 2.3)
        write_lines(tmp_path / file, [{"step": 0}])
        (tmp_path / file).write_text((tmp_path / file).read_text() + "oops\n")
        with pytest.raises(UserError, match=f"{file}:2"):
            read(tmp_path)


def test_a_comparison_that_is_not_finished_is_told_to_go_on(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="not finished: give its command again"):
        read(tmp_path)
