"""Seeded random numbers other than token ids: which group, how long, in which order.

Owns how they are made from raw bits, so that a workload depends on its key and on no library's version.

Invariant: draws depend on the key alone; a longer draw begins like a shorter one, orders apart.
"""

from __future__ import annotations

import hashlib

import numpy as np

from prefixlab.bench.workloads.sketch import FloatArray, IntArray
from prefixlab.core.errors import ConfigError


class Draws:
    """One stream of numbers. `key`: whole numbers ≥ 0."""

    def __init__(self, *key: int) -> None:
        if any(part < 0 for part in key):
            raise ConfigError(f"a seed must not be negative, not {min(key)}")
        entropy = int.from_bytes(hashlib.sha256(repr(("draws", *map(int, key))).encode()).digest())
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def uniform(self, count: int) -> FloatArray:
        """In (0, 1), shape (count,)."""
        raw = np.atleast_1d(np.asarray(self._bits.random_raw(count), dtype=np.uint64))
        numbers: FloatArray = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
        return numbers

    def normal(self, count: int) -> FloatArray:
        """Of mean 0 and deviation 1, shape (count,)."""
        both = self.uniform(2 * count).reshape(-1, 2)  # Box and Muller's way, one number of each pair
        numbers: FloatArray = np.sqrt(-2 * np.log(both[:, 0])) * np.cos(2 * np.pi * both[:, 1])
        return numbers

    def below(self, limit: int, count: int) -> IntArray:
        """Whole numbers 0 … limit - 1, evenly, shape (count,)."""
        return (self.uniform(count) * limit).astype(np.int64)

    def choices(self, weights: FloatArray, count: int) -> IntArray:
        """Indices into `weights`, each as often as it weighs, shape (count,)."""
        reached = np.cumsum(weights) / np.sum(weights)
        return np.minimum(np.searchsorted(reached, self.uniform(count), side="right"), len(weights) - 1)

    def order(self, count: int) -> IntArray:
        """0 … count - 1 in random order."""
        return np.argsort(self.uniform(count), kind="stable")


def zipf_weights(count: int, exponent: float) -> FloatArray:
    """Of the first, second, … most popular of `count`: 1 / rank ** exponent, adding up to 1."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    shares: FloatArray = weights / weights.sum()
    return shares
