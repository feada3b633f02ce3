"""How like two traces are: distributions, what goes together, what a cache finds.

Owns the comparison, for `trace synthesize` and its benchmark. Judges nothing: the numbers stand side by side.

Invariant: a trace compared with itself has distance 0 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefixlab.bench.traces.hit_rates import lru_curve
from prefixlab.bench.traces.synthesize import SharedTree
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.sketch import FloatArray

CAPACITY_SHARES = (0.1, 0.5)
"""Of the source's distinct blocks: the sizes of the caches that both are put through."""
Array = npt.NDArray[np.float64] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one trace.

    Attributes:
        pearson, spearman: correlation of input and output length; NaN where one of them never varies.
        lru_hit_rates: by blocks, at CAPACITY_SHARES of the *source's* distinct blocks.
    """

    num_requests: int
    duration_s: float
    mean_input: float
    mean_context: float
    mean_own: float
    mean_output: float
    pearson: float
    spearman: float
    ideal_hit_rate_blocks: float
    ideal_hit_rate_tokens: float
    lru_hit_rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Likeness:
    """Two traces side by side, and the Kolmogorov-Smirnov distances of their distributions: 0 alike, 1 apart.

    Attributes:
        times: of when requests come, each trace's duration taken as 1: its rate over time.
    """

    source: Figures
    result: Figures
    input: float
    own: float
    output: float
    gaps: float
    times: float


def compare(source: Trace, result: Trace) -> Likeness:
    """Both need hash ids for the hit rates to mean anything; without, they are 0."""
    capacities = [max(1, round(share * len(np.unique(source.hash_ids)))) for share in CAPACITY_SHARES]
    trees = SharedTree.of(source), SharedTree.of(result)
    own = [trace.prompt_tokens - tree.context for trace, tree in zip((source, result), trees, strict=True)]
    return Likeness(
        source=_figures(source, trees[0], capacities),
        result=_figures(result, trees[1], capacities),
        input=distance(source.prompt_tokens, result.prompt_tokens),
        own=distance(own[0], own[1]),
        output=distance(source.output_tokens, result.output_tokens),
        gaps=distance(np.diff(source.offsets_s), np.diff(result.offsets_s)),
        times=distance(_places(source), _places(result)),
    )


def distance(left: Array, right: Array) -> float:
    """Kolmogorov-Smirnov: the largest difference of the two empirical distribution functions."""
    if not (len(left) and len(right)):
        return 0.0
    at = np.concatenate([left, right])
    shares = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())


def _figures(trace: Trace, tree: SharedTree, capacities: list[int]) -> Figures:
    curve = lru_curve(trace) if trace.has_ids else None
    return Figures(
        num_requests=len(trace),
        duration_s=float(trace.offsets_s[-1]),
        mean_input=float(trace.prompt_tokens.mean()),
        mean_context=float(tree.context.mean()),
        mean_own=float((trace.prompt_tokens - tree.context).mean()),
        mean_output=float(trace.output_tokens.mean()),
        pearson=_correlation(trace.prompt_tokens, trace.output_tokens),
        spearman=_correlation(_ranks(trace.prompt_tokens), _ranks(trace.output_tokens)),
        ideal_hit_rate_blocks=curve.ideal.rate_by_blocks if curve else 0.0,
        ideal_hit_rate_tokens=curve.ideal.rate_by_tokens if curve else 0.0,
        lru_hit_rates=tuple(curve.at(size).rate_by_blocks if curve else 0.0 for size in capacities),
    )


def _places(trace: Trace) -> FloatArray:
    duration_s = float(trace.offsets_s[-1])
    return trace.offsets_s / duration_s if duration_s else trace.offsets_s


def _ranks(values: Array) -> FloatArray:
    """From 0; equal values have their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: FloatArray = (last - (counts + 1) / 2)[inverse]
    return ranks


def _correlation(left: Array, right: Array) -> float:
    if len(left) < 2 or not (np.ptp(left) and np.ptp(right)):
        return float("nan")
    return float(np.corrcoef(left, right)[0, 1])
