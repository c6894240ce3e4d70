"""Learning rates: known points, torch's own scheduler, and what holds for every schedule."""

import itertools
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shearling.training.schedule_spec import (
    AnyScheduleSpec,
    ConstantSpec,
    CosineSpec,
    InverseSqrtSpec,
    LinearSpec,
    WSDSpec,
)
from shearling.training.schedules import SHAPES, learning_rate_factor

FLOORED = [
    lambda **options: CosineSpec(**options),
    lambda **options: LinearSpec(kind="linear", **options),
    *(
        lambda shape=shape, **options: WSDSpec(kind="wsd", shape=shape, **options)
        for shape in ("linear", "cosine", "sqrt", "square")
    ),
]


def by_steps(spec, total):
    return [learning_rate_factor(spec, step, step / total, total) for step in range(total + 1)]


@pytest.mark.parametrize("min_ratio", [0.0, 0.1])
def test_the_cosine_is_torch_s(min_ratio):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=min_ratio)
    expected = []
    for _ in range(51):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert by_steps(CosineSpec(warmup_steps=0, min_ratio=min_ratio), 50) == pytest.approx(expected, abs=1e-9)


def test_warm_up_is_a_straight_line_that_ends_where_the_cosine_begins():
    rates = by_steps(CosineSpec(warmup_steps=4, min_ratio=0.2), 12)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] < 1


def test_a_warm_up_that_was_begun_before_is_shorter_and_its_cosine_longer():
    spec = CosineSpec(warmup_steps=4, min_ratio=0.2)
    rates = [learning_rate_factor(spec, step, step / 12, 12, taken=3) for step in range(13)]
    assert rates[:2] == pytest.approx([0.8, 1.0])
    assert rates[1:] == pytest.approx(by_steps(CosineSpec(warmup_steps=0, min_ratio=0.2), 11))
    assert learning_rate_factor(spec, 0, 0.0, None, taken=4) == 1


def test_the_cosine_is_half_way_down_at_its_middle_and_at_its_floor_at_the_end():
    rates = by_steps(CosineSpec(warmup_steps=20, min_ratio=0.2), 120)
    assert rates[70] == pytest.approx(0.6)
    assert rates[120] == pytest.approx(0.2)


def test_in_time_the_cosine_spans_the_whole_time_and_warm_up_scales_it():
    spec = CosineSpec(warmup_steps=9, min_ratio=0.2)
    assert learning_rate_factor(spec, 4, 0.0, None) == pytest.approx(0.5)
    assert learning_rate_factor(spec, 4, 0.5, None) == pytest.approx(0.5 * 0.6)
    assert learning_rate_factor(spec, 500, 0.5, None) == pytest.approx(0.6)
    assert learning_rate_factor(spec, 500, 1.0, None) == pytest.approx(0.2)


def test_a_step_that_overruns_its_time_uses_the_floor():
    assert learning_rate_factor(CosineSpec(min_ratio=0.2), 500, 1.3, None) == pytest.approx(0.2)


@pytest.mark.parametrize("make", FLOORED)
@given(total=st.integers(1, 300), warmup=st.integers(0, 299), min_ratio=st.floats(0, 1))
def test_a_schedule_rises_to_the_peak_and_falls_to_its_floor(make, total, warmup, min_ratio):
    warmup = min(warmup, total - 1)
    rates = by_steps(make(warmup_steps=warmup, min_ratio=min_ratio), total)
    assert all(0 < rate <= 1 for rate in rates[:-1])
    assert rates[warmup] == pytest.approx(1)
    assert rates[:warmup] == sorted(rates[:warmup])
    falling = rates[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(falling))
    assert rates[-1] == pytest.approx(min_ratio)


def test_every_kind_that_can_be_chosen_has_its_shape():
    assert set(get_args(get_args(AnyScheduleSpec)[0])) == SHAPES.keys()


def test_the_line_is_torch_s():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=40)
    expected = []
    for _ in range(41):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    rates = by_steps(LinearSpec(kind="linear", warmup_steps=0, min_ratio=0.2), 40)
    assert rates == pytest.approx(expected, abs=1e-9)


def test_the_constant_stays_at_the_peak():
    assert set(by_steps(ConstantSpec(kind="constant", warmup_steps=3), 9)[3:]) == {1.0}


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - 0.5**0.5), ("square", 0.25)]
)
def test_a_cool_down_begins_in_its_time_and_has_its_shape(shape, middle):
    rates = by_steps(WSDSpec(kind="wsd", warmup_steps=0, cooldown=0.4, shape=shape, min_ratio=0.0), 100)
    assert set(rates[:61]) == {1.0}
    assert rates[61] < 1
    assert rates[80] == pytest.approx(middle)
    assert rates[100] == pytest.approx(0)


def test_in_time_a_cool_down_begins_when_its_share_of_the_time_is_left():
    spec = WSDSpec(kind="wsd", warmup_steps=10, cooldown=0.25, shape="linear")
    assert learning_rate_factor(spec, 500, 0.75, None) == 1
    assert learning_rate_factor(spec, 501, 0.875, None) == pytest.approx(0.5)
    assert learning_rate_factor(spec, 502, 1.0, None) == 0


def test_the_inverse_root_falls_with_the_steps_after_warm_up_whatever_the_horizon():
    spec = InverseSqrtSpec(kind="inverse_sqrt", warmup_steps=10, timescale=100)
    for total in (None, 1000, 5000):
        factors = [learning_rate_factor(spec, step, step / (total or 2000), total) for step in (10, 110, 310)]
        assert factors == pytest.approx([1, 0.5**0.5, 0.5])


def test_the_inverse_root_cools_down_to_zero_where_it_is_told_to():
    spec = InverseSqrtSpec(kind="inverse_sqrt", warmup_steps=0, timescale=100, cooldown=0.5)
    rates = by_steps(spec, 200)
    assert rates[100] == pytest.approx(0.5**0.5)
    assert rates[150] == pytest.approx(0.5 * (100 / 250) ** 0.5)
    assert rates[200] == 0
