"""How long prompts and outputs are, where that is more than an even range: laws, and lengths that were seen.

Owns the draws. A pure function of its arguments.

Invariant: every length is at least 1; a longer draw begins like a shorter one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.workloads.draws import Draws
from prefixlab.bench.workloads.sketch import IntArray


@dataclass(frozen=True, slots=True)
class Spread:
    """By a law of this mean.

    Attributes:
        law: "normal", what falls below 1 being 1, or "lognormal", which has a long tail.
        cv: standard deviation over mean.
    """

    law: str
    mean: int
    cv: float

    def __str__(self) -> str:
        return f"{self.mean:,} ± {self.mean * self.cv:,.0f} ({self.law})"

    def draw(self, count: int, *key: int) -> IntArray:
        """Shape (count,)."""
        normal = Draws(*key).normal(count)
        if self.law == "normal":
            lengths = self.mean * (1 + self.cv * normal)
        else:
            variance = math.log1p(self.cv**2)
            lengths = self.mean * np.exp(math.sqrt(variance) * normal - variance / 2)
        return np.maximum(1, np.rint(lengths)).astype(np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """Lengths that somebody had, drawn in pairs, so that long prompts keep their outputs.

    Attributes:
        name: of where they come from.
        inputs, outputs: shape (m,).
    """

    name: str
    inputs: IntArray
    outputs: IntArray

    def draw(self, count: int, *key: int) -> tuple[IntArray, IntArray]:
        """Of prompts and outputs, shape (count,) each."""
        picked = Draws(*key).below(len(self.inputs), count)
        return self.inputs[picked], self.outputs[picked]
