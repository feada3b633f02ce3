"""What a trace is like: lengths, arrivals, sessions, who shares what, and what a cache of which size finds.

Owns which figures a trace is described by, and their definitions. The figures of caches come from
`hit_rates.py`, the tree from `sharing_tree.py`; what is shown of it all is in `report/trace.py`.

Invariant: an Analysis is a pure function of the trace and the capacities asked for; its `figures` are plain
data with names that stay, ready for JSON. What a trace does not say is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefixlab.bench.traces.hit_rates import NOWHERE, HitCurve, Hits, OnProgress, Reuse, measure_reuse
from prefixlab.bench.traces.sharing_tree import SharingTree, grow_tree
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.sketch import FloatArray, IntArray

FORMAT_VERSION = 1
"""Of the figures as JSON; a name that changes its meaning raises it."""
PERCENTS_OF_UNIQUE = (1, 5, 10, 25, 50)
PERCENTS_OF_IDEAL = (50, 90, 99, 100)
PERCENTILES = (10, 25, 50, 75, 90, 99)
BUSY_S = 10.0
EVEN = 1e-6
"""A variation of gaps that is rounding of their times: to the nanosecond, of milliseconds."""
CURVE_POINTS = 200


@dataclass(frozen=True, slots=True)
class Stats:
    """Of one figure over all requests that have it. `std`: of these, not an estimate for others."""

    mean: float
    std: float
    min: float
    p25: float
    median: float
    p75: float
    max: float

    @classmethod
    def of(cls, values: npt.NDArray[np.int64] | FloatArray) -> Stats | None:
        if not len(values):
            return None
        low, p25, median, p75, high = np.percentile(values, [0, 25, 50, 75, 100]).tolist()
        return cls(float(np.mean(values)), float(np.std(values)), low, p25, median, p75, high)


@dataclass(frozen=True, slots=True)
class Lengths:
    """The table that Dynamo's users know, by its definitions.

    Attributes:
        context_tokens: of the blocks that are used more than once anywhere in the trace.
        unique_prompt_tokens: all others of the prompt.
        theoretical_hit_rate: of each request, its leading blocks that stood in an earlier one, by all its
            blocks; 0 for one without blocks. Its mean is no hit rate of the trace: short requests weigh as
            much as long ones.
    """

    input_tokens: Stats | None
    context_tokens: Stats | None
    unique_prompt_tokens: Stats | None
    output_tokens: Stats | None
    theoretical_hit_rate: Stats | None


@dataclass(frozen=True, slots=True)
class Arrivals:
    """
    Attributes:
        requests_per_s: gaps between requests by the time between first and last; None for a single moment.
        gap_cv: standard deviation of the gaps by their mean: 1 for a Poisson process.
        burstiness: shape of the gamma distribution with that variation, 1 / gap_cv²: what --burstiness means;
            inf where all gaps are the same.
        busiest_per_s: requests in the busiest `busy_s` seconds, by `busy_s`.
        busy_s: BUSY_S, or all of a shorter trace.
        simultaneous: part of the gaps that are 0. Where clocks were read in steps, these say more of the
            clock than of the traffic.
    """

    duration_s: float
    requests_per_s: float | None
    gap_cv: float | None
    burstiness: float | None
    busiest_per_s: float
    busy_s: float
    simultaneous: float


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """
    Attributes:
        duration_s: from a session's first request to its last; None where the trace has no times.
        think_s: as the trace says, where it does.
        within: part of the ideal hits (by blocks) on blocks that the same session had used last.
    """

    num_sessions: int
    requests: Stats | None
    duration_s: Stats | None
    think_s: Stats | None
    within: float | None


@dataclass(frozen=True, slots=True)
class Capacity:
    """A size of cache to look at, and how it was asked for."""

    asked: str
    blocks: int


@dataclass(frozen=True, slots=True)
class CachePoint:
    """What a least recently used cache of this size finds."""

    asked: str
    capacity_blocks: int
    capacity_tokens: int
    capacity_bytes: int | None
    of_unique: float
    hit_rate_by_blocks: float
    hit_rate_by_tokens: float
    of_ideal: float


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """
    Attributes:
        ideal_*: of a cache that forgets nothing; `unlimited` is the least that is one for certain.
        capacities: those asked for.
        of_unique: parts of the distinct blocks. of_ideal: what it takes for parts of the ideal hits (by
            blocks).
        knee: where hits gained and capacity spent, each as a part of its whole, are furthest apart.
        curve: [blocks, hit rate by blocks, by tokens], at steps of the curve, CURVE_POINTS of them at most.
    """

    num_blocks: int
    unique_blocks: int
    ideal_by_blocks: float
    ideal_by_tokens: float
    ideal_hit_blocks: int
    ideal_hit_tokens: int
    unlimited: CachePoint
    capacities: tuple[CachePoint, ...]
    of_unique: tuple[CachePoint, ...]
    of_ideal: tuple[CachePoint, ...]
    knee: CachePoint
    curve: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True, slots=True)
class ReuseFigures:
    """How far apart two uses of a block are, over all uses but first ones.

    Attributes:
        distance_blocks: percentiles; other distinct blocks used in between.
        distance_s: percentiles, of the time in between; empty where the trace has no times.
        histogram: [d, uses]: how many have a distance from d to below 2 d (from 0 to below 1 for 0).
    """

    num_uses: int
    distance_blocks: dict[str, float]
    distance_s: dict[str, float]
    histogram: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything, as plain data. None where the trace has no times, no sessions or no blocks.

    Attributes:
        notes: what reading did to make the trace usable.
    """

    format_version: int
    trace: str
    num_requests: int
    block_size: int | None
    num_prompt_tokens: int
    num_output_tokens: int
    lengths: Lengths
    arrivals: Arrivals | None
    sessions: SessionFigures | None
    sharing: SharingTree | None
    cache: CacheFigures | None
    reuse: ReuseFigures | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Analysis:
    """The figures, and what a picture is drawn from."""

    trace: Trace
    figures: Figures
    curve: HitCurve | None


