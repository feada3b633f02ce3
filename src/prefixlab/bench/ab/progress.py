"""What is said of an A/B while it goes on: how far it is, how long it still takes, what is known so far.

Owns those words, and how often they are said. Prints nothing itself.

Invariant: rounds that were only read, of a run that is gone on with, are not said anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from prefixlab.bench.ab.report import sentence
from prefixlab.bench.ab.run import Turns
from prefixlab.core.clock import Clock

SAY_EVERY_S = 10.0
SHORTEST_TOLD_S, MINUTE_S = 1.0, 60.0
_RECENT = 9
"""Rounds by whose pace the time left is told: a server that is started anew takes its time."""


class Rounds:
    """Told of every round that ended; `say` gets a line for the last of them now and then."""

    def __init__(self, say: Callable[[str], None], clock: Clock) -> None:
        self._say = say
        self._clock = clock
        self._num_seen = 0
        self._ended_s: deque[float] = deque(maxlen=_RECENT)
        self._said_s = clock.now()

    def __call__(self, turns: Turns) -> None:
        if turns.num_rounds <= self._num_seen:
            return
        now_s = self._clock.now()
        self._num_seen = turns.num_rounds
        self._ended_s.append(now_s)
        if now_s - self._said_s < SAY_EVERY_S:
            return
        self._said_s = now_s
        self._say(
            f"{_place(turns)}{self._left(turns)}; so far {sentence(turns, turns.answers(num_figures=1)[0])}"
        )

    def _left(self, turns: Turns) -> str:
        if len(self._ended_s) < 2:
            return ""
        pace_s = (self._ended_s[-1] - self._ended_s[0]) / (len(self._ended_s) - 1)
        left_s = pace_s * (turns.config.most_rounds - turns.num_rounds)
        return f", {_at_most(turns)}{told(left_s)} left"


def told(seconds: float) -> str:
    """`40 s`, `8 min`."""
    return (
        f"{max(SHORTEST_TOLD_S, seconds):.0f} s"
        if seconds < 2 * MINUTE_S
        else f"{seconds / MINUTE_S:.0f} min"
    )


def _place(turns: Turns) -> str:
    return f"round {turns.num_rounds} of {_at_most(turns)}{turns.config.most_rounds}"


def _at_most(turns: Turns) -> str:
    return "" if turns.config.until_ci is None and turns.config.duration is None else "at most "
