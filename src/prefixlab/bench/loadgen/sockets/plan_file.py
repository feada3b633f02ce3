"""The rows of a plan that one worker sends, mapped into memory.

Owns reading them. Copies nothing of what lies there as it is sent: it goes from the page cache to the socket.

Invariant: rows are in the plan's order, and whole sessions.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from prefixlab.bench.loadgen.job import PLAN_BYTES, Job, decode_request, read_plan, rows_of
from prefixlab.core.target import TargetRequest

SHORT_ANSWER_BYTES, TOKEN_BYTES, LONG_ANSWER_BYTES = 1 << 20, 16 << 10, 1 << 30
"""What bounds an answer: one that does not end would hold its slot for ever, and fill memory."""


class PlanRows:
    """Worker `worker`'s share of the plan of `job` in `folder`.

    Attributes:
        due_ns: shape (n,), int64, from the run's start.
        after: shape (n,), int64: the row of this share that each waits for, -1 where none.
        delay_ns: shape (n,), int64: for how long after that one's end.
        continues: shape (n,), bool: its prompt begins with that one's and the answer to it.
    """

    def __init__(self, folder: Path, worker: int, job: Job) -> None:
        plan = read_plan(folder)
        self._indices = rows_of(job, worker, plan)
        rows = plan[self._indices]
        self._starts, self._lengths = rows["start"], rows["length"]
        self._request_lengths, self._max_new_tokens = rows["request_length"], rows["max_new_tokens"]
        self.due_ns: npt.NDArray[np.int64] = np.ascontiguousarray(rows["due_ns"])
        self.delay_ns: npt.NDArray[np.int64] = np.ascontiguousarray(rows["delay_ns"])
        self.continues: npt.NDArray[np.bool_] = np.ascontiguousarray(rows["continues"])
        waits = rows["after"] > 0
        self.after: npt.NDArray[np.int64] = np.full(len(rows), -1, np.int64)
        self.after[waits] = np.searchsorted(self._indices, rows["after"][waits].astype(np.int64) - 1)
        path = folder / PLAN_BYTES
        self._map: mmap.mmap | None = None
        if path.stat().st_size:  # nothing cannot be mapped
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = memoryview(self._map or b"")

    def __len__(self) -> int:
        return len(self.due_ns)

    @property
    def has_sessions(self) -> bool:
        """Whether any waits for another."""
        return bool((self.after >= 0).any())

    @property
    def num_sessions(self) -> int:
        """Rows that wait for nobody."""
        return int((self.after < 0).sum())

    def index(self, row: int) -> int:
        """Its place in the whole plan."""
        return int(self._indices[row])

    def row(self, index: int) -> int:
        """The row at that place of the whole plan, which is one of this share."""
        return int(np.searchsorted(self._indices, index))

    def max_new_tokens(self, row: int) -> int:
        return int(self._max_new_tokens[row])

    def max_answer_bytes(self, row: int) -> int:
        """More than any API says of so many tokens; `/generate` says all of the text again with each."""
        num_tokens = self.max_new_tokens(row)
        return min(SHORT_ANSWER_BYTES + num_tokens * (TOKEN_BYTES + 8 * num_tokens), LONG_ANSWER_BYTES)

    def payload(self, row: int) -> memoryview:
        """Head and body for the wire, of a row that continues none. To be released before `close`."""
        start = int(self._starts[row])
        return self._bytes[start : start + int(self._lengths[row])]

    def request(self, row: int) -> TargetRequest:
        """Of a row that continues another, or is continued."""
        start = int(self._starts[row]) + int(self._lengths[row])
        return decode_request(self._bytes[start : start + int(self._request_lengths[row])])

    def close(self) -> None:
        # An exception on its way through a send still holds the piece it was sending; the map goes with it.
        with contextlib.suppress(BufferError):
            self._bytes.release()
            if self._map is not None:
                self._map.close()
