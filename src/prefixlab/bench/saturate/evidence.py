"""What a probe showed: how probable it is that its load meets the objectives. Pure.

Owns the judgement of one point. A request is good or not (`metrics/goodput.py`), and how sure the share of
good ones is, is read from their latencies: a share of 100 % does not tell whether the next busy moment would
have spoilt it, latencies far below the objectives do. Neighbours share a queue, so a thousand requests tell
as much as perhaps thirty independent ones; errors are taken from batches of neighbours, not from how many.

Invariant: a point whose queue grew without end misses, whatever its share: a longer probe would have less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefixlab.bench.metrics import latencies
from prefixlab.bench.metrics.goodput import Objectives, meets
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.metrics.windows import steady_windows
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.table import CODE, BoolArray, RecordTable
from prefixlab.bench.saturate.search import Probe

FloatArray = npt.NDArray[np.float64]

MOST_BATCHES = 10
FEWEST_PER_BATCH = 10
LEAST_ERROR = 0.03
FAILED = 1e3
"""Strain of a request that failed, or that brought nothing: beyond any that was answered."""
TOO_QUIET = 1.5
"""What a queue does is skewed: for most of the time it is quieter than on average, and where it was quiet its
error looks small as well. At the knee of an M/D/8 queue a probe of 20 s was, without this, 95 % sure of
"meets" one time in three; with it one in six, and of "misses" one in twenty-five either way."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Requests that ended in the steady stretch, in the order they were due; all where there is none.

    Attributes:
        good: shape (n,), which met every objective.
        strain: shape (n,), the worst of latency ÷ objective of each; up to 1 is good, a failure is FAILED.
    """

    good: BoolArray
    strain: FloatArray


def evidence(result: PointResult, load: float, objectives: Objectives, wanted_share: float) -> Probe:
    """Of a finished point."""
    outcomes = outcomes_of(result.table, objectives, open_loop=result.settings.open_loop)
    if not len(outcomes.good):
        return Probe(load, 0.0, 0.0)
    share = float(outcomes.good.mean())
    if result.saturated:
        return Probe(load, share, 0.0)
    return Probe(load, share, probability_of(outcomes, wanted_share))


def outcomes_of(table: RecordTable, objectives: Objectives, *, open_loop: bool) -> Outcomes:
    ended = table.ok | (table.outcome == CODE[Outcome.FAILED])
    steady = np.zeros(len(table), np.bool_)
    for window in steady_windows(table, open_loop=open_loop):
        inside = (table.intended_s >= window.start_s) & (table.intended_s <= window.end_s)
        steady |= inside & (table.segment == window.segment)
    rows = ended & steady if (ended & steady).any() else ended
    order = np.lexsort((table.intended_s, table.segment))
    order = order[rows[order]]
    good = meets(table, objectives, open_loop=open_loop)
    return Outcomes(good[order], _strain(table, objectives, open_loop=open_loop)[order])


def probability_of(outcomes: Outcomes, wanted_share: float) -> float:
    """That the share behind these outcomes is at least `wanted_share`: that the strain which so many stay
    below, in the long run, is at most 1. Its logarithm is taken as normal, with the error that the same of
    batches of neighbours has."""
    strain = np.maximum(outcomes.strain, 1e-9)
    below = -math.log(float(np.quantile(strain, wanted_share))) / _error(strain, wanted_share)
    return _normal(_as_normal(below / TOO_QUIET if below > 0 else below, MOST_BATCHES - 1))


def _as_normal(t: float, degrees: int) -> float:
    """The normal score that is about as rare as a `t` of so many degrees of freedom (Wallace 1959)."""
    return math.copysign(math.sqrt(degrees * math.log1p(t * t / degrees)), t) * (
        (8 * degrees + 1) / (8 * degrees + 3)
    )


def _normal(score: float) -> float:
    return 0.5 * (1 + math.erf(score / math.sqrt(2)))


def _error(strain: FloatArray, share: float) -> float:
    """Standard error of the logarithm of a quantile, by batches; wider where they still follow each other."""
    num_batches = min(MOST_BATCHES, len(strain) // FEWEST_PER_BATCH)
    if num_batches < 4:
        return 1.0
    logs = np.log([np.quantile(batch, share) for batch in np.array_split(strain, num_batches)])
    deviations = logs - logs.mean()
    squares = float(deviations @ deviations)
    follow = min(0.9, max(0.0, float(deviations[1:] @ deviations[:-1]) / squares)) if squares else 0.0
    of_mean = squares / (num_batches - 1) / num_batches * (1 + follow) / (1 - follow)
    return max(LEAST_ERROR, math.sqrt(of_mean))


def _strain(table: RecordTable, objectives: Objectives, *, open_loop: bool) -> FloatArray:
    ttft_s = latencies.ttft_from_intent_s(table) if open_loop else latencies.ttft_s(table)
    e2e_s = latencies.e2e_from_intent_s(table) if open_loop else latencies.e2e_s(table)
    named = (
        (ttft_s, objectives.ttft_s),
        (latencies.tpot_s(table), objectives.tpot_s),
        (e2e_s, objectives.e2e_s),
    )
    worst = np.zeros(len(table))
    for seconds, limit_s in named:
        if limit_s is not None:
            worst = np.fmax(worst, seconds / limit_s)
    return np.where(table.ok & (table.num_arrivals > 0), worst, FAILED)
