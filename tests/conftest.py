"""What every test can ask for."""

import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# Tiny models gain nothing from threads, and lose a hundredfold where another process keeps a core busy. Set before
# torch is imported, and for the processes that tests start: results are bit-identical for one thread count.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from shearling.data.prepare import prepare
from shearling.training.spec import ExperimentSpec

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of measurement data. Absent: the test is skipped, but where CI=true promises it, that is a failure."""
    folder = Path(os.environ.get("SHEARLING_ASSETS", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        reason = f"no measurement data at {folder}: set SHEARLING_ASSETS to its folder"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Token shards of made-up sentences that a small model learns quickly."""
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("corpus")
    names, verbs, things = (
        ("Lily", "Tom", "Mia", "Ben"),
        ("saw", "took", "lost", "found"),
        ("ball", "cat", "hat", "tree"),
    )
    stories = [
        " ".join(
            f"{draw.choice(names)} {draw.choice(verbs)} a {draw.choice(things)}." for _ in range(draw.randint(3, 12))
        )
        for _ in range(400)
    ]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    prepare([str(folder / "stories.txt")], folder / "shards", vocab_size=300)
    return folder / "shards"


@pytest.fixture(scope="session")
def make_experiment(corpus):
    """Makes an experiment of a tiny model with its run below a folder: `make_experiment(folder, seed=1)`."""

    def make(folder: Path, **options: Any) -> ExperimentSpec:
        base = {
            "name": "tiny",
            "output_dir": str(folder / "run"),
            "model": {
                "d_model": 32, "n_layers": 2, "n_heads": 2, "intermediate_size": 64,
                "vocab_size": 300, "max_seq_len": 32,
            },
            "data": {"path": str(corpus), "seq_len": 32, "validation_tokens": 1000},
            "training": {
                "steps": 12, "tokens_per_update": 256, "micro_batch": 4, "evaluate_every": 6, "save_every": 2,
                "schedule": {"warmup_steps": 2}, "optimizer": {"learning_rate": 1e-2},
            },
        }  # fmt: skip
        return ExperimentSpec.model_validate(_merged(base, options))

    return make


@pytest.fixture
def experiment(make_experiment, tmp_path):
    """The same below the test's own folder: `experiment(training={"steps": 5}, seed=1)`."""
    return partial(make_experiment, tmp_path)


def _merged(base: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    if not {"tokens", "flops", "minutes"}.isdisjoint(options.get("training", {})):
        base = {**base, "training": {k: v for k, v in base["training"].items() if k != "steps"}}
    merged = dict(base)
    for key, value in options.items():
        merged[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return merged
