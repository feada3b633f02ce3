"""How far two sides differ in one figure, and how sure that is. Pure.

Owns the difference, its interval and its verdict in words. What a side is, and where its values come from, is
`side.py`'s; which figures are compared, `comparison.py`'s.

Intervals are of the logarithm of b / a: a standard error and Student's t. The error is that of the repeats
where there are at least three on each side; as many on each are taken to scatter alike, which gives t the
degrees of freedom of both. Else it is bootstrapped (Efron 1979), blocks of what is alike drawn together
(Carlstein 1986): requests in the order they were sent, slices of time for a throughput, for neighbours share
a queue and a cache. Where both sides sent the same requests the same blocks are drawn on both: what a prompt
costs anyway then falls out.

Invariant: the same values and seed give the same interval; a verdict other than "undecided" needs one.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.compare.bootstrap import FEWEST_VALUES, block_edges, draws, num_blocks
from prefixlab.bench.compare.series import FloatArray, Sample, Series
from prefixlab.bench.metrics.intervals import FEWEST_REPEATS, LEVEL, student_t

MARGIN = 0.02
"""A change that nobody would act on."""
MOST_REPEATS = 100
"""Nobody makes more."""


class Finding(enum.Enum):
    """What a difference amounts to, by its interval and a margin."""

    BETTER = "better"
    WORSE = "worse"
    """The interval leaves out 0, and the change itself is beyond the margin (BETTER likewise)."""
    SAME = "no difference"
    """The whole interval lies within the margin on either side of 0: nothing worth the name is there."""
    UNDECIDED = "undecided"
    """Anything else: the interval is too wide to say, or there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """B against A, of one figure.

    Attributes:
        figure: its key in result files, as "p99_ttft_ms" or "output_throughput".
        a, b: the figure on either side, in its own unit.
        change: b / a - 1; None where a is 0 or either is unknown.
        low, high: interval of `change` at `level`; None where none can be given.
        level: after allowing for how many figures are looked at together.
        method: how the interval was made, in words; without one, why there is none.
        num_values: of each side, what the interval stands on.
        higher_is_better: of throughput; of latency it is not.
    """

    figure: str
    a: float | None
    b: float | None
    change: float | None
    low: float | None
    high: float | None
    level: float
    method: str
    num_values: tuple[int, int]
    higher_is_better: bool
    finding: Finding


@dataclass(frozen=True, slots=True)
class Error:
    """Of a logarithm: how far chance may move it.

    Attributes:
        degrees: of freedom, of Student's t; 0 where there is no error to give.
    """

    value: float
    degrees: int
    method: str


def repeats_needed(of: Difference, margin: float) -> int | None:
    """Of each side, for an interval that reaches no further than `margin`, if runs go on to differ as much.

    None where the interval is not made of as many repeats on each side, or MOST_REPEATS would not do.
    """
    count, other = of.num_values
    if of.low is None or of.high is None or "repeats" not in of.method or count != other:
        return None
    pairs = 1 if "pairs" in of.method else 2
    reach = (math.log1p(of.high) - math.log1p(of.low)) / 2
    scatter = reach / student_t(pairs * (count - 1), of.level) * math.sqrt(count)
    for num in range(count + 1, MOST_REPEATS + 1):
        if student_t(pairs * (num - 1), of.level) * scatter / math.sqrt(num) <= math.log1p(margin):
            return num
    return None


def level_for(num_figures: int, level: float = LEVEL) -> float:
    """Of each of so many intervals, for all of them to hold at once at `level` (Bonferroni)."""
    return 1 - (1 - level) / max(1, num_figures)


def differ(
    figure: str,
    a: Sample,
    b: Sample,
    *,
    higher_is_better: bool,
    paired: bool = False,
    fewest_pairs: int = FEWEST_REPEATS,
    level: float = LEVEL,
    margin: float = MARGIN,
    seed: int = 0,
) -> Difference:
    """B against A.

    Args:
        paired: unit i of one side is unit i of the other, and so are their repeats.
        fewest_pairs: of repeats, below which each side's scatter by itself is known better.
        level: of this one interval; see `level_for`.
    """
    values, counts = (a.whole.value, b.whole.value), (a.whole.num_values, b.whole.num_values)
    if not (values[0] and values[1] and values[0] > 0 and values[1] > 0):
        change, error = None, Error(0.0, 0, "not measured on both sides")
    else:
        change = values[1] / values[0] - 1
        fewest = fewest_pairs if paired else None
        error = _of_repeats(a.runs, b.runs, fewest) or _of_blocks(a.whole, b.whole, paired, seed)
        if "repeats" in error.method:
            counts = (len(a.runs), len(b.runs))
    low, high = _interval(change, error, level)
    return Difference(
        figure=figure,
        a=values[0],
        b=values[1],
        change=change,
        low=low,
        high=high,
        level=level,
        method=error.method,
        num_values=counts,
        higher_is_better=higher_is_better,
        finding=finding_of(change, low, high, margin, higher_is_better=higher_is_better),
    )


