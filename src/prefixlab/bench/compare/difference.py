"""How far two sides differ in one figure, and how sure that is. Pure.

Owns the difference, its interval and its verdict in words. What a side is, and where its values come from, is
`side.py`'s; which figures are compared, `comparison.py`'s.

Intervals are bootstrapped (Efron 1979), with what resembles each other drawn together: repeats where there are
several on each side, else blocks of requests in the order they were sent (Künsch 1989), for neighbours share a
queue and a cache. Where both sides sent the same requests, the differences are taken request by request first:
what a prompt costs anyway then falls out.

Invariant: the same values and seed give the same interval; a verdict other than "undecided" needs one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Finding(enum.Enum):
    """What a difference amounts to."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "no difference"
    """The interval holds 0, and is narrow enough to say that nothing worth the name is there."""
    UNDECIDED = "undecided"
    """The interval holds 0 and is too wide to say; or there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """B against A, of one figure.

    Attributes:
        figure: its key in result files, as "p99_ttft_ms" or "output_throughput".
        a, b: the figure on either side, in its own unit.
        change: b / a - 1; None where a is 0 or either is unknown.
        low, high: interval of `change` at `level`; None where none can be given.
        level: after allowing for how many figures are looked at together.
        method: how the interval was made, in words.
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
