from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.core.histogram import Histogram

VALUES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200)


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_within_the_stated_error_of_the_true_one(values: list[float], q: float) -> None:
    histogram = Histogram()
    histogram.extend(values)
    true = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert abs(histogram.quantile(q) - true) <= histogram.error * true * (1 + 1e-9)


@given(VALUES, VALUES)
def test_merging_equals_having_recorded_everything_in_one(a: list[float], b: list[float]) -> None:
    left, right, both = Histogram(), Histogram(), Histogram()
    left.extend(a)
    right.extend(b)
    both.extend(a + b)
    left.merge(right)
    assert left.count == both.count
    assert left.mean == pytest.approx(both.mean)
    assert [left.quantile(q / 10) for q in range(11)] == [both.quantile(q / 10) for q in range(11)]


def test_zero_is_a_value_like_any_other() -> None:
    histogram = Histogram()
    histogram.record(0.0, times=9)
    histogram.record(5.0)
    assert histogram.quantile(0.5) == 0.0
    assert histogram.quantile(1.0) == 5.0


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_value_that_is_no_duration_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite values"):
        Histogram().record(value)


def test_an_empty_histogram_and_unequal_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="needs values"):
        Histogram().quantile(0.5)
    with pytest.raises(ValueError, match="no mean"):
        _ = Histogram().mean
    with pytest.raises(ValueError, match="same error"):
        Histogram(0.01).merge(Histogram(0.02))
    with pytest.raises(ValueError, match="error must lie"):
        Histogram(0)


@given(st.lists(st.floats(0, 1e9), max_size=50))
def test_a_histogram_survives_json(values: list[float]) -> None:
    histogram = Histogram(0.01, 1e-6)
    histogram.extend(values)
    again = Histogram.from_state(json.loads(json.dumps(histogram.to_state())))
    assert vars(again) == vars(histogram)


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_adding_many_at_once_equals_adding_them_one_by_one(values: list[float]) -> None:
    together, singly = Histogram(), Histogram()
    together.extend(np.array(values))
    for value in values:
        singly.record(value)
    assert together.count == singly.count
    assert together.total == pytest.approx(singly.total)
    assert (together.minimum, together.maximum) == (singly.minimum, singly.maximum)
    if values:
        quantiles = [q / 10 for q in range(11)]
        expected = [singly.quantile(q) for q in quantiles]
        # A value on the edge of two buckets may fall into either, by the last bit of a logarithm.
        assert [together.quantile(q) for q in quantiles] == pytest.approx(expected, rel=0.011)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_many_at_once_are_checked_too(value: float) -> None:
    with pytest.raises(ValueError, match="finite values"):
        Histogram().extend([1.0, value])
