"""Where to probe next, and what the probes so far say: a pure function of them.

Owns the belief about the *knee*, the largest load that meets the objectives. It is a probability over a grid
of loads, and the next probe goes to its median, where the answer teaches most whatever it is: probabilistic
bisection (Horstein 1963; Waeber, Frazier and Henderson 2013). A probe does not say yes or no; it says how
probable it is that its load meets the objectives, and the belief moves by that much. So a probe near the
knee, which nobody can decide, costs one probe and leads nowhere wrong, and the answer is an interval that
holds the knee with a stated probability.

Before the first probe the knee may be anywhere: the belief is a Cauchy distribution of ln(load) around a
guess, whose tails are heavy enough that a guess off by a thousand costs a few probes more.

Invariants: the same probes give the same decision, so a search that was broken off goes on where it stood; no
single probe moves the belief beyond what MOST_SURE allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
MOST_SURE = 0.99
"""Of one probe: what it saw may have been a bad minute of the server's, or a good one."""
REACH = 1e4
"""How far from the guess the knee is looked for, as a factor either way."""
GRID = 8192
LARGEST_WHOLE = 65_536
"""Of concurrency."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What one load was seen to do.

    Attributes:
        load: requests per second, or requests in flight.
        share: of its requests that met the objectives.
        probability: that as many of them do as were asked for, whatever chance did to this probe.
    """

    load: float
    share: float
    probability: float

    @property
    def word(self) -> str:
        if self.probability >= CONFIDENCE:
            return "meets"
        return "misses" if self.probability <= 1 - CONFIDENCE else "unclear"


@dataclass(frozen=True)
class Search:
    """What is looked for.

    Attributes:
        guess: where to begin.
        spread: of the belief at the beginning, in ln(load): with probability 1/2 the knee is within a factor
            e^spread of the guess.
        tolerance: the answer may be off by this part of itself.
        max_probes: then it ends, however sure.
        whole: loads are whole numbers.
    """

    guess: float
    spread: float
    tolerance: float
    max_probes: int
    whole: bool = False

    @cached_property
    def loads(self) -> FloatArray:
        """The grid, shape (n,), rising."""
        if self.whole:
            return np.arange(1.0, LARGEST_WHOLE + 1)
        return np.geomspace(self.guess / REACH, self.guess * REACH, GRID)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search came to.

    Attributes:
        load: the knee, as likely above as below; of whole loads the largest that more likely meets than not.
            None where no probe met.
        low, high: hold the knee with probability CONFIDENCE. low is None where no probe met, high where none
            missed: then the knee may be anywhere on that side.
        settled: within the tolerance, so that more probes were not needed.
        oddities: what a server with one knee would not show.
    """

    load: float | None
    low: float | None
    high: float | None
    settled: bool
    oddities: tuple[str, ...] = ()


def belief(search: Search, probes: Sequence[Probe]) -> FloatArray:
    """How probable each load of the grid is to be the knee, shape (n,), sum 1."""
    logs = np.log(search.loads)
    width = np.gradient(logs)
    weights = width / (1 + ((logs - math.log(search.guess)) / search.spread) ** 2)
    for probe in probes:
        sure = min(max(probe.probability, 1 - MOST_SURE), MOST_SURE)
        # A knee at this load or above is one that this load meets.
        meets = search.loads >= probe.load * (1 - 1e-9)
        weights = weights * np.where(meets, sure, 1 - sure)
    whole: FloatArray = weights / weights.sum()
    return whole


def quantile(search: Search, weights: FloatArray, share: float, *, upper: bool = False) -> float:
    """The load of the grid below which the knee lies with probability `share`. A knee between two loads of
    the grid counts as the lower one; `upper`: the other."""
    place = int(np.searchsorted(np.cumsum(weights), share)) + (upper and not search.whole)
    return float(search.loads[min(place, len(weights) - 1)])


def next_load(search: Search, probes: Sequence[Probe]) -> float | None:
    """Where to probe; None when there is nothing left to find out, or the probes are spent."""
    if len(probes) >= search.max_probes or answer(search, probes).settled:
        return None
    # A probe tells knees at its load and above from those below: it teaches most where both are as probable.
    at_or_above = np.cumsum(belief(search, probes)[::-1])[::-1]
    return float(search.loads[int(np.argmin(np.abs(at_or_above - 0.5)))])


def answer(search: Search, probes: Sequence[Probe]) -> Answer:
    """What is known after `probes`."""
    weights = belief(search, probes)
    tail = (1 - CONFIDENCE) / 2
    low, middle = quantile(search, weights, tail), quantile(search, weights, 0.5)
    high = quantile(search, weights, 1 - tail, upper=True)
    met = [probe.load for probe in probes if probe.word == "meets"]
    missed = [probe.load for probe in probes if probe.word == "misses"]
    near = 1 + search.tolerance
    close = high <= low * near * near or (search.whole and high - low <= 1)
    if close:  # within the tolerance of all that the interval holds
        middle = min(max(middle, high / near), low * near)
    return Answer(
        load=(float(round(middle)) if search.whole else middle) if met else None,
        low=low if met else None,
        high=high if missed else None,
        settled=close and bool(met) and bool(missed),
        oddities=_oddities(met, missed),
    )


def _oddities(met: list[float], missed: list[float]) -> tuple[str, ...]:
    if not met or not missed or max(met) <= min(missed):
        return ()
    return (
        f"{max(met):.4g} met the objectives although {min(missed):.4g} did not: the server changed between "
        "the probes, or does better under more load",
    )
