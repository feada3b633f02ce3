from __future__ import annotations

import numpy as np
import pytest

from prefixlab.bench.metrics.intervals import (
    FEWEST_VALUES,
    Interval,
    of_mean,
    of_percentile,
    of_ratio,
    of_repeats,
    student_t,
)

MEAN = 10.0
FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def correlated(phi: float, num_values: int, num_series: int) -> FloatArray:
    """AR(1) series around MEAN, from their stationary distribution, shape (num_series, num_values)."""
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((num_values, num_series))
    series = np.empty_like(noise)
    series[0] = noise[0] / np.sqrt(1 - phi**2)
    for i in range(1, num_values):
        series[i] = phi * series[i - 1] + noise[i]
    return series.T + MEAN


def covers(interval: Interval | None, truth: float) -> bool:
    return interval is not None and interval.low <= truth <= interval.high


def independent(values: FloatArray) -> Interval:
    """The textbook interval, which takes the values to be independent."""
    reach = 1.96 * float(values.std(ddof=1)) / np.sqrt(len(values))
    return Interval(values.mean() - reach, values.mean() + reach, "independent", len(values))


def test_on_a_correlated_series_batch_means_cover_the_truth_where_the_textbook_does_not() -> None:
    series = correlated(0.8, 2000, 200)
    assert 0.91 <= np.mean([covers(of_mean(values), MEAN) for values in series]) <= 0.99
    assert np.mean([covers(independent(values), MEAN) for values in series]) < 0.7


def test_on_independent_values_both_cover_the_truth() -> None:
    series = correlated(0.0, 500, 200)
    assert 0.91 <= np.mean([covers(of_mean(values), MEAN) for values in series]) <= 0.99
    assert 0.91 <= np.mean([covers(independent(values), MEAN) for values in series]) <= 0.99


def test_percentiles_of_a_correlated_series_are_covered_too() -> None:
    phi = 0.8
    p90 = MEAN + 1.2816 / np.sqrt(1 - phi**2)
    found = [of_percentile(values, 90) for values in correlated(phi, 2000, 200)]
    assert 0.9 <= np.mean([covers(interval, p90) for interval in found if interval]) <= 0.99


def test_a_trend_or_too_few_values_have_no_interval() -> None:
    assert of_mean(np.arange(1000.0)) is None
    assert of_mean(np.ones(FEWEST_VALUES - 1)) is None
    assert of_percentile(correlated(0, 100, 1)[0], 99) is None, "nobody knows how far it reaches"
    assert of_percentile(np.ones(5), 50) is None
    assert of_mean([]) is None


def test_values_that_do_not_vary_have_an_interval_of_no_width() -> None:
    interval = of_mean(np.full(100, 3.0))
    assert interval is not None
    assert (interval.low, interval.high) == (3.0, 3.0)


def test_a_ratio_is_of_sums_and_not_of_means_of_ratios() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 9, 600).astype(np.float64)
    interval = of_ratio(weights * 2.0, weights)
    assert interval is not None
    assert interval.low == pytest.approx(2.0)
    assert interval.high == pytest.approx(2.0)


def test_over_repeats_three_are_needed_and_unmeasured_ones_do_not_count() -> None:
    assert of_repeats([1.0, 2.0]) is None
    assert of_repeats([1.0, None, 2.0]) is None
    interval = of_repeats([1.0, 2.0, 3.0])
    assert interval is not None
    assert interval.half_width == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)
    assert interval.low + interval.half_width == pytest.approx(2.0)
    assert interval.num_parts == 3


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (9, 2.26216), (29, 2.04523), (100, 1.98397)]
)
def test_students_t_is_that_of_the_tables(degrees: int, t: float) -> None:
    assert student_t(degrees) == pytest.approx(t, rel=1e-5)
