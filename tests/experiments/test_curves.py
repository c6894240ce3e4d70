"""Pictures and tables of a run."""

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from shearling import pictures
from shearling.experiments.curves import draw_loss_curve, results_table
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder


def step(number: int, loss: float = 3.0) -> dict[str, float]:
    return {
        "step": number, "tokens": 1000 * number, "loss": loss, "learning_rate": 1e-3, "gradient_norm": 1.0,
        "tokens_per_second": 1.0, "mfu": 0.1, "seconds": float(number),
    }  # fmt: skip


def evaluation(number: int, loss: float = 3.5) -> dict[str, float]:
    return {
        "step": number, "tokens": 1000 * number, "validation_loss": loss, "perplexity": math.exp(loss),
        "bits_per_byte": loss / 3,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Makes a run folder with these lines of metrics."""

    def _run(*lines: dict[str, float]) -> RunFolder:
        run = RunFolder(tmp_path)
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run

    return _run


@pytest.fixture
def figure(monkeypatch):
    """Draws, and gives back the figure that was written."""
    written = []
    save = Figure.savefig

    def noted(self, *args, **options):
        written.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", noted)

    def _figure(run: RunFolder):
        draw_loss_curve(run, "a title")
        return written[-1]

    return _figure


def lines_by_label(figure) -> dict[str, list[tuple[float, float]]]:
    return {
        line.get_label().split(", at last")[0]: [tuple(map(float, xy)) for xy in line.get_xydata()]
        for line in figure.axes[0].lines
    }


class TestThePicture:
    def test_is_a_png_of_eight_by_five_and_a_half_inches_with_something_on_it(self, run):
        path = draw_loss_curve(run(evaluation(0, 6.0), *(step(i, 6 - i / 10) for i in range(1, 30))), "tiny")
        assert path.name == "loss_curve.png"
        with Image.open(path) as picture:
            picture.load()
            assert (picture.format, picture.size) == ("PNG", (1040, 715))
            pixels = np.asarray(picture.convert("L"))
        assert 0.5 < (pixels > 250).mean() < 0.99

    def test_leaves_no_figure_open_and_no_draft(self, run, tmp_path):
        before = plt.get_fignums()
        draw_loss_curve(run(evaluation(0), step(1)), "tiny")
        assert plt.get_fignums() == before
        assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "loss_curve.png"}

    def test_stays_the_old_one_where_the_new_one_cannot_be_written(self, run, monkeypatch):
        path = draw_loss_curve(run(evaluation(0), step(1)), "tiny")
        before = path.read_bytes()

        def full(*_):
            raise OSError(28, "full")

        monkeypatch.setattr(pictures, "write_atomically", full)
        with pytest.raises(OSError, match="full"):
            draw_loss_curve(run(evaluation(0), step(1), step(2)), "another")
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        "lines",
        [
            [evaluation(0)],
            [step(1)],
            [evaluation(0), step(1), evaluation(1)],
            [evaluation(0), {"step": 1, "skipped": 1}, step(2), {"step": 2, "tokens": 2000}],
            [{"step": 0, "tokens": 0}, {"step": 1, "skipped": 1}],
            [],
        ],
        ids=["no step", "no evaluation", "one step", "gaps", "nothing finite", "nothing"],
    )
    def test_can_be_drawn_of_a_run_with_only(self, run, lines):
        with Image.open(draw_loss_curve(run(*lines), "tiny")) as picture:
            picture.verify()


class TestTheCurves:
    def test_are_what_the_metrics_say(self, run, figure):
        shown = lines_by_label(figure(run(evaluation(0, 6.0), step(1, 5.0), step(2, 4.0), evaluation(2, 4.5))))
        assert shown["training, each step"] == [(0.001, 5.0), (0.002, 4.0)]
        assert shown["validation"] == [(0.0, 6.0), (0.002, 4.5)]

    def test_have_every_evaluation_though_not_every_step_is_logged(self, run, figure):
        shown = lines_by_label(figure(run(evaluation(0), step(3), evaluation(5), step(6), evaluation(7))))
        assert [x for x, _ in shown["validation"]] == [0.0, 0.005, 0.007]

    def test_say_the_last_figures(self, run, figure):
        legend = figure(run(evaluation(0, 6.0), step(1), evaluation(1, 3.3))).axes[0].get_legend()
        assert "validation, at last 3.300 nats, 1.100 bits per byte" in [text.get_text() for text in legend.get_texts()]

    def test_of_a_constant_loss_are_smoothed_to_that_constant(self, run, figure):
        shown = lines_by_label(figure(run(*(step(i, 3.0) for i in range(1, 9)))))
        assert [y for _, y in shown["training, smoothed"]] == pytest.approx([3.0] * 8)

    def test_are_smoothed_by_the_weighted_mean_of_what_came_before(self, run, figure):
        losses = [5.0, 1.0, 4.0, 2.0]
        shown = lines_by_label(figure(run(*(step(i, loss) for i, loss in enumerate(losses, 1)))))
        expected = [np.average(losses[:n], weights=0.9 ** np.arange(n)[::-1]) for n in range(1, 5)]
        assert [y for _, y in shown["training, smoothed"]] == pytest.approx(expected)


def test_a_run_that_logs_seldom_shows_its_evaluations(experiment, figure):
    config = experiment(training={"steps": 5, "evaluate_every": 2, "log_every": 3})
    train(config)
    shown = lines_by_label(figure(RunFolder(config.output_dir)))
    assert [x for x, _ in shown["validation"]] == pytest.approx([step * 256 / 1e6 for step in (0, 2, 4, 5)])


RESULTS = {
    "step": 20, "loss": 2.10311, "perplexity": 8.1916, "bits_per_byte": 1.36991,
    "first": {"step": 0, "loss": 5.7594, "perplexity": 31714.7, "bits_per_byte": 3.7516},
    "tokens": 5_120_000, "epochs": 0.3, "seconds": 41.6, "tokens_per_second": 125_876.4, "mfu": 0.127,
}  # fmt: skip


class TestTheTable:
    def test_has_the_figures_before_and_after_in_columns(self):
        lines = results_table(RESULTS).splitlines()
        assert [line.split()[-2:] for line in lines[:4]] == [
            ["before", "after"], ["5.7594", "2.1031"], ["31,714.7", "8.19"], ["3.7516", "1.3699"],
        ]  # fmt: skip
        assert len({len(line) for line in lines[:4]}) == 1

    def test_says_what_the_run_took(self):
        assert results_table(RESULTS).splitlines()[-1] == (
            "5,120,000 tokens (0.3 epochs) in 42 s: 125,876 tokens/s, 13% of the machine's matmul peak"
        )

    def test_says_of_a_diverged_run_that_it_is_not_finite(self):
        table = results_table({**RESULTS, "loss": None, "perplexity": None, "bits_per_byte": None})
        assert table.count("not finite") == 3


def test_results_of_a_diverged_run_are_strict_json(experiment):
    """A loss over 700 nats has no perplexity that a float holds, and JSON has no word for infinity."""
    config = experiment(model={"init_std": 1e4}, training={"steps": 1, "schedule": {"warmup_steps": 0}})
    train(config)
    run = RunFolder(config.output_dir)

    def refuse(word: str):
        raise AssertionError(word)

    results = json.loads(run.results.read_text(), parse_constant=refuse)
    assert results["first"]["perplexity"] is None
    assert results["first"]["loss"] > 700
    assert "not finite" in results_table(results)
    for line in run.metrics.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    draw_loss_curve(run, "diverged")
