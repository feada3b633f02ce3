"""A decoder process: follows one worker's capture and writes its records, in time that nobody else wants.

    python -m prefixlab.bench.loadgen.decoding.process FOLDER WORKER

Owns the file of lines and the decoder's counters. Prints `ready` when it stands by, and at the end its half
of the client's health as one JSON line. SIGTERM says that the worker has gone: it decodes what is left, and
ends. While the worker runs, a thread of low priority decodes; afterwards nobody has to be given way to, so
the rest is decoded at the priority that the process has.

Invariant: a record is in its file before it is counted.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
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

    def catch_up(self, *, last_call: bool = False, stop: Callable[[], bool] = lambda: False) -> bool:
        """Write what has become ready; returns whether the capture has come to its end.

        Args:
            last_call: the worker has gone, whether its capture has an end or not.
            stop: asked after each record; what is ready then is left for the next call.
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
            if stop():
                break
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


class _Follower(threading.Thread):
    """Decodes beside a worker until it is told to leave off, or the capture has ended; then wakes `main`."""

    def __init__(self, decoder: Decoder, wake: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.leave_off = threading.Event()
        self.error: BaseException | None = None
        self._decoder = decoder
        self._wake = wake

    def run(self) -> None:
        _give_way()
        try:
            while not self._decoder.catch_up(stop=self.leave_off.is_set):
                if self.leave_off.wait(_PAUSE_S):
                    return
        except BaseException as error:
            self.error = error
        finally:
            self._wake()


def main(folder: Path, worker: int) -> int:
    """The process. Returns its exit code."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    bell, ringer = os.pipe()
    os.set_blocking(ringer, False)
    try:
        with Decoder(folder, worker) as decoder:
            follower = _Follower(decoder, lambda: os.write(ringer, b"."))
            signal.signal(signal.SIGTERM, lambda *_: follower.leave_off.set())
            signal.set_wakeup_fd(ringer)
            follower.start()
            _say("ready")
            # SIGTERM rings, and the follower as the last thing it does. Nothing is ever written to standard
            # input, so it was closed: the parent has gone.
            if sys.stdin in select.select([sys.stdin, bell], [], [])[0]:
                return _ORPHANED
            follower.join()
            if follower.error is not None:
                raise follower.error
            if follower.leave_off.is_set():
                decoder.catch_up(last_call=True)
            _say(decoder.health.to_json())
    except PrefixlabError as error:
        sys.stderr.write(f"{error}\n")
        return _REFUSED
    return 0


def _give_way() -> None:
    """To the socket loops: the calling thread, on Linux. A system that has no such thing, or refuses it, does
    without."""
    with contextlib.suppress(OSError):
        os.nice(19)
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
