"""The statistics of a comparison, against scipy's tests, published power tables and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from shearling.experiments.statistics import (
    holm,
    independent_difference,
    learning_rate_sensitivity,
    paired_difference,
    smallest_visible,
)


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


class TestAPairedDifference:
    @pytest.mark.parametrize("n", [2, 3, 10])
    def test_is_scipy_s_paired_t_test(self, n):
        arm, baseline = (3 + 0.1 * draws(n, 2, n)).tolist()
        got, expected = paired_difference(arm, baseline), stats.ttest_rel(arm, baseline)
        interval = expected.confidence_interval(0.95)
        assert got.n == n
        assert got.difference == pytest.approx(np.mean(arm) - np.mean(baseline))
        assert got.sd == pytest.approx(np.std(np.subtract(arm, baseline), ddof=1))
        assert (got.p, got.low, got.high) == pytest.approx((expected.pvalue, interval.low, interval.high))

    def test_of_one_seed_has_no_interval(self):
        got = paired_difference([3.1], [3.0])
        assert got.difference == pytest.approx(0.1)
        assert {got.low, got.high, got.p, got.sd, got.smallest_visible} == {None}

    def test_without_noise_is_certain(self):
        same = paired_difference([3.0, 2.0], [3.0, 2.0])
        assert (same.difference, same.low, same.high, same.p, same.sd, same.smallest_visible) == (0, 0, 0, 1, 0, 0)
        shifted = paired_difference([3.5, 2.5], [3.0, 2.0])
        assert (shifted.difference, shifted.low, shifted.high, shifted.p, shifted.sd) == (0.5, 0.5, 0.5, 0, 0)

    def test_with_rounding_for_noise_stays_a_number(self):
        got = paired_difference([2.2, 1.1, 3.3], [2.1, 1.0, 3.2])
        assert all(math.isfinite(value) for value in vars(got).values())

    @pytest.mark.parametrize("n", [2, 3, 5])
    def test_has_an_interval_that_holds_the_truth_in_95_of_100_comparisons(self, n):
        truth, repetitions = 0.03, 2000
        noise = 0.01 * draws(n, repetitions, 2, n)
        found = [paired_difference((truth + arm).tolist(), baseline.tolist()) for arm, baseline in noise]
        held = sum(each.low <= truth <= each.high for each in found)
        assert abs(held - 0.95 * repetitions) < 4 * math.sqrt(0.95 * 0.05 * repetitions)


class TestADifferenceOfIndependentSamples:
    @pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 7), (12, 5)])
    def test_is_scipy_s_welch_test(self, n, m):
        arm, baseline = 3 + draws(n, n), 2.9 + 0.2 * draws(m + 50, m)
        got = independent_difference(arm.tolist(), baseline.tolist())
        expected = stats.ttest_ind(arm, baseline, equal_var=False)
        interval = expected.confidence_interval(0.95)
        assert (got.p, got.low, got.high) == pytest.approx((expected.pvalue, interval.low, interval.high))

    def test_without_noise_is_certain(self):
        assert independent_difference([1.0, 1.0], [1.0, 1.0]).p == 1
        assert independent_difference([2.0, 2.0], [1.0, 1.0]).p == 0

    def test_of_one_seed_has_no_interval(self):
        assert independent_difference([1.0], [2.0]).p is None


class TestTheSmallestVisibleEffect:
    @pytest.mark.parametrize(("n", "effect"), [(2, 11.549890), (3, 3.264044), (5, 1.681997), (34, 0.495029)])
    def test_of_pairs_is_statsmodels_s(self, n, effect):
        """statsmodels 0.15, TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8), in units of the pairs' sd."""
        assert smallest_visible(1 / math.sqrt(n), n - 1) == pytest.approx(effect, rel=1e-5)

    def test_of_two_samples_is_r_s(self):
        """The example of R's power.t.test: n = 20 in each group, delta = 1, sd = 1 have power 0.8689528."""
        assert smallest_visible(math.sqrt(2 / 20), 38, power=0.8689528) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("n", [3, 4])
    def test_is_found_in_80_of_100_simulated_comparisons(self, n):
        effect, repetitions = smallest_visible(0.01 / math.sqrt(n), n - 1), 20_000
        pairs = effect + 0.01 * draws(n, repetitions, n)
        found = (stats.ttest_1samp(pairs, 0, axis=1).pvalue < 0.05).mean()
        assert found == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / repetitions))

    @pytest.mark.parametrize("freedom", [1, 1.05, 2.7, 29, 5000])
    @pytest.mark.parametrize("level", [0.05, 0.05 / 40])
    def test_exists_for_any_degrees_of_freedom(self, freedom, level):
        normal = stats.norm.ppf(0.8) + stats.norm.isf(level / 2)
        assert smallest_visible(1.0, freedom, level=level) >= normal * (1 - 1e-6)

    @pytest.mark.parametrize("test", [paired_difference, independent_difference])
    def test_grows_with_the_comparisons_that_share_the_level(self, test):
        arm, baseline = (3 + 0.1 * draws(0, 2, 5)).tolist()
        alone, among = test(arm, baseline), test(arm, baseline, 4)
        assert among.smallest_visible > alone.smallest_visible
        assert (among.low, among.high, among.p) == (alone.low, alone.high, alone.p)

    def test_is_found_after_holm_in_80_of_100_though_no_other_arm_differs(self):
        """The worst case of Holm's: the one true difference is tested at the level divided by all comparisons."""
        n, arms, repetitions = 5, 4, 4000
        effect = smallest_visible(0.01 / math.sqrt(n), n - 1, level=0.05 / arms)
        pairs = 0.01 * draws(1, repetitions, arms, n)
        pairs[:, 0] += effect
        p_values = stats.ttest_1samp(pairs, 0, axis=2).pvalue
        found = sum(holm(row)[0] < 0.05 for row in p_values.tolist()) / repetitions
        assert 0.8 - 4 * math.sqrt(0.16 / repetitions) < found < 0.85


class TestHolmsAdjustment:
    def test_is_statsmodels_s(self):
        """statsmodels 0.15, multipletests([0.01, 0.04, 0.03, 0.005], method="holm")."""
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_changes_nothing_of_a_single_test_and_stays_within_one(self):
        assert holm([]) == []
        assert holm([0.3]) == [0.3]
        assert holm([0.6, 0.9]) == [1.0, 1.0]


class TestLearningRateSensitivity:
    def test_is_the_mean_excess_on_a_geometric_grid(self):
        assert learning_rate_sensitivity([1e-3, 1e-2, 1e-1], [3.0, 2.0, 5.0]) == pytest.approx((1 + 0 + 3) / 3)

    def test_does_not_depend_on_how_densely_a_part_of_the_grid_is_covered(self):
        """Points of the same loss at a refined end stand for the same stretch of learning rates."""
        coarse = learning_rate_sensitivity([1, 2, 4, 8, 16, 32, 64, 128], [2.0] * 4 + [5.0] * 4)
        fine = learning_rate_sensitivity([1, 2, 4, 8, *(16 * 2 ** (i / 4) for i in range(13))], [2.0] * 4 + [5.0] * 13)
        assert fine == pytest.approx(coarse, abs=0.1)

    def test_is_zero_where_nothing_depends_on_it_and_unknown_of_one_point(self):
        assert learning_rate_sensitivity([1e-3, 2e-3], [3.0, 3.0]) == 0
        assert learning_rate_sensitivity([1e-3], [3.0]) is None
