"""Paired tests and intervals against enumeration and against scipy's own."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from ance_cli.evaluation.significance import confidence_interval, holm, paired_test


def scores(num_queries, shift=0.0, seed=0):
    """Two runs' values for each query, the second better by `shift` on average."""
    rng = np.random.default_rng(seed)
    first = rng.random(num_queries)
    return first.tolist(), (first + rng.normal(shift, 0.2, num_queries)).tolist()


def every_flip(first, second):
    """Two-sided p: the share of all sign flips with a mean at least as far from zero."""
    differences = np.subtract(second, first)
    seen = abs(differences.mean())
    flips = np.array(list(product([1, -1], repeat=len(differences))))
    means = np.abs((flips * differences).mean(1))
    return float((means >= seen - 1e-12).mean())


@pytest.mark.parametrize("seed", range(6))
def test_eight_queries_are_tested_by_all_256_flips(seed):
    first, second = scores(8, shift=0.1, seed=seed)
    found = paired_test(first, second)
    assert found.p_randomisation == pytest.approx(every_flip(first, second), abs=1e-9)
    assert found.p_randomisation * 256 == pytest.approx(round(found.p_randomisation * 256))


def test_a_difference_on_every_query_has_the_smallest_possible_p():
    first = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    found = paired_test(first, [value + 0.05 + value / 100 for value in first])
    assert found.p_randomisation == pytest.approx(2 / 256)


@pytest.mark.parametrize("num_queries", [8, 60])
def test_the_t_test_is_scipys(num_queries):
    first, second = scores(num_queries, shift=0.05)
    assert paired_test(first, second).p_t == pytest.approx(stats.ttest_rel(second, first).pvalue)


def test_the_difference_is_the_second_run_minus_the_first():
    found = paired_test([0.5, 0.25, 0.0], [0.75, 0.25, 0.5])
    assert found.difference == pytest.approx(0.25)
    turned = paired_test([0.75, 0.25, 0.5], [0.5, 0.25, 0.0])
    assert turned.difference == pytest.approx(-0.25)
    assert (turned.p_randomisation, turned.p_t) == pytest.approx((found.p_randomisation, found.p_t))


def test_equal_runs_have_no_difference():
    found = paired_test([0.1, 0.5, 0.9], [0.1, 0.5, 0.9])
    assert (found.difference, found.p_randomisation, found.p_t) == (0.0, 1.0, 1.0)


def test_sampled_flips_are_close_to_the_t_test_and_seeded():
    first, second = scores(200, shift=0.03, seed=4)
    found = paired_test(first, second)
    assert 0.001 < found.p_t < 0.5
    assert found.p_randomisation == pytest.approx(found.p_t, rel=0.15, abs=0.01)
    assert paired_test(first, second) == found
    assert paired_test(first, second, seed=43).p_randomisation != found.p_randomisation


def test_sampled_flips_never_give_p_0():
    first, second = scores(200, shift=2.0)
    assert paired_test(first, second).p_randomisation == pytest.approx(2 / 10_001)


def test_one_query_proves_nothing():
    found = paired_test([0.25], [0.5])
    assert (found.difference, found.p_randomisation, found.p_t) == (0.25, 1.0, 1.0)


# ---------------------------------------------------------------- several tests


def rejected_step_by_step(p_values, level):
    """Holm's procedure as he states it: reject the smallest while p <= level / tests left."""
    left = dict(enumerate(p_values))
    rejected = set()
    while left:
        place = min(left, key=left.get)
        if left[place] > level / len(left):
            break
        rejected.add(place)
        del left[place]
    return rejected


@pytest.mark.parametrize("seed", range(8))
def test_adjusted_p_values_reject_what_holms_procedure_rejects(seed):
    rng = np.random.default_rng(seed)
    p_values = (rng.random(rng.integers(1, 12)) ** 4).round(3).tolist()
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    for level in (0.0011, 0.0101, 0.0501, 0.2003, 0.7):
        found = {place for place, value in enumerate(adjusted) if value <= level}
        assert found == rejected_step_by_step(p_values, level)


def test_holms_correction_of_known_p_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4]) == [0.4] and holm([]) == []
    assert holm([0.5, 0.6, 0.9]) == [1.0, 1.0, 1.0]


# ---------------------------------------------------------------- intervals


def test_the_interval_contains_the_mean_and_shrinks_with_more_queries():
    widths = []
    for num_queries in (10, 40, 160, 640):
        values = np.random.default_rng(num_queries).random(num_queries)
        low, high = confidence_interval(values)
        assert low < values.mean() < high
        widths.append(high - low)
        expected = 2 * 1.96 * values.std() / num_queries**0.5
        assert high - low == pytest.approx(expected, rel=0.15)
    assert widths == sorted(widths, reverse=True)


def test_a_higher_level_is_a_wider_interval():
    values = np.random.default_rng(0).random(50)
    low, high = confidence_interval(values, level=0.8)
    wider_low, wider_high = confidence_interval(values, level=0.99)
    assert wider_low < low < high < wider_high


def test_the_interval_is_seeded():
    values = np.random.default_rng(0).random(50)
    assert confidence_interval(values) == confidence_interval(values, seed=42)
    assert confidence_interval(values) != confidence_interval(values, seed=43)


@pytest.mark.parametrize("values", [[0.5], [0.25, 0.25, 0.25]])
def test_constant_values_have_an_interval_without_width(values):
    assert confidence_interval(values) == (values[0], values[0])
