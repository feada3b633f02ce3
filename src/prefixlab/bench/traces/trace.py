"""A trace: what was asked when, how long it was, and which blocks of its prompt it shared.

Owns the form in which every format is read. A trace holds no text, only the identity of each block, so it
turns into sketches, and by them into prompts that share exactly what was shared.

Invariant: requests are in the order of their times; each has one hash id per full block of its prompt, and
one more where the format names the last, partial block too; equal ids are equal blocks behind equal
beginnings, or the notes say how many are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from prefixlab.bench.workloads.sketch import FloatArray, IntArray, Sketches


@dataclass(frozen=True, eq=False)
class Trace:
    """Columns, in the order of time.

    Attributes:
        name: of the file.
        block_size: tokens per hash id; 1 where the trace has no ids.
        offsets_s: shape (n,), seconds after the first request; all 0 where `has_times` is false.
        prompt_tokens, output_tokens: shape (n,), at least 1 each. A prompt is whole: a later turn's holds
            what was said before it.
        starts: shape (n + 1,); the ids of request i are `hash_ids[starts[i]:starts[i + 1]]`.
        hash_ids: shape (m,), at least 0. Tokens behind the last id are the request's own.
        session_ids, turns: which conversation a request is of, and its place there, from 0; None where
            nobody knows.
        think_s: shape (n,), seconds between the end of the turn before and this one, where the trace says
            (NaN where it does not).
        has_times: whether the trace says when its requests came.
        notes: what was done to make it usable, each a sentence without a full stop.
    """

    name: str
    block_size: int
    offsets_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    starts: IntArray
    hash_ids: IntArray
    session_ids: Sequence[str] | None = None
    turns: IntArray | None = None
    think_s: FloatArray | None = None
    has_times: bool = True
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def has_ids(self) -> bool:
        """Whether it says anything about sharing."""
        return len(self.hash_ids) > 0

    def take(self, rows: IntArray) -> Trace:
        """The requests of `rows` alone, in that order, their times counted from the earliest."""
        counts = np.diff(self.starts)[rows]
        starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        offsets_s = self.offsets_s[rows]
        names = self.session_ids
        return replace(
            self,
            offsets_s=offsets_s - offsets_s.min(initial=np.inf),
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=self.output_tokens[rows],
            starts=starts,
            hash_ids=self._ids_of(rows, counts, starts),
            session_ids=None if names is None else [names[row] for row in rows.tolist()],
            turns=None if self.turns is None else self.turns[rows],
            think_s=None if self.think_s is None else self.think_s[rows],
        )

    def _ids_of(self, rows: IntArray, counts: IntArray, starts: IntArray) -> IntArray:
        if len(rows) and (np.diff(rows) == 1).all():
            return self.hash_ids[self.starts[rows[0]] : self.starts[rows[-1] + 1]]
        shifts = np.repeat(self.starts[rows] - starts[:-1], counts)
        shifts += np.arange(len(shifts))
        ids: IntArray = self.hash_ids[shifts]
        return ids

    @cached_property
    def sketches(self) -> Sketches:
        """One piece per id; what lies behind the last id is a piece of the request's own."""
        n = len(self)
        counts = np.diff(self.starts)
        own = self.prompt_tokens - counts * self.block_size  # <= 0 where a last, partial block has an id
        has_own = own > 0
        starts = np.concatenate(([0], np.cumsum(counts + has_own)))
        keys = np.empty(int(starts[-1]), np.int64)
        sizes = np.full(len(keys), self.block_size, np.int64)
        ends = starts[1:] - 1
        of_trace = np.ones(len(keys), np.bool_)
        of_trace[ends[has_own]] = False
        keys[of_trace] = self.hash_ids
        keys[ends[has_own]] = -1 - np.flatnonzero(has_own)
        sizes[ends[has_own]] = own[has_own]
        sizes[ends[~has_own]] += own[~has_own]
        assert len(starts) == n + 1
        return Sketches(
            starts=starts,
            keys=keys,
            sizes=sizes,
            output_tokens=self.output_tokens,
            offsets_s=self.offsets_s if self.has_times else None,
            session_ids=self.session_ids,
            turns=self.turns,
        )
