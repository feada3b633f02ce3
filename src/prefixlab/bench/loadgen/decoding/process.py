"""A decoder process: follows one worker's capture and writes its records, in time that nobody else wants.

    python -m prefixlab.bench.loadgen.decoding.process FOLDER WORKER

Owns the file of lines and the decoder's counters. Prints `ready` when it stands by, and at the end its half
of the client's health as one JSON line. SIGTERM says that the worker has gone: it decodes what is there, and
ends.

Invariant: a record is in its file before it is counted.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Self

from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.decoding.tail import CaptureTail
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.progress import Counter, Counters, open_counters
from prefixlab.bench.loadgen.sockets.machine import die_with_parent
from prefixlab.bench.records import line
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.core.errors import PrefixlabError

_REFUSED = 2
_ORPHANED = 3
_PAUSE_S = 0.05
_BATCH_BYTES = 1 << 16


class Decoder:
    """Writes the records of one worker's capture."""

    def __init__(self, folder: Path, worker: int) -> None:
        self._tail = CaptureTail(folder, worker, jobs.read_job(folder))
        self._counters = open_counters(jobs.progress_path(folder, worker))
        path = jobs.records_path(folder, worker)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._tail.close()

    def catch_up(self, *, last_call: bool = False) -> bool:
        """Write what has become ready; returns whether the capture has come to its end.

        Args:
            last_call: the worker has gone, whether its capture has an end or not.
        """
        lines: list[bytes] = []
        records: list[Record] = []
        size = 0
        for record in self._tail.records(last_call=last_call):
            lines.append(line.encode(record))
            records.append(record)
            size += len(lines[-1])
            if size >= _BATCH_BYTES:
                self._write(lines, records)
                lines, records, size = [], [], 0
        self._write(lines, records)
        return self._tail.ended

    @property
    def health(self) -> ClientHealth:
        return self._tail.health

    def _write(self, lines: Sequence[bytes], records: Sequence[Record]) -> None:
        data = b"".join(lines)
        while data:  # a signal may have cut a write short
            data = data[os.write(self._fd, data) :]
        for record in records:
            count(record, self._counters)


def count(record: Record, counters: Counters) -> None:
    """Add a record to the counters that are the decoder's."""
    counters[Counter.DECODED] += 1
    counters[Counter.FAILED] += record.outcome is Outcome.FAILED
    counters[Counter.TOKENS] += record.num_output_tokens
    if record.outcome is Outcome.OK and record.arrivals_s and record.sent_s is not None:
        first_s, last_s = record.arrivals_s[0], record.arrivals_s[-1]
        counters[Counter.TTFT_SUM_NS] += round((first_s - record.sent_s) * 1e9)
        counters[Counter.TTFT_COUNT] += 1
        counters[Counter.ITL_SUM_NS] += round((last_s - first_s) * 1e9)
        counters[Counter.ITL_COUNT] += record.num_output_tokens - record.arrival_counts[0]


def main(folder: Path, worker: int) -> int:
    """The process. Returns its exit code."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    worker_gone = False

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        nonlocal worker_gone
        worker_gone = True

    try:
        with Decoder(folder, worker) as decoder:
            signal.signal(signal.SIGTERM, on_sigterm)
            _give_way()
            _say("ready")
            while True:
                last_call = worker_gone
                if decoder.catch_up(last_call=last_call) or last_call:
                    break
                if select.select([sys.stdin], [], [], _PAUSE_S)[0]:
                    return _ORPHANED  # nothing is ever written there, so it was closed: the parent has gone
            _say(decoder.health.to_json())
    except PrefixlabError as error:
        sys.stderr.write(f"{error}\n")
        return _REFUSED
    return 0


def _give_way() -> None:
    """To the socket loops. A system that has no such thing, or refuses it, does without."""
    with contextlib.suppress(OSError):
        os.nice(19)
    with contextlib.suppress(AttributeError, OSError):
        # Not only less time: a loop that wakes takes the core at once from a process of this class.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
