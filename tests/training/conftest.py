"""What tests of training can ask for."""

import pytest

from shearling.training.spec import ExperimentSpec


@pytest.fixture
def warmed(experiment):
    """An experiment with a phase of five steps: `warmed("dyck", k=3)`, `warmed(keep="moments", seed=1)`."""

    def make(kind: str = "iid_shifted", **options) -> ExperimentSpec:
        sections = {
            key: options.pop(key) for key in ("model", "data", "training", "seed", "output_dir") & options.keys()
        }
        return experiment(random_warmup={"kind": kind, "steps": 5, **options}, **sections)

    return make
