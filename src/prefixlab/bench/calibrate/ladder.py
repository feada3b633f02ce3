"""The search for the client's ceiling: more streams, step by step, until it errs or the metronome gives out.

Owns the judgement of a rung and the order of rungs; measures nothing itself: how to is handed in.

Invariant: what is called the ceiling was measured, and stayed within the limit.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prefixlab.bench.calibrate.compare import Comparison
from prefixlab.bench.calibrate.store import ITL_ERROR_LIMIT_S


class Judgement(enum.Enum):
    WITHIN = "within the limit"
    ERRED = "past the limit"
    """The client's p99 ITL error exceeded the limit, or requests were lost."""
    METRONOME = "the metronome is the limit"
    """It could not keep its own schedule. Tokens it wrote late it wrote in bunches, which no client can tell
    apart, so nothing is known of the client here."""


@dataclass(frozen=True)
class Rung:
    """So many streams, and how that went. `nominal_tokens_per_s` is what the schedule asked for."""

    streams: int
    nominal_tokens_per_s: float
    comparison: Comparison
    judgement: Judgement


def judge(comparison: Comparison, itl_s: float) -> Judgement:
    """One run. Lateness of half an ITL at p99 means that the rate asked for was not offered."""
    if comparison.num_not_comparable:
        return Judgement.ERRED
    if comparison.late_p99_s > itl_s / 2:
        return Judgement.METRONOME
    return Judgement.ERRED if comparison.itl.p99_s > ITL_ERROR_LIMIT_S else Judgement.WITHIN


def climb(
    measure: Callable[[int], Comparison], *, itl_s: float, first: int, growth: float, most: int
) -> Iterator[Rung]:
    """Rungs from `first` streams on, each `growth` times the last, to one that is not WITHIN, or to `most`.

    A rung that is not is tried once more: a hiccup of the machine is not the client's ceiling.
    """
    streams = min(first, most)
    while True:
        for _ in range(2):
            comparison = measure(streams)
            judgement = judge(comparison, itl_s)
            if judgement is Judgement.WITHIN:
                break
        yield Rung(streams, streams / itl_s, comparison, judgement)
        if judgement is not Judgement.WITHIN or streams == most:
            return
        streams = min(most, max(streams + 1, round(streams * growth)))
