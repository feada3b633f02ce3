"""What a probe showed: how probable it is that its load meets the objectives. Pure.

Owns the judgement of one point. A request is good or not (`metrics/goodput.py`); of the requests of the
steady stretch a share is good, and the share is known only so well: neighbours share a queue, so their
outcomes follow each other, and the error of the share is taken from batches of them in the order they were
due, not from their number.

Invariant: a point whose queue grew without end misses, whatever its share: a longer probe would have less.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from prefixlab.bench.metrics.goodput import Objectives, meets
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.metrics.windows import steady_windows
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.table import CODE, BoolArray, RecordTable
from prefixlab.bench.saturate.search import Probe

MOST_BATCHES = 20
FEWEST_PER_BATCH = 5


def evidence(result: PointResult, load: float, objectives: Objectives, wanted_share: float) -> Probe:
    """Of a finished point."""
    good = good_in_order(result.table, objectives, open_loop=result.settings.open_loop)
    if not len(good):
        return Probe(load, 0.0, 0.0)
    share = float(good.mean())
    if result.saturated:
        return Probe(load, share, 0.0)
    return Probe(load, share, probability_of(good, wanted_share))


def good_in_order(table: RecordTable, objectives: Objectives, *, open_loop: bool) -> BoolArray:
    """Which requests that ended in the steady stretch were good, in the order they were due, shape (n,). All
    of them where there is no such stretch."""
    good = meets(table, objectives, open_loop=open_loop)
    ended = table.ok | (table.outcome == CODE[Outcome.FAILED])
    steady = np.zeros(len(table), np.bool_)
    for window in steady_windows(table, open_loop=open_loop):
        inside = (table.intended_s >= window.start_s) & (table.intended_s <= window.end_s)
        steady |= inside & (table.segment == window.segment)
    rows = ended & steady if (ended & steady).any() else ended
    order = np.lexsort((table.intended_s, table.segment))
    ordered: BoolArray = good[order[rows[order]]]
    return ordered


def probability_of(good: BoolArray, wanted_share: float) -> float:
    """That the share behind these outcomes is at least `wanted_share`.

    By the normal approximation of the share with two good and two bad added (Agresti and Coull 1998), so that
    a hundred good ones out of a hundred do not prove that all are.
    """
    count = len(good)
    centre = (float(good.sum()) + 2) / (count + 4)
    error = max(math.sqrt(centre * (1 - centre) / (count + 4)), _batched_error(good.astype(np.float64)))
    return 0.5 * (1 + math.erf((centre - wanted_share) / error / math.sqrt(2)))


def _batched_error(values: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean by batch means, wider where batches still follow each other; 0 where there
    are too few values for batches."""
    num_batches = min(MOST_BATCHES, len(values) // FEWEST_PER_BATCH)
    if num_batches < 4:
        return 0.0
    means = np.array([batch.mean() for batch in np.array_split(values, num_batches)])
    deviations = means - means.mean()
    squares = float(deviations @ deviations)
    if not squares:
        return 0.0
    follow = min(0.9, max(0.0, float(deviations[1:] @ deviations[:-1]) / squares))
    variance = squares / (num_batches - 1) / num_batches
    return math.sqrt(variance * (1 + follow) / (1 - follow))
