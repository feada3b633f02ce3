from __future__ import annotations

import numpy as np
import pytest

from prefixlab.bench.compare.bootstrap import (
    FEWEST_BLOCKS,
    MOST_BLOCKS,
    FloatArray,
    block_edges,
    correlation_time,
    draws,
    num_blocks,
)


def alike(num_values: int, memory: float, seed: int = 0) -> FloatArray:
    """An AR(1) series, but for what is older than 200 values."""
    shocks = np.random.default_rng(seed).normal(size=num_values + 200)
    weights = memory ** np.arange(200) * np.sqrt(1 - memory**2)
    return np.convolve(shocks, weights)[200 : 200 + num_values]


def test_values_of_no_kinship_remember_nothing() -> None:
    assert correlation_time(alike(20_000, 0.0)) == pytest.approx(1.0, abs=0.1)


def test_the_memory_of_a_series_is_found() -> None:
    assert correlation_time(alike(50_000, 0.8)) == pytest.approx(9.0, rel=0.15)


def test_a_constant_series_remembers_nothing() -> None:
    assert correlation_time(np.full(100, 3.0)) == 1.0


def test_blocks_are_longer_where_neighbours_are_alike() -> None:
    assert num_blocks(alike(1000, 0.0)) == MOST_BLOCKS
    blocks = num_blocks(alike(1000, 0.8))
    assert blocks is not None and FEWEST_BLOCKS <= blocks < MOST_BLOCKS / 2


def test_too_few_values_have_no_blocks() -> None:
    assert num_blocks(alike(19, 0.0)) is None


def test_a_trend_has_no_blocks() -> None:
    assert num_blocks(np.arange(1000.0) - 499.5) is None


def test_blocks_cover_every_value_once() -> None:
    edges = block_edges(107, 10)
    assert (edges[0], edges[-1]) == (0, 107) and set(np.diff(edges)) == {10, 11}


def test_draws_take_as_many_blocks_as_there_are_and_depend_on_the_seed_alone() -> None:
    taken = draws(12, 0, 0)
    assert (taken.sum(axis=1) == 12).all()
    assert np.array_equal(taken, draws(12, 0, 0))
    assert not np.array_equal(taken, draws(12, 1, 0))
    assert not np.array_equal(taken, draws(12, 0, 1))
