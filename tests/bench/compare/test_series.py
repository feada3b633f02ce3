from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.compare.bootstrap import block_edges
from prefixlab.bench.compare.series import ONLY_KNOWN, Known, Percentile, Ratio

VALUES = st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=200)


@settings(deadline=None)
@given(VALUES, st.floats(1.0, 99.0))
def test_a_percentile_is_numpys(values: list[float], percent: float) -> None:
    found = Percentile(np.array(values), percent).value
    assert found == pytest.approx(float(np.percentile(values, percent)), rel=1e-9)


@settings(deadline=None)
@given(VALUES)
def test_every_block_once_gives_the_mean_itself(values: list[float]) -> None:
    series = Ratio(np.array(values), np.ones(len(values)), scale=1e3)
    edges = block_edges(len(values), min(5, len(values)))
    assert series.drawn(edges, np.ones((1, len(edges) - 1)))[0] == pytest.approx(series.value)


@settings(deadline=None)
@given(VALUES, st.floats(1.0, 99.0))
def test_every_block_once_gives_a_value_between_the_percentiles_neighbours(
    values: list[float], percent: float
) -> None:
    edges = block_edges(len(values), min(5, len(values)))
    found = Percentile(np.array(values), percent).drawn(edges, np.ones((1, len(edges) - 1)))[0]
    place = percent / 100 * (len(values) - 1)
    low, high = sorted(values)[max(0, int(place) - 1)], sorted(values)[min(len(values) - 1, int(place) + 1)]
    assert low - 1e-9 <= found <= high + 1e-9


def test_draws_of_a_percentile_are_those_of_the_values_drawn() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=300)
    edges, taken = block_edges(300, 10), rng.multinomial(10, np.full(10, 0.1), size=20).astype(np.float64)
    found = Percentile(values, 90.0).drawn(edges, taken)
    slow = [
        np.percentile(
            np.concatenate([np.tile(values[edges[k] : edges[k + 1]], int(n)) for k, n in enumerate(row)]), 90
        )
        for row in taken
    ]
    assert found == pytest.approx(np.array(slow), rel=0.05)


def test_itls_of_one_request_are_drawn_together() -> None:
    sizes = np.full(100, 20)
    together = np.repeat(np.random.default_rng(0).lognormal(size=100), sizes)
    of_requests, of_tokens = Percentile(together, 50.0, sizes), Percentile(together, 50.0)
    assert len(of_requests.influence) == 100
    assert of_requests.num_values == of_tokens.num_values == 2000


def test_a_tail_of_few_values_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    assert "too few" in str(Percentile(rng.normal(10, 1, 999), 99.0).why_not)
    assert Percentile(rng.normal(10, 1, 2000), 99.0).why_not is None


def test_a_tail_that_came_in_one_burst_has_no_interval() -> None:
    values = np.random.default_rng(0).normal(10, 1, 2000)
    values[1000:1030] += 100
    assert "clumps" in str(Percentile(values, 99.0).why_not)


def test_of_a_figure_alone_nothing_is_drawn() -> None:
    assert Known(1.0).why_not == ONLY_KNOWN and Known(1.0).num_values == 0


def test_equal_values_have_the_same_figure_in_every_draw() -> None:
    edges = block_edges(100, 10)
    assert set(Percentile(np.full(100, 3.0), 50.0).drawn(edges, np.ones((4, 10)))) == {3.0}
