"""The rows of a plan that one worker sends, mapped into memory.

Owns reading them. Copies nothing: a request goes from the page cache to the socket.

Invariant: rows are in the plan's order.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from prefixlab.bench.loadgen.job import PLAN_BYTES, Job, read_plan, rows_of


class PlanRows:
    """Worker `worker`'s share of the plan of `job` in `folder`.

    Attributes:
        due_ns: shape (n,), int64, from the run's start.
    """

    def __init__(self, folder: Path, worker: int, job: Job) -> None:
        plan = read_plan(folder)
        self._indices = rows_of(job, worker, len(plan))
        rows = plan[self._indices]
        self._starts, self._lengths = rows["start"], rows["length"]
        self.due_ns: npt.NDArray[np.int64] = np.ascontiguousarray(rows["due_ns"])
        path = folder / PLAN_BYTES
        self._map: mmap.mmap | None = None
        if path.stat().st_size:  # nothing cannot be mapped
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = memoryview(self._map or b"")

    def __len__(self) -> int:
        return len(self.due_ns)

    def index(self, row: int) -> int:
        """Its place in the whole plan."""
        return int(self._indices[row])

    def payload(self, row: int) -> memoryview:
        """Head and body as they go on the wire. To be released before `close`."""
        start = int(self._starts[row])
        return self._bytes[start : start + int(self._lengths[row])]

    def close(self) -> None:
        # An exception on its way through a send still holds the piece it was sending; the map goes with it.
        with contextlib.suppress(BufferError):
            self._bytes.release()
            if self._map is not None:
                self._map.close()
