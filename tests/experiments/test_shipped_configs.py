"""Every YAML file under configs/: read by the program, and by an editor."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from shearling.config import editor_schema
from shearling.data.stream import Batch
from shearling.experiments.summary import summarize
from shearling.models.layers.placements import PLACEMENTS
from shearling.training.resolve import load_experiment
from shearling.training.spec import ExperimentSpec
from shearling.training.state import build_state
from shearling.training.step import train_step

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("file", [file for file in FILES if "/training/" not in file])
def test_a_shipped_file_can_be_shown(file):
    assert summarize(file).parameters.total > 0


@pytest.mark.parametrize("file", [file for file in FILES if "/training/" in file])
def test_a_shipped_recipe_fits_an_experiment(file, tmp_path):
    top = tmp_path / "top.yaml"
    base = ROOT / "configs/experiments/preln.yaml"
    top.write_text(f"extends: [{base}, {ROOT / file}]\n")
    load_experiment(top)


def test_every_placement_has_an_experiment():
    kinds = {load_experiment(file)[0].value.model.placement.kind for file in FILES if "/experiments/" in file}
    assert kinds == PLACEMENTS.keys()


@pytest.mark.parametrize("file", [file for file in FILES if "/experiments/" in file])
def test_a_shipped_experiment_takes_a_step(file):
    overrides = ["seq_len=16", "tokens_per_update=32", "data.path=unused", "warmup_steps=0"]
    config = load_experiment(file, overrides)[0].value
    state = build_state(config, torch.device("cpu"), False)
    batch = Batch(np.random.default_rng(0).integers(0, 500, (2, 17)))
    losses = [
        train_step(state, batch, config, factor=1e-3 / config.training.optimizer.learning_rate)[0] for _ in range(4)
    ]
    assert state.progress.skipped == 0
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("file", FILES)
def test_a_shipped_file_fits_the_editor_s_schema(file):
    schema = json.loads((ROOT / "configs/schema.json").read_text())
    content = OmegaConf.to_container(OmegaConf.load(file))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(content)


@pytest.mark.parametrize("file", FILES)
def test_a_shipped_file_names_the_editor_s_schema(file):
    first = (ROOT / file).read_text().splitlines()[0]
    reference = first.removeprefix("# yaml-language-server: $schema=")
    assert ((ROOT / file).parent / reference).resolve() == ROOT / "configs/schema.json"


def test_the_editor_s_schema_is_up_to_date():
    """If not: shearling schema --out configs/schema.json"""
    assert json.loads((ROOT / "configs/schema.json").read_text()) == editor_schema(ExperimentSpec)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"d_mode": 3}},
        {"model": {"norm": {"kind": "layernom"}}},
        {"training": {"precision": "fp17"}},
        {"extends": {"a": 1}},
        {"steps": 3},
    ],
)
def test_the_editor_s_schema_refuses_what_loading_refuses(content):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, editor_schema(ExperimentSpec))