def finding_of(
    change: float | None, low: float | None, high: float | None, margin: float, *, higher_is_better: bool
) -> Finding:
    """See `Finding`."""
    if change is None or low is None or high is None:
        return Finding.UNDECIDED
    if -margin <= low and high <= margin:
        return Finding.SAME
    if (low > 0 or high < 0) and abs(change) > margin:
        return Finding.BETTER if (change > 0) == higher_is_better else Finding.WORSE
    return Finding.UNDECIDED


def _interval(change: float | None, error: Error, level: float) -> tuple[float | None, float | None]:
    if change is None or not error.degrees:
        return None, None
    centre, reach = math.log1p(change), student_t(error.degrees, level) * error.value
    return math.expm1(centre - reach), math.expm1(min(centre + reach, 700.0))


def _of_repeats(a: Sequence[Series], b: Sequence[Series], fewest_pairs: int | None) -> Error | None:
    """From one run to the next everything may differ, so this is the wider truth. None of too few."""
    logs = [_logarithms(side) for side in (a, b)]
    if any(side is None or len(side) < FEWEST_REPEATS for side in logs):
        return None
    first, second = (np.array(side) for side in logs)
    alike = len(first) == len(second)
    if fewest_pairs is not None and alike and len(first) >= fewest_pairs:
        error = float(np.std(second - first, ddof=1)) / math.sqrt(len(first))
        return Error(error, len(first) - 1, f"{len(first)} pairs of repeats")
    squares = [float(np.var(side, ddof=1)) / len(side) for side in (first, second)]
    free = [len(first) - 1, len(second) - 1]
    degrees = sum(free) if alike else _welch(squares, free)
    return Error(math.sqrt(sum(squares)), degrees, f"{len(first)} and {len(second)} repeats")


def _logarithms(runs: Sequence[Series]) -> list[float] | None:
    """None if any run lacks the figure."""
    values = [run.value for run in runs]
    known = [math.log(value) for value in values if value is not None and value > 0]
    return known if len(known) == len(values) else None


def _of_blocks(a: Series, b: Series, paired: bool, seed: int) -> Error:
    """Bootstrapped, within the runs."""
    reasons = [reason for side in (a, b) if (reason := side.why_not)]
    if reasons:
        return Error(0.0, 0, reasons[0])
    if paired:
        assert len(a.influence) == len(b.influence), "pairs need as many on either side"
        series = [b.influence - a.influence]
    else:
        series = [a.influence, b.influence]
    blocks = [num_blocks(values) for values in series]
    for values, found in zip(series, blocks, strict=True):
        if found is None:
            return Error(0.0, 0, _why_no_blocks(len(values)))
    counts = [found for found in blocks if found is not None]
    if paired:
        edges, taken = block_edges(len(series[0]), counts[0]), draws(counts[0], seed, 0)
        ratios = _log(b.drawn(edges, taken)) - _log(a.drawn(edges, taken))
        return Error(_deviation(ratios, counts[0]), counts[0] - 1, f"{counts[0]} pairs of blocks")
    squares = []
    for number, (side, count) in enumerate(zip((a, b), counts, strict=True)):
        edges, taken = block_edges(len(side.influence), count), draws(count, seed, number)
        squares.append(_deviation(_log(side.drawn(edges, taken)), count) ** 2)
    degrees = _welch(squares, [count - 1 for count in counts])
    return Error(math.sqrt(sum(squares)), degrees, f"{counts[0]} and {counts[1]} blocks")


def _log(values: FloatArray) -> FloatArray:
    return np.log(np.maximum(values, 1e-300))


def _deviation(logs: FloatArray, blocks: int) -> float:
    """Draws from few blocks scatter less than what they stand for, by (blocks - 1) ÷ blocks in variance."""
    return float(np.std(logs)) * math.sqrt(blocks / (blocks - 1))


def _welch(squares: Sequence[float], degrees: Sequence[int]) -> int:
    """Degrees of freedom of a difference (Welch and Satterthwaite), rounded down."""
    parts = sum(square**2 / of for square, of in zip(squares, degrees, strict=True))
    return max(min(degrees), int(sum(squares) ** 2 / parts)) if parts else sum(degrees)


def _why_no_blocks(num_units: int) -> str:
    if num_units < FEWEST_VALUES:
        return f"too few to tell: {num_units}"
    return "a trend, or swings as long as the run: it would take a longer one to tell"
