"""One figure of one run as a series in time order: its value, and its values over blocks drawn again.

Owns the three kinds of figures: a ratio of sums (a mean, a throughput), a percentile, and a number of which
nothing else is known. Knows neither records nor what is compared.

Invariant: drawing every block once gives the figure itself (a percentile's to within its neighbours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prefixlab.bench.compare.bootstrap import correlation_time

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FEWEST_BEYOND = 10
"""Values beyond a percentile, on its thinner side, below which nobody knows how far it reaches."""
FEWEST_APART = 8
"""The same, of values that do not come in clumps."""
ONLY_KNOWN = "only the figure is known"
_GRID = 512


class Series(Protocol):
    """What a difference needs to know of a figure on one side."""

    @property
    def value(self) -> float | None:
        """The figure, in its own unit; None where there is none."""
        ...

    @property
    def num_values(self) -> int:
        """What it stands on: requests, tokens, slices of time; 0 where only the number is known."""
        ...

    @property
    def influence(self) -> FloatArray:
        """Shape (units,), in time order: how each moves the logarithm of the figure, times their number."""
        ...

    @property
    def why_not(self) -> str | None:
        """Why no interval can be made of this series, whatever its blocks; None where one may."""
        ...

    def drawn(self, edges: IntArray, taken: FloatArray) -> FloatArray:
        """The figure of every draw, shape (draws,).

        Args:
            edges: shape (blocks + 1,), of the blocks among the units.
            taken: shape (draws, blocks), how often each block is taken.
        """
        ...


@dataclass(frozen=True, eq=False)
class Ratio:
    """Σ amounts ÷ Σ weights: a mean of latencies (weights 1), of ITL (seconds over tokens), a throughput.

    Attributes:
        amounts, weights: shape (units,), in time order.
        fixed: amount and weight that are as they are in every draw (of a ramp, say).
        scale: of the figure's unit.
    """

    amounts: FloatArray
    weights: FloatArray
    fixed: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0

    @cached_property
    def value(self) -> float | None:
        below = float(self.weights.sum()) + self.fixed[1]
        return self.scale * (float(self.amounts.sum()) + self.fixed[0]) / below if below else None

    @property
    def num_values(self) -> int:
        return len(self.amounts)

    @cached_property
    def influence(self) -> FloatArray:
        above = float(self.amounts.sum()) + self.fixed[0]
        below = float(self.weights.sum()) + self.fixed[1]
        return len(self.amounts) * (self.amounts / above - self.weights / below)

    @property
    def why_not(self) -> str | None:
        return None

    def drawn(self, edges: IntArray, taken: FloatArray) -> FloatArray:
        above = taken @ np.add.reduceat(self.amounts, edges[:-1]) + self.fixed[0]
        below = taken @ np.add.reduceat(self.weights, edges[:-1]) + self.fixed[1]
        return self.scale * above / below


@dataclass(frozen=True, eq=False)
class Percentile:
    """A percentile of values that belong to units (all ITLs of a request are drawn together).

    Attributes:
        values: shape (values,), of unit after unit.
        sizes: shape (units,): how many are each unit's; None where each has one.
    """

    values: FloatArray
    percent: float
    sizes: IntArray | None = None
    scale: float = 1.0

    @cached_property
    def value(self) -> float | None:
        return self.scale * self._at(self.percent / 100) if len(self.values) else None

    @property
    def num_values(self) -> int:
        return len(self.values)

    @cached_property
    def influence(self) -> FloatArray:
        share = self.percent / 100
        step = min(share, 1 - share) / 2
        slope = (self._at(share + step) - self._at(share - step)) / (2 * step)
        moved = self._moved * (slope / max(self._at(share), 1e-12))
        return moved * (len(moved) / len(self.values))

    @property
    def why_not(self) -> str | None:
        beyond = round(len(self.values) * min(self.percent, 100 - self.percent) / 100, 6)
        if beyond < FEWEST_BEYOND:
            return f"too few values for p{self.percent:g}: {len(self.values):,} have {beyond:.3g} beyond it"
        if beyond < FEWEST_APART * self._clumps():
            return f"too few values for p{self.percent:g}: the {beyond:,.0f} beyond it come in clumps"
        return None

    def drawn(self, edges: IntArray, taken: FloatArray) -> FloatArray:
        grid = self._grid()
        block_of_unit = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        block = block_of_unit if self.sizes is None else block_of_unit[self._unit_of]
        place = np.searchsorted(grid, self.values)  # the lowest grid value that is not below
        cells, shape = block * len(grid) + place, (len(edges) - 1, len(grid))

        def counted(cells: IntArray) -> FloatArray:
            return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)

        found = taken @ np.cumsum(counted(cells), axis=1)
        equal = taken @ counted(cells[self.values == grid[place]])
        wanted = 1 + (found[:, -1] - 1) * (self.percent / 100)  # as `_at`, counted from 1
        if len(grid) == 1:
            return np.full(len(taken), self.scale * float(grid[0]))
        right = np.clip((found < wanted[:, None]).sum(axis=1), 1, len(grid) - 1)
        rows = np.arange(len(taken))
        # between the last value below and the first of those that are equal, of which there may be many
        below, first = found[rows, right - 1], found[rows, right] - np.maximum(equal[rows, right] - 1, 0)
        part = np.clip((wanted - below) / np.maximum(first - below, 1e-12), 0.0, 1.0)
        figures: FloatArray = self.scale * (grid[right - 1] + part * (grid[right] - grid[right - 1]))
        return figures

    def _grid(self) -> FloatArray:
        """Values of the sample, closest to each other around the percentile; first and last included."""
        share, steps = self.percent / 100, np.linspace(-1, 1, _GRID + 1) ** 3
        levels = share + np.where(steps < 0, steps * share, steps * (1 - share))
        places = np.round(np.clip(levels, 0, 1) * (len(self.values) - 1)).astype(np.int64)
        return np.unique(self._sorted[places])

    def _clumps(self) -> float:
        """How many times fewer values of no kinship would tell as much of the share below the percentile."""
        share = self.percent / 100
        alike = float(self._moved @ self._moved) / (len(self.values) * share * (1 - share))
        return max(1.0, alike) * correlation_time(self._moved)

    @cached_property
    def _moved(self) -> FloatArray:
        """Shape (units,): how each moves the share below the percentile."""
        share = self.percent / 100
        moved: FloatArray = share - (self.values <= self._at(share)).astype(np.float64)
        if self.sizes is None:
            return moved
        of_each: FloatArray = np.bincount(self._unit_of, moved, minlength=len(self.sizes)).astype(np.float64)
        return of_each

    def _at(self, share: float) -> float:
        """Between the two nearest, as everywhere."""
        place = share * (len(self._sorted) - 1)
        low = int(place)
        high = min(low + 1, len(self._sorted) - 1)
        return float(self._sorted[low] + (place - low) * (self._sorted[high] - self._sorted[low]))

    @cached_property
    def _sorted(self) -> FloatArray:
        return np.sort(self.values)

    @cached_property
    def _unit_of(self) -> IntArray:
        assert self.sizes is not None
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


@dataclass(frozen=True)
class Known:
    """A number of which nothing is known that could be drawn again: somebody else made it, say."""

    value: float | None
    why_not: str | None = ONLY_KNOWN

    @property
    def num_values(self) -> int:
        return 0

    @property
    def influence(self) -> FloatArray:
        return np.empty(0)

    def drawn(self, edges: IntArray, taken: FloatArray) -> FloatArray:
        raise AssertionError("nothing to draw from: why_not says so")


@dataclass(frozen=True)
class Sample:
    """A figure on one side.

    Attributes:
        whole: of all its runs together, as reports show it.
        runs: of each of its repeats.
    """

    whole: Series
    runs: Sequence[Series] = ()
