"""Drawing blocks again: how many blocks a series is cut into, and how often each draw takes each. Pure.

Owns the length of blocks. A series whose neighbours are alike for τ values (its integrated autocorrelation
time, with Sokal's window) is cut into blocks of at least 8 (τ − 1): the variance is then less than a tenth
too small. More than MOST_BLOCKS say nothing more. Where fewer than FEWEST_BLOCKS would remain there are so
many, unless they still follow each other: then the series is too short for its own swings, or has a trend,
and there is no interval rather than a wrong one. This is the rule of `metrics/intervals.py`, for draws.

Invariant: the same series and seed give the same blocks and draws.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from prefixlab.bench.metrics.intervals import follow_each_other

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NUM_DRAWS = 2000
MOST_BLOCKS, FEWEST_BLOCKS = 60, 10
FEWEST_VALUES = 2 * FEWEST_BLOCKS
_LENGTHS_OF_MEMORY = 8
_WINDOW = 5


def num_blocks(influence: FloatArray) -> int | None:
    """Into how many a series in time order is cut; None where it is too short, or never settles.

    Args:
        influence: shape (n,): how much each value moves the figure.
    """
    if len(influence) < FEWEST_VALUES:
        return None
    length = max(1, math.ceil(_LENGTHS_OF_MEMORY * (correlation_time(influence) - 1)))
    if (blocks := min(MOST_BLOCKS, len(influence) // length)) >= FEWEST_BLOCKS:
        return blocks
    sums = np.add.reduceat(influence, block_edges(len(influence), FEWEST_BLOCKS)[:-1])
    return None if follow_each_other(sums) else FEWEST_BLOCKS


def correlation_time(series: FloatArray) -> float:
    """τ = 1 + 2 Σ autocorrelations, up to the first lag of at least 5 τ; at least 1."""
    deviations = series - series.mean()
    size = 1 << (2 * len(series) - 1).bit_length()
    spectrum = np.fft.rfft(deviations, size)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum), size)[: len(series)]
    if not covariance[0] > 0:
        return 1.0
    times = 2 * np.cumsum(covariance / covariance[0]) - 1
    settled = np.flatnonzero(np.arange(len(times)) >= _WINDOW * times)
    return max(1.0, float(times[settled[0]] if len(settled) else len(series)))


def block_edges(num_values: int, blocks: int) -> IntArray:
    """Shape (blocks + 1,): consecutive blocks, as equal in size as can be."""
    edges: IntArray = np.arange(blocks + 1, dtype=np.int64) * num_values // blocks
    return edges


def draws(blocks: int, seed: int, side: int) -> FloatArray:
    """How often each draw takes each block, shape (NUM_DRAWS, blocks); rows add up to `blocks`."""
    rng = np.random.default_rng([seed, side, blocks])
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=NUM_DRAWS).astype(np.float64)
