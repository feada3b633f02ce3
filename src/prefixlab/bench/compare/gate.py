"""Whether B may pass: every figure of a comparison against what it may be worse by. Pure.

Owns the rule. A figure fails if it is worse by more than its limit and surely worse at all (its interval
leaves out 0); it passes if its whole interval is within the limit; else it is undecided, which fails a
strict gate only; where every figure is, nothing can be judged. Requests that fail more often than on A's side
fail the gate whatever they took.

Invariant: the gate's word follows from the rows it shows.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from prefixlab.bench.compare.comparison import Comparison, PointComparison, fails_more
from prefixlab.bench.compare.difference import Difference


class Ruling(enum.Enum):
    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruled:
    """One figure of one point.

    Attributes:
        regression: how much worse B is, negative where it is better; None where that is not known.
        at_least, at_most: its interval.
    """

    point: str
    difference: Difference
    limit: float
    regression: float | None
    at_least: float | None
    at_most: float | None
    ruling: Ruling


@dataclass(frozen=True, kw_only=True)
class Gate:
    """See the module. `failures` are points whose requests fail more often, in words."""

    rows: tuple[Ruled, ...]
    failures: tuple[str, ...]
    strict: bool

    @property
    def failed(self) -> list[Ruled]:
        return [row for row in self.rows if row.ruling is Ruling.FAILED]

    @property
    def undecided(self) -> list[Ruled]:
        return [row for row in self.rows if row.ruling is Ruling.UNDECIDED]

    @property
    def fails(self) -> bool:
        return bool(self.failed or self.failures or (self.strict and self.undecided))

    @property
    def decided(self) -> bool:
        """Without one figure shown to be anything, there is neither a failure nor a pass."""
        return self.fails or len(self.undecided) < len(self.rows)

    @property
    def passes(self) -> bool:
        return self.decided and not self.fails


def judge(comparison: Comparison, limit_of: Callable[[str], float], *, strict: bool) -> Gate:
    """Args: limit_of: by the key of a figure, as a share."""
    return Gate(
        rows=tuple(
            ruled(difference, limit_of(difference.figure), point.name)
            for point in comparison.points
            for difference in point.differences
        ),
        failures=tuple(_failures(point) for point in comparison.points if fails_more(*point.failed)),
        strict=strict,
    )


def ruled(difference: Difference, limit: float, point: str = "") -> Ruled:
    """One figure against its limit."""
    sign = -1 if difference.higher_is_better else 1
    ends = [None if end is None else sign * end for end in (difference.low, difference.high)][::sign]
    regression = None if difference.change is None else sign * difference.change
    at_least, at_most = ends
    if regression is None or at_least is None or at_most is None:
        ruling = Ruling.UNDECIDED
    elif regression > limit and at_least > 0:
        ruling = Ruling.FAILED
    else:
        ruling = Ruling.PASSED if at_most <= limit else Ruling.UNDECIDED
    return Ruled(
        point=point,
        difference=difference,
        limit=limit,
        regression=regression,
        at_least=at_least,
        at_most=at_most,
        ruling=ruling,
    )


def _failures(point: PointComparison) -> str:
    told = [f"{failed:,} of {planned:,}" for failed, planned in filter(None, point.failed)]
    where = f" at {point.name}" if point.name else ""
    return f"requests fail more often{where}: {told[0]} before, {told[1]} now"
