"""Which request goes next, and when: policy without I/O and without a clock.

Owns pacing, caps on concurrency included, so the loop only asks. A source may decide on a request when an
answer it depends on has come: `done` brings that answer.

Here every request is on its own; for those that wait for each other see `sessions/`.

Invariant: every row of a plan is taken once, or given up once by `work`, or is among `remaining` at the end;
`take` is called only when `next_due_ns` has come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from prefixlab.bench.loadgen.capture import Answer
from prefixlab.bench.loadgen.sockets.plan_file import PlanRows

NOT_YET_NS = (1 << 63) - 1
"""Nothing is due before an answer ends; after the last one: ever."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A request whose time has come.

    Attributes:
        index: its place in the plan.
        intended_ns: when it should go.
        ready_ns: when it also had a slot; what it is late from then on is the client's own fault.
        payload: what to send.
        max_answer_bytes: an answer longer than that has no end.
    """

    index: int
    intended_ns: int
    ready_ns: int
    payload: memoryview
    max_answer_bytes: int


def turn_of(rows: PlanRows, row: int, intended_ns: int, ready_ns: int, payload: memoryview) -> Turn:
    return Turn(rows.index(row), intended_ns, ready_ns, payload, rows.max_answer_bytes(row))


class Source(Protocol):
    """See the module. Times are monotonic."""

    @property
    def num_taken(self) -> int: ...

    def next_due_ns(self) -> int:
        """When the next request may go; NOT_YET_NS while none can."""
        ...

    def take(self) -> Turn: ...

    def done(self, answer: Answer, freed_ns: int) -> None:
        """A request taken before has ended; its slot became free at `freed_ns`."""
        ...

    @property
    def is_busy(self) -> bool:
        """There is something to `work` on, after which more may be due."""
        ...

    def work(self) -> Sequence[Answer]:
        """A millisecond or two of making requests out of answers that have ended; returns the endings of
        those that will never be sent because of how they ended."""
        ...

    def num_queued(self, now_ns: int) -> int:
        """Requests that are due and not taken."""
        ...

    def remaining(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """Index and intended time of what was neither taken nor given up, as the run ends."""
        ...


class _OnItsOwn:
    """A source whose requests need no making."""

    is_busy = False

    def work(self) -> Sequence[Answer]:
        return ()


class OpenLoop(_OnItsOwn):
    """Each row at its own time, whatever became of the others; at most `max_concurrency` at once."""

    def __init__(self, rows: PlanRows, start_ns: int, max_concurrency: int | None) -> None:
        self._rows = rows
        self._order = np.argsort(rows.due_ns, kind="stable")
        self._due_ns = rows.due_ns[self._order] + start_ns
        self._num_free = len(rows) + 1 if max_concurrency is None else max_concurrency
        self._slot_ns = start_ns
        self._num_taken = 0
        self._next_due_ns = NOT_YET_NS
        self._look_ahead()

    @property
    def num_taken(self) -> int:
        return self._num_taken

    def next_due_ns(self) -> int:
        return self._next_due_ns if self._num_free else NOT_YET_NS

    def take(self) -> Turn:
        row, intended_ns = int(self._order[self._num_taken]), self._next_due_ns
        self._num_free -= 1
        self._num_taken += 1
        self._look_ahead()
        ready_ns = max(intended_ns, self._slot_ns)
        return turn_of(self._rows, row, intended_ns, ready_ns, self._rows.payload(row))

    def done(self, answer: Answer, freed_ns: int) -> None:
        if self._num_free == 0:
            self._slot_ns = freed_ns
        self._num_free += 1

    def num_queued(self, now_ns: int) -> int:
        return max(0, int(np.searchsorted(self._due_ns, now_ns, side="right")) - self._num_taken)

    def remaining(self, now_ns: int) -> Iterator[tuple[int, int]]:
        for place in range(self._num_taken, len(self._rows)):
            yield self._rows.index(int(self._order[place])), int(self._due_ns[place])

    def _look_ahead(self) -> None:
        more = self._num_taken < len(self._rows)
        self._next_due_ns = int(self._due_ns[self._num_taken]) if more else NOT_YET_NS


class ClosedLoop(_OnItsOwn):
    """The next row, in the plan's order, as soon as one of `max_concurrency` slots is free."""

    def __init__(self, rows: PlanRows, start_ns: int, max_concurrency: int | None) -> None:
        self._rows = rows
        self._start_ns = start_ns
        num_slots = len(rows) if max_concurrency is None else min(max_concurrency, len(rows))
        self._free_since_ns = deque([start_ns] * num_slots)
        self._num_taken = 0

    @property
    def num_taken(self) -> int:
        return self._num_taken

    def next_due_ns(self) -> int:
        if self._free_since_ns and self._num_taken < len(self._rows):
            return self._free_since_ns[0]
        return NOT_YET_NS

    def take(self) -> Turn:
        row, intended_ns = self._num_taken, self._free_since_ns.popleft()
        self._num_taken += 1
        return turn_of(self._rows, row, intended_ns, intended_ns, self._rows.payload(row))

    def done(self, answer: Answer, freed_ns: int) -> None:
        self._free_since_ns.append(freed_ns)

    def num_queued(self, now_ns: int) -> int:
        """None: a request is due when it has a slot."""
        return 0

    def remaining(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """Their turn has not come before now, so they never waited."""
        for row in range(self._num_taken, len(self._rows)):
            yield self._rows.index(row), now_ns
