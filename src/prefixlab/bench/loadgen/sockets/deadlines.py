"""Time-outs of many things at once, at a constant cost each: buckets of a coarse clock.

Owns which things are to be looked at when. Whether a thing's time is really up its owner decides, and sets it
again if not: so data arriving on a stream need not touch its deadline.

Invariant: a thing is in at most one bucket, and is handed out at most `GRAIN_NS` late and never early.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Generic, TypeVar

GRAIN_NS = 20_000_000

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Things are told apart by hash and equality; the default, identity, is right."""

    def __init__(self, now_ns: int) -> None:
        self._buckets: defaultdict[int, set[T]] = defaultdict(set)
        self._bucket_of: dict[T, int] = {}
        self._done = now_ns // GRAIN_NS

    def set(self, thing: T, at_ns: int) -> None:
        """Look at `thing` at `at_ns`, instead of when it was set for before."""
        self.clear(thing)
        bucket = max(at_ns // GRAIN_NS + 1, self._done + 1)
        self._bucket_of[thing] = bucket
        self._buckets[bucket].add(thing)

    def clear(self, thing: T) -> None:
        bucket = self._bucket_of.pop(thing, None)
        if bucket is not None:
            self._buckets[bucket].discard(thing)
            if not self._buckets[bucket]:
                del self._buckets[bucket]

    def due(self, now_ns: int) -> list[T]:
        """Take out everything whose time has come."""
        last = now_ns // GRAIN_NS
        things: list[T] = []
        if self._buckets:
            for bucket in range(self._done + 1, last + 1):
                things += self._buckets.pop(bucket, ())
        for thing in things:
            del self._bucket_of[thing]
        self._done = max(self._done, last)
        return things
