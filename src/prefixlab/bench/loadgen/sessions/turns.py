"""What a worker sends of a turn that continues another: made when the answer before has ended.

Owns the requests that a later turn still needs, and the time that making turns takes. What a history is,
`compose.py` says; whether an answer counts, `decoding/events.py`.

Invariant: a request is held no longer than until what continues it was made or given up.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import numpy.typing as npt

from prefixlab.bench.loadgen.capture import Answer
from prefixlab.bench.loadgen.compose import next_request
from prefixlab.bench.loadgen.decoding.events import read_reply
from prefixlab.bench.loadgen.outgoing import RequestWriter
from prefixlab.bench.loadgen.sockets.plan_file import PlanRows
from prefixlab.bench.targets.dialects import Dialect
from prefixlab.core.histogram import Histogram
from prefixlab.core.target import TargetRequest


class Turns:
    """Of one worker's rows.

    Args:
        write: None where no row continues another.
        now_ns: the clock that `compose_s` is measured with.

    Attributes:
        compose_s: how long reading an answer and making what continues it took, once per answer.
    """

    def __init__(
        self, rows: PlanRows, write: RequestWriter | None, dialect: Dialect, now_ns: Callable[[], int]
    ) -> None:
        self._rows = rows
        self._write = write
        self._dialect = dialect
        self._now_ns = now_ns
        self._is_continued = np.zeros(len(rows), np.bool_)
        self._is_continued[rows.after[rows.continues]] = True
        self._requests: dict[int, TargetRequest] = {}  # whole, of turns that were made and are continued
        self._payloads: dict[int, bytes] = {}
        self.compose_s = Histogram()

    def making(self, row: int, answer: Answer, continuing: Sequence[int]) -> Generator[None, None, bool]:
        """Make the rows that continue `row`, which was answered so, step by step; returns False if that did
        not succeed.

        Raises:
            NoTokenIdsError: it did, but the server does not say what the next prompt must begin with.
        """
        assert self._write is not None, "a row that continues another, and no way to write it"
        before = self._requests.pop(row, None)
        began_ns, spent_ns = self._now_ns(), 0
        reading = read_reply(answer, self._dialect, self._rows.max_new_tokens(row))
        while True:
            try:
                next(reading)
            except StopIteration as end:
                reply = end.value
                break
            spent_ns += self._now_ns() - began_ns
            yield
            began_ns = self._now_ns()
        if reply is None:
            return False
        if before is None:
            before = self._rows.request(row)
        for later in continuing:
            request = next_request(before, reply, self._rows.request(later))
            goes_on = bool(self._is_continued[later])
            self._payloads[later] = self._write(request, names_tokens=goes_on)
            if goes_on:
                self._requests[later] = request
        self.compose_s.record((spent_ns + self._now_ns() - began_ns) / 1e9)
        return True

    def payload(self, row: int) -> memoryview:
        """Of a row that is about to be sent, once."""
        made = self._payloads.pop(row, None)
        return self._rows.payload(row) if made is None else memoryview(made)


def tree(after: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Who waits for whom, from the other side.

    Args:
        after: for each row the earlier one it waits for, -1 where none. Shape (n,).

    Returns:
        Rows that wait, by the row they wait for and then in order, shape (m,); and where those of row i begin
        among them, shape (n + 1,).
    """
    waiting = np.flatnonzero(after >= 0)
    waiting = waiting[np.argsort(after[waiting], kind="stable")]
    return waiting, np.searchsorted(after[waiting], np.arange(len(after) + 1))
