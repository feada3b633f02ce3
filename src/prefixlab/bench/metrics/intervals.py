"""How sure a figure is: confidence intervals that hold although neighbouring requests are alike.

Owns the intervals. Latencies of one run are a correlated series (a queue that is long now is long for the
next request too), so the textbook interval of independent values is far too narrow. Here the series is cut,
in the order requests were sent, into a few long batches; their means are nearly independent, and Student's t
of them is the interval (batch means; Schmeiser 1982: 10 to 30 batches are enough, whatever the length). If
batch means still follow each other (lag-1 autocorrelation), there are fewer and longer ones; if ten still do,
the run is too short for its own swings, or has a trend, and there is no interval rather than a wrong one.

Invariant: too few values, or values that never settle, give None.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
MOST_BATCHES, FEWEST_BATCHES = 30, 10
FEWEST_VALUES = 2 * FEWEST_BATCHES
FEWEST_REPEATS = 3
_ONE_SIDED_5_PERCENT = 1.645


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval at LEVEL.

    Attributes:
        method: "batch means", "batched order statistics" or "repeats".
        num_parts: batches or repeats it was made of.
    """

    low: float
    high: float
    method: str
    num_parts: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def scaled(self, factor: float) -> Interval:
        return Interval(self.low * factor, self.high * factor, self.method, self.num_parts)


def of_mean(values: Sequence[float] | FloatArray) -> Interval | None:
    """Of the mean of a series in time order, shape (n,)."""
    return of_ratio(values, np.ones(len(values)))


def of_ratio(amounts: Sequence[float] | FloatArray, weights: Sequence[float] | FloatArray) -> Interval | None:
    """Of Σ amounts ÷ Σ weights of two series in the same time order, such as gaps and tokens."""
    above, below = np.asarray(amounts, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    for num_batches in _batchings(len(above)):
        whole = below.sum()
        sums, sizes = _batch_sums(above, num_batches), _batch_sums(below, num_batches)
        if not (sizes > 0).all():
            return None
        ratios = sums / sizes
        if not follow_each_other(ratios):
            return _around(float(above.sum() / whole), ratios, "batch means")
    return None


def of_percentile(values: Sequence[float] | FloatArray, percent: float) -> Interval | None:
    """Of a percentile of a series in time order: how far the share of values below it may be off, by batch
    means of "is below", read back through the sorted values. None where that leaves the sample: of 100 values
    nobody knows how far the 99th percentile reaches."""
    series = np.asarray(values, dtype=np.float64)
    share = percent / 100
    if not 0 < share < 1 or len(series) < FEWEST_VALUES:
        return None
    below = (series <= np.percentile(series, percent)).astype(np.float64)
    for num_batches in _batchings(len(series)):
        means = _batch_sums(below, num_batches) / _batch_sums(np.ones(len(below)), num_batches)
        if not follow_each_other(means):
            break
    else:
        return None
    # a few batches may by luck look better than independent values would: never claim that
    error = max(
        float(means.std(ddof=1)) / math.sqrt(num_batches), math.sqrt(share * (1 - share) / len(series))
    )
    reach = student_t(num_batches - 1) * error
    if share - reach <= 0 or share + reach >= 1:
        return None
    low, high = np.quantile(series, [share - reach, share + reach]).tolist()
    return Interval(low, high, "batched order statistics", num_batches)


def of_repeats(values: Sequence[float | None]) -> Interval | None:
    """Of the mean over repeats of a whole run: each counts as one value. None below FEWEST_REPEATS."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if len(known) < FEWEST_REPEATS:
        return None
    return _around(float(known.mean()), known, "repeats")


@cache
def student_t(degrees: int, level: float = LEVEL) -> float:
    """The t with a share `level` of Student's distribution between −t and t (by bisection)."""
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _between(middle, degrees) < level else (low, middle)
    return high


def _between(t: float, degrees: int) -> float:
    """P(−t < T < t), the finite series for whole degrees (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine2 = math.cos(angle) ** 2
    odd = degrees % 2
    term, total = 1.0, 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cosine2 * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    return math.sin(angle) * total


def _batchings(num_values: int) -> Iterator[int]:
    """How many batches to try, most first."""
    if num_values < FEWEST_VALUES:
        return
    num_batches = min(MOST_BATCHES, num_values // 2)
    while num_batches > FEWEST_BATCHES:
        yield num_batches
        num_batches = max(FEWEST_BATCHES, num_batches // 2)
    yield FEWEST_BATCHES


def _batch_sums(values: FloatArray, num_batches: int) -> FloatArray:
    """Of consecutive batches, as equal in size as can be; shape (num_batches,)."""
    edges = np.arange(num_batches) * len(values) // num_batches
    return np.add.reduceat(values, edges)


def follow_each_other(batches: FloatArray) -> bool:
    """Whether a batch is like the one before, beyond chance (one-sided, 5 %)."""
    deviations = batches - batches.mean()
    squares = float(deviations @ deviations)
    if not squares:
        return False
    correlation = float(deviations[1:] @ deviations[:-1]) / squares
    return correlation > _ONE_SIDED_5_PERCENT / math.sqrt(len(batches))


def _around(centre: float, parts: FloatArray, method: str) -> Interval:
    reach = student_t(len(parts) - 1) * float(parts.std(ddof=1)) / math.sqrt(len(parts))
    return Interval(centre - reach, centre + reach, method, len(parts))
