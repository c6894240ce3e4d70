"""`show`: what a config means, as data and as text."""

import json

import pytest

from shearling.experiments.show import render
from shearling.experiments.summary import as_data, learning_rates, summarize

PRELN = "configs/experiments/preln.yaml"


@pytest.fixture(autouse=True)
def _in_the_repository(root, monkeypatch):
    monkeypatch.chdir(root)


def test_every_option_is_shown_with_where_it_came_from():
    text = render(summarize(PRELN, ["micro_batch=4"]))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if len(line.split()) >= 3}
    assert rows["model.n_layers"] == ["6", "configs/models/llama-15m.yaml:5"]
    assert rows["training.micro_batch"][1:] == ["command", "line"]
    assert rows["model.init_std"] == ["0.02", "default"]


def test_figures_have_thousands_separators():
    text = render(summarize("configs/models/llama-71m.yaml"))
    assert "70,578,688" in text
    assert "37,810,688" in text


def test_a_model_alone_has_no_run():
    summary = summarize("configs/models/llama-71m.yaml", ["n_layers=2"])
    assert summary.run is None
    assert summary.model.n_layers == 2
    assert "learning rate" not in render(summary)


def test_the_data_are_json_and_hold_the_text_s_figures():
    data = json.loads(json.dumps(as_data(summarize(PRELN))))
    parameters = data["parameters"]
    assert parameters["total"] == parameters["non_embedding"] + parameters["embedding"] + parameters["head"]
    assert data["origins"].keys() == data["config"].keys()
    memory = data["memory_bytes"]
    assert memory.pop("total") == sum(memory.values())


def test_the_data_hold_all_that_the_text_says_of_the_equations():
    summary = summarize(PRELN, ["n_layers=16", "model.init=depth", "placement.kind=lns"])
    groups = {group["of"]: group["lines"] for group in as_data(summary)["equations"]}
    assert list(groups) == ["before the layers", "every layer (16)", "after the layers", "at first"]
    (line,) = [line for line in groups["at first"] if line.startswith("W_q")]
    assert line.endswith("0.005164, 0.005, layer by layer")
    assert "0.01414 in the second … 0.005 in the last" in render(summary)


def test_a_random_warm_up_is_listed_apart_from_the_horizon():
    plain = render(summarize(PRELN))
    text = render(summarize(PRELN, ["random_warmup={kind: dyck, steps: 300, schedule: continue}"]))
    [line] = [line for line in text.splitlines() if "random warm-up" in line]
    assert line.split()[:5] == ["random", "warm-up", "1,228,800", "tokens", "dyck,"]
    assert "300 steps, 1.42e+13 FLOPs" in line
    assert "warm-up: 100 steps" in plain
    assert "warm-up: 0 steps" in text
    assert [line for line in plain.splitlines() if "8,192,000" in line] == [
        line for line in text.splitlines() if "8,192,000" in line
    ]


def plot_of(*overrides: str) -> list[str]:
    text = render(summarize(PRELN, ["learning_rate=1e-3", *overrides]))
    return [line for line in text.splitlines() if "┤" in line]


def test_the_plot_rises_to_the_peak_and_falls_to_the_floor():
    rows = plot_of("steps=64", "warmup_steps=16", "min_ratio=0.5")
    bars = [row.partition("┤")[2].ljust(64) for row in rows]
    heights = [sum(row[column] != " " for row in bars) for column in range(64)]
    assert heights[0] == 1
    assert heights[15:18] == [8, 8, 8]
    assert heights[-1] == 4  # half of eight rows
    assert bars[0][16] == "█"
    assert bars[4][-1] == "█"
    assert heights[:16] == sorted(heights[:16])
    assert heights[16:] == sorted(heights[16:], reverse=True)


def test_the_plot_names_peak_and_floor():
    rows = plot_of("min_ratio=0.5")
    assert rows[0].split()[0] == "0.001"
    assert [row.split()[0] for row in rows if row.split()[0] == "0.0005"] == ["0.0005"]


def test_learning_rates_begin_in_warm_up_and_end_at_the_floor():
    for horizon in ("steps=2000", "minutes=5"):
        rates = [rate for _, rate in learning_rates(summarize(PRELN, [horizon, "learning_rate=1e-3"]).run, 101)]
        assert rates[0] == pytest.approx(1e-3 / 101)
        assert rates[-1] == pytest.approx(1e-4)
