"""When turns of sessions go: a `Source` (`sockets/pacing.py`) for plans in which requests wait for others.

Owns order, think time, and whose a slot is. A session is a tree of rows: its first turn waits for nobody,
every other for the end of an earlier one, and `delay_ns` longer. What continuing turns say is `turns.py`'s to
make.

A turn that continues one that did not succeed is never sent, nor is anything behind it; one whose prompt is
fixed goes at its time whatever became of the others.

Invariant: every row is taken once, or given up once by `work`, or is among `remaining` at the end; a row is
taken only after the one it waits for has ended.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from prefixlab.bench.loadgen.capture import Answer, Ending
from prefixlab.bench.loadgen.compose import NoTokenIdsError
from prefixlab.bench.loadgen.job import roots_of
from prefixlab.bench.loadgen.sessions.turns import tree
from prefixlab.bench.loadgen.sockets.pacing import NOT_YET_NS, Turn, turn_of
from prefixlab.bench.loadgen.sockets.plan_file import PlanRows


class MakesTurns(Protocol):
    """`turns.Turns`, or what stands for it in a test."""

    def making(self, row: int, answer: Answer, continuing: Sequence[int]) -> Generator[None, None, bool]: ...

    def payload(self, row: int) -> memoryview: ...


@dataclass(slots=True)
class _Making:
    """Turns that continue one which has ended, being made."""

    after: int
    rows: list[int]
    ended_ns: int
    steps: Generator[None, None, bool]


class _Sessions:
    """What both loops share: who may go next, and what ends with an answer."""

    def __init__(self, rows: PlanRows, start_ns: int, turns: MakesTurns) -> None:
        self._rows = rows
        self._start_ns = start_ns
        self._turns = turns
        self._waiting, self._first_waiting = tree(rows.after)
        self._roots = np.flatnonzero(rows.after < 0)
        self._later: list[tuple[int, int]] = []  # heap: when a turn whose wait is over is due, and its row
        self._overdue: list[tuple[int, int]] = []  # heap: of those, the ones known to be due
        self._is_settled = np.zeros(len(rows), np.bool_)  # taken, or given up
        self._making: deque[_Making] = deque()
        self._num_roots_taken = 0
        self._num_taken = 0

    @property
    def num_taken(self) -> int:
        return self._num_taken

    def _next_later_ns(self) -> int:
        heads = (heap[0][0] for heap in (self._overdue, self._later) if heap)
        return min(heads, default=NOT_YET_NS)

    def _pop_later(self) -> tuple[int, int]:
        """When it was due, and its row."""
        heaps = [heap for heap in (self._overdue, self._later) if heap]
        return heapq.heappop(min(heaps, key=lambda heap: heap[0]))

    def _num_later_due(self, now_ns: int) -> int:
        while self._later and self._later[0][0] <= now_ns:
            heapq.heappush(self._overdue, heapq.heappop(self._later))
        return len(self._overdue)

    def _next_root(self) -> int:
        row = int(self._roots[self._num_roots_taken])
        self._num_roots_taken += 1
        return row

    def _turn(self, row: int, intended_ns: int, ready_ns: int) -> Turn:
        self._is_settled[row] = True
        self._num_taken += 1
        return turn_of(self._rows, row, intended_ns, ready_ns, self._turns.payload(row))

    @property
    def is_busy(self) -> bool:
        return bool(self._making)

    def work(self) -> Sequence[Answer]:
        if not self._making:
            return ()
        making = self._making.popleft()  # in turn, so that short answers need not wait behind long ones
        ending, detail = Ending.UNSENT, ""
        try:
            next(making.steps)
        except StopIteration as end:
            if end.value:
                for later in making.rows:
                    heapq.heappush(self._later, (self._due_ns_behind(making, later), later))
                return ()
        except NoTokenIdsError as error:
            ending, detail = Ending.NO_TOKEN_IDS, str(error)
        else:
            self._making.append(making)
            return ()
        given_up = []
        for later in making.rows:
            due_ns = self._due_ns_behind(making, later)
            given_up.append(self._give_up(later, ending, due_ns, detail))
            given_up += [self._give_up(below, Ending.UNSENT, due_ns) for below in self._all_behind(later)]
        self._on_given_up(making.after, len(given_up), making.ended_ns)
        return given_up

    def _due_ns_behind(self, making: _Making, later: int) -> int:
        return making.ended_ns + int(self._rows.delay_ns[later])

    def _on_given_up(self, row: int, num_rows: int, ended_ns: int) -> None:
        """So many rows behind this one are never sent."""

    def _go_on(self, row: int, answer: Answer, ended_ns: int) -> None:
        """Let those go that waited for `row`, or see to it that what they say is made."""
        continuing = []
        for later in self._behind(row):
            if self._rows.continues[later]:
                continuing.append(later)
            else:
                heapq.heappush(self._later, (ended_ns + int(self._rows.delay_ns[later]), later))
        if continuing:
            steps = self._turns.making(row, answer, continuing)
            self._making.append(_Making(row, continuing, ended_ns, steps))

    def _give_up(self, row: int, ending: Ending, intended_ns: int, detail: str = "") -> Answer:
        self._is_settled[row] = True
        return Answer(self._rows.index(row), ending, intended_ns, detail=detail)

    def _behind(self, row: int) -> list[int]:
        """The rows that wait for this one."""
        first, end = self._first_waiting[row], self._first_waiting[row + 1]
        rows: list[int] = self._waiting[first:end].tolist()
        return rows

    def _all_behind(self, row: int) -> Iterator[int]:
        """And those that wait for them, and so on."""
        ahead = deque(self._behind(row))
        while ahead:
            later = ahead.popleft()
            ahead.extend(self._behind(later))
            yield later

    def _left(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """Rows not settled, and when they were due: now, if what they wait for never ended."""
        due_ns = {row: due_ns for heap in (self._overdue, self._later) for due_ns, row in heap}
        for row in np.flatnonzero(~self._is_settled).tolist():
            yield row, due_ns.get(row, now_ns)


class OpenSessions(_Sessions):
    """First turns at their own times, whatever became of the others; at most `max_concurrency` requests at
    once."""

    def __init__(self, rows: PlanRows, start_ns: int, max_concurrency: int | None, turns: MakesTurns) -> None:
        super().__init__(rows, start_ns, turns)
        self._roots = self._roots[np.argsort(rows.due_ns[self._roots], kind="stable")]
        self._due_ns = rows.due_ns[self._roots] + start_ns
        self._num_free = len(rows) + 1 if max_concurrency is None else max_concurrency
        self._slot_ns = start_ns

    def next_due_ns(self) -> int:
        return min(self._next_root_ns(), self._next_later_ns()) if self._num_free else NOT_YET_NS

    def take(self) -> Turn:
        intended_ns = self._next_root_ns()
        if self._next_later_ns() <= intended_ns:  # whoever was there before goes first
            intended_ns, row = self._pop_later()
        else:
            row = self._next_root()
        self._num_free -= 1
        return self._turn(row, intended_ns, max(intended_ns, self._slot_ns))

    def done(self, answer: Answer, freed_ns: int) -> None:
        if self._num_free == 0:
            self._slot_ns = freed_ns
        self._num_free += 1
        self._go_on(self._rows.row(answer.index), answer, freed_ns)

    def num_queued(self, now_ns: int) -> int:
        num_due = int(np.searchsorted(self._due_ns, now_ns, side="right"))
        return max(0, num_due - self._num_roots_taken) + self._num_later_due(now_ns)

    def remaining(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """A later turn cannot be due before its first."""
        for row, due_ns in self._left(now_ns):
            own_ns = int(self._rows.due_ns[row]) + self._start_ns
            yield self._rows.index(row), own_ns if self._rows.after[row] < 0 else max(due_ns, own_ns)

    def _next_root_ns(self) -> int:
        more = self._num_roots_taken < len(self._roots)
        return int(self._due_ns[self._num_roots_taken]) if more else NOT_YET_NS


class ClosedSessions(_Sessions):
    """The next session, in the plan's order, as soon as one of `max_concurrency` slots is free; a slot is a
    session's until its last turn has ended, think time included."""

    def __init__(self, rows: PlanRows, start_ns: int, max_concurrency: int | None, turns: MakesTurns) -> None:
        super().__init__(rows, start_ns, turns)
        num_slots = len(self._roots) if max_concurrency is None else min(max_concurrency, len(self._roots))
        self._free_since_ns = deque([start_ns] * num_slots)
        self._root_of = roots_of(rows.after)
        self._num_open = np.bincount(self._root_of, minlength=len(rows))  # turns that have not ended, by root

    def next_due_ns(self) -> int:
        return min(self._next_root_ns(), self._next_later_ns())

    def take(self) -> Turn:
        if self._next_later_ns() <= self._next_root_ns():
            intended_ns, row = self._pop_later()
        else:
            intended_ns, row = self._free_since_ns.popleft(), self._next_root()
        return self._turn(row, intended_ns, intended_ns)

    def done(self, answer: Answer, freed_ns: int) -> None:
        row = self._rows.row(answer.index)
        self._go_on(row, answer, freed_ns)
        self._end_rows(row, 1, freed_ns)

    def _on_given_up(self, row: int, num_rows: int, ended_ns: int) -> None:
        self._end_rows(row, num_rows, ended_ns)

    def _end_rows(self, row: int, num_rows: int, ended_ns: int) -> None:
        """So many of the session of `row` have ended."""
        root = self._root_of[row]
        self._num_open[root] -= num_rows
        if not self._num_open[root]:
            self._free_since_ns.append(ended_ns)

    def num_queued(self, now_ns: int) -> int:
        """Later turns alone: a session is due when it has a slot."""
        return self._num_later_due(now_ns)

    def remaining(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """Turns of sessions that had no slot have never waited."""
        for row, due_ns in self._left(now_ns):
            yield self._rows.index(row), due_ns

    def _next_root_ns(self) -> int:
        more = self._free_since_ns and self._num_roots_taken < len(self._roots)
        return self._free_since_ns[0] if more else NOT_YET_NS
