"""The race of recipes: who is compared with whom, and by what."""

import json
import math

import pytest
import torch
import yaml

from shearling.bench import recipe_peer
from shearling.bench.recipe import bench_recipe, race_table
from shearling.errors import UserError

SHAPE = {"d_model": 64, "n_layers": 2, "n_heads": 2, "intermediate_size": 128, "vocab_size": 300, "max_seq_len": 64}


@pytest.fixture
def config(tmp_path):
    """`config("quick", learning_rate=…)`: the file of an experiment."""

    def write(name: str, **optimizer) -> str:
        path = tmp_path / f"{name}.yaml"
        training = {
            "minutes": 1, "tokens_per_update": 256, "evaluate_every": None, "compile": False,
            "optimizer": optimizer, "schedule": {"warmup_steps": 2},
        }  # fmt: skip
        data = {"path": "elsewhere", "seq_len": 32, "validation_tokens": 1000}
        experiment = {"name": name, "output_dir": "elsewhere", "model": SHAPE, "data": data, "training": training}
        path.write_text(yaml.safe_dump(experiment))
        return str(path)

    return write


def race(configs, tmp_path, corpus, **options):
    given = {"baseline": "transformers", "model": "7M", "minutes": 0.25, "share": 1.0, "seeds": 1, "say": print}
    return bench_recipe(configs, data=corpus, out=tmp_path / "race", **{**given, **options})


def test_the_better_recipe_is_seen_to_be_better(tmp_path, corpus, config):
    good, bad = config("good", learning_rate=3e-3), config("bad", learning_rate=1e-7)
    results = race([good], tmp_path, corpus, baseline=bad)
    assert results["recipes"]["good"]["below_baseline"] == 1
    assert results["recipes"]["good"]["margin"] > 0.5
    assert (tmp_path / "race" / "race.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "race" / "race.json").read_text())["target_mean"] == results["target_mean"]
    assert "1 of 1" in race_table(results)


def test_two_recipes_of_one_name_are_refused(tmp_path, corpus, config):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "good.yaml"
    other.write_text("")
    with pytest.raises(UserError, match="called good"):
        race([config("good"), str(other)], tmp_path, corpus)


ORDER = {"batch": 8, "seq_len": 32, "validation_tokens": 1000, "threads": 1, "seed": 0, "model": SHAPE}


class TestThePeer:
    @pytest.fixture
    def run(self, corpus, monkeypatch):
        pytest.importorskip("transformers")
        monkeypatch.setattr(recipe_peer, "cxx_compiler", lambda: None)
        return recipe_peer.Run({**ORDER, "data": str(corpus)})

    def test_begins_untrained_although_it_was_tried(self, run):
        before = run._evaluate()["loss"]
        assert before == pytest.approx(math.log(300), abs=0.2)
        assert not run.optimizer.state

    def test_learns_within_its_time(self, run):
        results = run.train(4.0)
        assert results["seconds"] == pytest.approx(4, abs=1)
        assert results["loss"] < 0.7 * math.log(300)
        assert results["tokens"] == len(results["curve"]) * 8 * 32
        assert torch.tensor([seconds for seconds, _ in results["curve"]]).diff().min() > 0

    def test_follows_llm_baselines_schedule(self):
        assert [recipe_peer._factor(done) for done in (0.0, 0.025, 0.05, 1.0)] == pytest.approx([0, 0.5, 1, 0.1])
        assert recipe_peer._factor(0.525) == pytest.approx(0.55)
