"""What follows from a config."""

from pathlib import Path
from typing import get_args

import pytest

from shearling.config.spec import kinds
from shearling.errors import UserError
from shearling.training.resolve import load_experiment, resolve
from shearling.training.spec import ExperimentSpec


def experiment(model=None, **training) -> ExperimentSpec:
    training = {"tokens_per_update": 4096, "schedule": {"warmup_steps": 2}, **training}
    data = {"path": Path("data"), "seq_len": 256}
    return ExperimentSpec.model_validate(
        {"name": "a", "output_dir": Path("o"), "data": data, "training": training, "model": model or {}}
    )


def test_tokens_become_the_nearest_number_of_steps():
    assert resolve(experiment(tokens=1e6)).total_steps == 244  # 244.14
    assert resolve(experiment(tokens=1e6)).total_tokens == 244 * 4096


def test_flops_become_as_many_steps_as_spend_them():
    resolved = resolve(experiment(flops=1e15))
    per_step = resolved.flops_per_token * 4096
    assert abs(resolved.total_flops - 1e15) <= per_step / 2
    assert resolved.total_flops == resolved.total_steps * per_step


def test_minutes_leave_the_number_of_steps_open():
    resolved = resolve(experiment(minutes=3))
    assert (resolved.total_steps, resolved.total_tokens, resolved.total_flops) == (None, None, None)


@pytest.mark.parametrize(
    ("horizon", "long"),
    [({"minutes": 1}, False), ({"minutes": 2}, True), ({"flops": 1e13}, False), ({"flops": 1e14}, True)],
)
def test_a_run_is_long_by_its_budget_alone(horizon, long):
    assert resolve(experiment(**horizon)).long is long


def test_the_three_counted_horizons_agree():
    by_steps = resolve(experiment(steps=300))
    assert resolve(experiment(tokens=by_steps.total_tokens)) == by_steps
    assert resolve(experiment(flops=by_steps.total_flops)) == by_steps


@pytest.mark.parametrize(("micro_batch", "count"), [(1, 16), (5, 4), (8, 2), (100, 1)])
def test_an_update_is_cut_into_micro_batches(micro_batch, count):
    resolved = resolve(experiment(steps=9, micro_batch=micro_batch))
    assert (resolved.sequences_per_update, resolved.micro_batches_per_update) == (16, count)
    assert resolved.micro_batch == min(micro_batch, 16)


def test_training_in_fp32_takes_sixteen_bytes_per_parameter_and_activations():
    resolved = resolve(experiment(steps=9, precision="fp32"))
    memory = resolved.memory
    assert memory.total - memory.activations == 16 * resolved.parameters.total


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(UserError, match=r"training\.schedule\.warmup_steps: 9 .* 9 steps"):
        resolve(experiment(steps=9, schedule={"warmup_steps": 9}))


def test_an_endless_horizon_is_refused():
    with pytest.raises(UserError, match=r"training\.tokens: 1e\+300"):
        resolve(experiment(tokens=1e300))


def test_loading_names_the_file_of_an_experiment_that_cannot_be_resolved(root):
    with pytest.raises(UserError, match=r"configs/experiments/preln\.yaml: training\.schedule\.warmup_steps"):
        load_experiment(root / "configs/experiments/preln.yaml", ["steps=3"])


def test_every_kind_that_can_be_chosen_has_its_arithmetic():
    from shearling.training.device import DTYPES
    from shearling.training.optimizer_spec import AnyOptimizerSpec
    from shearling.training.optimizers import OPTIMIZERS
    from shearling.training.resolve import BYTES

    known = get_args(get_args(AnyOptimizerSpec)[0])
    assert {kind for spec in known for kind in kinds(spec)} == OPTIMIZERS.keys()
    assert all(spec.moments >= 0 for spec in known)
    assert BYTES.keys() == DTYPES.keys()
