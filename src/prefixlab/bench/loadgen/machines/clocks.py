"""How far apart the monotonic clocks of two machines are, told from stamps exchanged. Pure.

Owns the estimate and its error. The other clock was read at some moment between our two stamps, nobody knows
which; so the middle is the guess, half the round trip is how wrong it can be, and of many the narrowest wins.

Invariant: whatever the delays either way, the true offset lies within the uncertainty, as long as neither
clock jumps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prefixlab.bench.loadgen.health import NodeClock


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question to the other machine: our clock before and after, its clock between. Nanoseconds."""

    asked_ns: int
    remote_ns: int
    answered_ns: int


@dataclass(frozen=True, slots=True)
class Offset:
    """The other clock minus ours, and how wrong that is at most."""

    offset_ns: int
    uncertainty_ns: int


def estimate(exchanges: Iterable[Exchange]) -> Offset:
    """The offset as the narrowest of at least one exchange tells it."""
    best = min(exchanges, key=lambda exchange: exchange.answered_ns - exchange.asked_ns)
    width_ns = best.answered_ns - best.asked_ns
    return Offset(best.remote_ns - best.asked_ns - width_ns // 2, (width_ns + 1) // 2)


def node_clock(
    node: str, num_workers: int, before: Offset, after: Offset | None, lost: str | None = None
) -> NodeClock:
    """What is told of a machine, from its offset before and after a run."""
    if after is None:
        return NodeClock(node, num_workers, before.offset_ns / 1e9, before.uncertainty_ns / 1e9, lost=lost)
    return NodeClock(
        node=node,
        num_workers=num_workers,
        offset_s=before.offset_ns / 1e9,
        uncertainty_s=before.uncertainty_ns / 1e9,
        drift_s=(after.offset_ns - before.offset_ns) / 1e9,
        drift_uncertainty_s=(after.uncertainty_ns + before.uncertainty_ns) / 1e9,
        lost=lost,
    )
