"""A pool of values, summarised: mean, spread, extremes and any percentiles.

Owns how a percentile is taken. Knows not what the values mean.

Invariant: percentiles are of the whole pool, never averaged from parts; of an empty pool everything is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
"""Always taken; others on request."""

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values in the unit of the pool. All None where it is empty.

    Percentiles interpolate linearly between the two nearest of the sorted values (NumPy's default, type 7 of
    Hyndman and Fan), which is what vLLM's and SGLang's clients do; std is the population's.

    Attributes:
        percentiles: percent → value: PERCENTILES and what else was asked for.
    """

    count: int
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    percentiles: Mapping[float, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, values: Sequence[float] | FloatArray, percentiles: Iterable[float] = (), *, scratch: bool = False
    ) -> Distribution:
        """Of `values`, shape (n,); NaN is "not measured" and left out.

        Args:
            percentiles: in percent, beside those always taken.
            scratch: `values` may be reordered, which for a hundred million saves a copy.
        """
        pool = np.asarray(values, dtype=np.float64)
        missing = np.isnan(pool)
        if missing.any():
            pool, scratch = pool[~missing], True
        if not len(pool):
            return cls(0)
        mean = float(pool.mean())
        wanted = sorted({*PERCENTILES, *percentiles})
        taken = np.percentile(pool, wanted, overwrite_input=scratch).tolist()
        return cls(
            count=len(pool),
            mean=mean,
            std=_std(pool, mean),
            min=float(pool.min()),
            max=float(pool.max()),
            percentiles=dict(zip(wanted, taken, strict=True)),
        )

    def at(self, percent: float) -> float | None:
        """A percentile that was taken; None of an empty pool. KeyError for one that was not asked for."""
        return self.percentiles[percent] if self.count else None

    @property
    def median(self) -> float | None:
        return self.at(50)

    @property
    def p90(self) -> float | None:
        return self.at(90)

    @property
    def p95(self) -> float | None:
        return self.at(95)

    @property
    def p99(self) -> float | None:
        return self.at(99)


def percentile_name(percent: float) -> str:
    """`p99`, `p99.9`: as vLLM writes it."""
    return f"p{percent:g}"


def _std(pool: FloatArray, mean: float) -> float:
    """By blocks: NumPy's own makes a second array as large as the pool."""
    squares = 0.0
    for start in range(0, len(pool), _BLOCK):
        deviations = pool[start : start + _BLOCK] - mean
        squares += float(deviations @ deviations)
    return math.sqrt(squares / len(pool))
