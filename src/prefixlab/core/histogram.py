"""A histogram with a stated relative error, fixed cost per value and exact merge.

Buckets grow geometrically: bucket i covers (γ^(i-1), γ^i] with γ = (1 + ε) / (1 - ε), so any quantile read
from it lies within ε of a true one (DDSketch, arXiv 1908.10693; the promise is HdrHistogram's).
Values at or below `floor` fall into one bucket of their own.

Invariant: `count == sum of bucket counts`; merging equals having recorded everything in one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt


class Histogram:
    """Relative error `error` (default 0.5 %) for values above `floor`."""

    def __init__(self, error: float = 0.005, floor: float = 1e-9) -> None:
        if not 0 < error < 1:
            raise ValueError(f"error must lie in (0, 1), not {error}")
        self.error = error
        self.floor = floor
        self.count = 0
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf
        self._log_gamma = math.log((1 + error) / (1 - error))
        self._buckets: Counter[int | None] = Counter()

    def record(self, value: float, times: int = 1) -> None:
        """Add `value`, `times` over. Raises ValueError for a negative or non-finite value."""
        if not 0 <= value < math.inf:
            raise ValueError(f"a histogram takes finite values of at least 0, not {value}")
        index = None if value <= self.floor else math.ceil(math.log(value / self.floor) / self._log_gamma)
        self._buckets[index] += times
        self.count += times
        self.total += value * times
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)

    def extend(self, values: Iterable[float] | npt.NDArray[np.float64]) -> None:
        """Add all of `values`; of an array, in nanoseconds a value. Raises ValueError as `record` does."""
        array = values if isinstance(values, np.ndarray) else np.fromiter(values, np.float64)
        if not len(array):
            return
        wrong = ~(np.isfinite(array) & (array >= 0))
        if wrong.any():
            raise ValueError(f"a histogram takes finite values of at least 0, not {array[wrong][0]}")
        above = array[array > self.floor]
        indices = np.ceil(np.log(above / self.floor) / self._log_gamma).astype(np.int64)
        for index, times in zip(*np.unique(indices, return_counts=True), strict=True):
            self._buckets[int(index)] += int(times)
        if len(above) < len(array):
            self._buckets[None] += len(array) - len(above)
        self.count += len(array)
        self.total += float(array.sum())
        self.minimum = min(self.minimum, float(array.min()))
        self.maximum = max(self.maximum, float(array.max()))

    def merge(self, other: Histogram) -> None:
        """Add everything `other` holds. Raises ValueError if its buckets differ from ours."""
        if (self.error, self.floor) != (other.error, other.floor):
            raise ValueError("only histograms of the same error and floor merge exactly")
        self._buckets.update(other._buckets)
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def to_state(self) -> dict[str, Any]:
        """All of it, in types that JSON has. `from_state` makes it again."""
        edges = {"minimum": self.minimum, "maximum": self.maximum} if self.count else {}
        buckets = [[index, count] for index, count in self._buckets.items()]
        return {"error": self.error, "floor": self.floor, "total": self.total, "buckets": buckets, **edges}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Histogram:
        """What `to_state` was called on. Raises KeyError, TypeError or ValueError for anything else."""
        histogram = cls(state["error"], state["floor"])
        histogram._buckets.update(dict(state["buckets"]))
        histogram.count = sum(histogram._buckets.values())
        histogram.total = state["total"]
        if histogram.count:
            histogram.minimum, histogram.maximum = state["minimum"], state["maximum"]
        return histogram

    def quantile(self, q: float) -> float:
        """The smallest recorded value that at least a share `q` of values do not exceed, within `error`.

        Raises ValueError when empty or `q` lies outside [0, 1].
        """
        if not self.count or not 0 <= q <= 1:
            raise ValueError("a quantile needs values, and q in [0, 1]")
        rank = max(1, math.ceil(q * self.count))
        seen = 0
        for index in sorted(self._buckets, key=lambda i: -math.inf if i is None else i):
            seen += self._buckets[index]
            if seen >= rank:
                if index is None:
                    return self.minimum
                middle = self.floor * math.exp((index - 0.5) * self._log_gamma)
                return min(max(middle, self.minimum), self.maximum)
        raise AssertionError("bucket counts do not add up to count")

    @property
    def mean(self) -> float:
        """Exact mean. Raises ValueError when empty."""
        if not self.count:
            raise ValueError("an empty histogram has no mean")
        return self.total / self.count