def analyze(
    trace: Trace,
    capacities: Sequence[Capacity] = (),
    *,
    kv_bytes_per_token: int | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Analysis:
    """All figures. `capacities` beside the usual ones; `kv_bytes_per_token` to tell capacities in bytes."""
    reuse = measure_reuse(trace, on_progress) if trace.has_ids else None
    curve = None if reuse is None else reuse.curve()
    figures = Figures(
        format_version=FORMAT_VERSION,
        trace=trace.name,
        num_requests=len(trace),
        block_size=trace.block_size if trace.has_ids else None,
        num_prompt_tokens=int(trace.prompt_tokens.sum()),
        num_output_tokens=int(trace.output_tokens.sum()),
        lengths=_lengths(trace, reuse),
        arrivals=_arrivals(trace.offsets_s) if trace.has_times else None,
        sessions=_sessions(trace, reuse),
        sharing=None if reuse is None else grow_tree(reuse),
        cache=None if curve is None else _cache(trace, curve, capacities, kv_bytes_per_token),
        reuse=None if reuse is None else _reuse(reuse),
        notes=trace.notes,
    )
    return Analysis(trace, figures, curve)


def _lengths(trace: Trace, reuse: Reuse | None) -> Lengths:
    context = unique = rates = None
    if reuse is not None:
        counts = np.diff(trace.starts)
        context_tokens = _context_tokens(trace, reuse)
        context = Stats.of(context_tokens)
        unique = Stats.of(trace.prompt_tokens - context_tokens)
        rates = Stats.of(reuse.ideal_hit_blocks / np.maximum(1, counts))
    return Lengths(Stats.of(trace.prompt_tokens), context, unique, Stats.of(trace.output_tokens), rates)


def _context_tokens(trace: Trace, reuse: Reuse) -> IntArray:
    """Tokens in blocks that are used more than once; a last, partial block counts what it has. Shape (n,)."""
    is_used_again = reuse.counts > 1
    counts = np.diff(trace.starts)
    filled = np.flatnonzero(counts)
    tokens = np.zeros(len(trace), np.int64)
    if len(filled):
        used_again = is_used_again[reuse.blocks]
        tokens[filled] = np.add.reduceat(used_again, trace.starts[filled], dtype=np.int64) * trace.block_size
        last_again = used_again[trace.starts[filled + 1] - 1]
        tokens[filled] -= np.where(last_again, reuse.missing_tokens[filled], 0)
    return tokens


def _arrivals(offsets_s: FloatArray) -> Arrivals:
    gaps_s = np.diff(offsets_s)
    duration_s = float(offsets_s[-1] - offsets_s[0]) if len(offsets_s) else 0.0
    # Of a Poisson process the gaps vary as much as they last; of one single gap nothing is known.
    cv = float(np.std(gaps_s) / np.mean(gaps_s)) if len(gaps_s) > 1 and duration_s > 0 else None
    if cv is not None and cv < EVEN:
        cv = 0.0
    busy_s = min(BUSY_S, duration_s) or BUSY_S
    until = np.searchsorted(offsets_s, offsets_s + busy_s, side="left")
    busiest = int((until - np.arange(len(offsets_s))).max(initial=0))
    return Arrivals(
        duration_s=duration_s,
        requests_per_s=len(gaps_s) / duration_s if duration_s > 0 else None,
        gap_cv=cv,
        burstiness=None if cv is None else 1 / cv**2 if cv else math.inf,
        busiest_per_s=busiest / busy_s,
        busy_s=busy_s,
        simultaneous=float(np.mean(gaps_s == 0)) if len(gaps_s) else 0.0,
    )


def _sessions(trace: Trace, reuse: Reuse | None) -> SessionFigures | None:
    if trace.session_ids is None:
        return None
    codes = np.unique(np.asarray(trace.session_ids), return_inverse=True)[1]
    sizes = np.bincount(codes)
    duration_s = think_s = None
    if trace.has_times:
        first_s, last_s = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
        np.minimum.at(first_s, codes, trace.offsets_s)
        np.maximum.at(last_s, codes, trace.offsets_s)
        duration_s = Stats.of(last_s - first_s)
    if trace.think_s is not None:
        think_s = Stats.of(trace.think_s[~np.isnan(trace.think_s)])
    within = None
    if reuse is not None:
        hit = reuse.needs <= len(reuse.blocks)
        lengths = reuse.lengths[hit]
        same = codes[reuse.rows[hit]] == codes[reuse.earlier_rows[hit]]
        within = float(lengths[same].sum() / lengths.sum()) if len(lengths) else None
    return SessionFigures(len(sizes), Stats.of(sizes), duration_s, think_s, within)


def _cache(
    trace: Trace, curve: HitCurve, capacities: Sequence[Capacity], kv_bytes_per_token: int | None
) -> CacheFigures:
    ideal = curve.ideal

    def point(asked: str, blocks: int) -> CachePoint:
        hits = curve.at(blocks)
        tokens = blocks * trace.block_size
        return CachePoint(
            asked=asked,
            capacity_blocks=blocks,
            capacity_tokens=tokens,
            capacity_bytes=None if kv_bytes_per_token is None else tokens * kv_bytes_per_token,
            of_unique=blocks / max(1, curve.unique_blocks),
            hit_rate_by_blocks=hits.rate_by_blocks,
            hit_rate_by_tokens=hits.rate_by_tokens,
            of_ideal=hits.hit_blocks / max(1, ideal.hit_blocks),
        )

    return CacheFigures(
        num_blocks=curve.num_blocks,
        unique_blocks=curve.unique_blocks,
        ideal_by_blocks=ideal.rate_by_blocks,
        ideal_by_tokens=ideal.rate_by_tokens,
        ideal_hit_blocks=ideal.hit_blocks,
        ideal_hit_tokens=ideal.hit_tokens,
        unlimited=point("unlimited", curve.unique_blocks),
        capacities=tuple(point(capacity.asked, capacity.blocks) for capacity in capacities),
        of_unique=tuple(
            point(f"{percent} % of unique blocks", curve.unique_blocks * percent // 100)
            for percent in PERCENTS_OF_UNIQUE
        ),
        of_ideal=tuple(
            point(f"{percent} % of ideal hits", curve.capacity_for(percent / 100))
            for percent in PERCENTS_OF_IDEAL
        ),
        knee=point("knee", knee(curve)),
        curve=tuple(_some_steps(curve)),
    )


def knee(curve: HitCurve) -> int:
    """The capacity, in blocks, at which the curve is highest above the straight line between its ends (with
    both axes from 0 to 1): beyond it a block more brings less than on average. 0 where there are no hits.
    """
    if not len(curve.capacities):
        return 0
    above = curve.hit_blocks / curve.hit_blocks[-1] - curve.capacities / curve.unique_blocks
    return int(curve.capacities[np.argmax(above)])


def _some_steps(curve: HitCurve) -> list[tuple[int, float, float]]:
    """Steps of the curve, evenly spread over it, first and last included."""
    last = len(curve.capacities) - 1
    steps = np.unique(np.linspace(0, last, min(CURVE_POINTS, last + 1)).round().astype(np.int64))
    found: list[Hits] = [curve.at(int(curve.capacities[step])) for step in steps]
    return [(hits.capacity_blocks, hits.rate_by_blocks, hits.rate_by_tokens) for hits in found]


def _reuse(reuse: Reuse) -> ReuseFigures:
    again = reuse.distances != NOWHERE
    uses, distances = reuse.lengths[again], reuse.distances[again]
    offsets_s = reuse.trace.offsets_s
    gaps_s = offsets_s[reuse.rows[again]] - offsets_s[reuse.earlier_rows[again]]
    bins = np.frexp(distances.astype(np.float64))[1]  # 0 for 0, else 1 + the power of two at or below
    histogram = np.bincount(bins, weights=uses).astype(np.int64).tolist() if len(uses) else []
    return ReuseFigures(
        num_uses=int(uses.sum()),
        distance_blocks=_percentiles(distances, uses),
        distance_s=_percentiles(gaps_s, uses) if reuse.trace.has_times else {},
        histogram=tuple((1 << bin_ >> 1, count) for bin_, count in enumerate(histogram)),
    )


def _percentiles(values: IntArray | FloatArray, weights: IntArray) -> dict[str, float]:
    """The least value that so many percent of the weight do not exceed, by name (`p50`)."""
    if not len(values):
        return {}
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    at = np.searchsorted(below, np.array(PERCENTILES) / 100 * below[-1])
    chosen = values[order][at].tolist()
    return {f"p{name}": float(value) for name, value in zip(PERCENTILES, chosen, strict=True)}
