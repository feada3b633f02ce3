"""Counters of a run under way, in shared memory: a worker or decoder writes its own, the driver only looks.

Owns their places in the file. One writer per counter, whole 64-bit words, no lock: a reader may see counters
of slightly different moments, never a half-written one.

Invariant: the file is `len(Counter)` int64 values; the loop writes those before DECODED, the
decoder the others.
"""

from __future__ import annotations

import enum
from pathlib import Path

import numpy as np
import numpy.typing as npt

Counters = npt.NDArray[np.int64]


class Counter(enum.IntEnum):
    DUE = 0
    SENT = 1
    FIRST = 2
    """Answers whose body has begun."""
    PIECES = 3
    """Reads that brought bytes of a body, of answers not yet ended."""
    ENDED = 4
    IN_FLIGHT = 5
    PEAK_IN_FLIGHT = 6
    QUEUED = 7
    PEAK_QUEUED = 8
    DECODED = 9
    """Records written. From here on the decoder writes."""
    FAILED = 10
    TOKENS = 11
    TTFT_SUM_NS = 12
    TTFT_COUNT = 13
    ITL_SUM_NS = 14
    ITL_COUNT = 15


def create(path: Path) -> None:
    """All zero, for workers to map."""
    path.write_bytes(bytes(8 * len(Counter)))


def open_counters(path: Path) -> Counters:
    """The counters, shared with whoever else has the file open."""
    return np.memmap(path, dtype=np.int64, mode="r+", shape=(len(Counter),))
