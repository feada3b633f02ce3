"""A worker: puts a loop together from a job folder and runs it, in a process of its own or in the caller's.

Owns the process: its protocol (`job.py`), signals, limits, and that it never outlives its parent. Run as
`python -m prefixlab.bench.loadgen.sockets.worker FOLDER WORKER`.

Invariant: stdout carries the protocol and nothing else; what stops a worker before the run goes to stderr,
with exit code 2.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
from pathlib import Path
from typing import Self

from prefixlab.bench.loadgen import progress
from prefixlab.bench.loadgen.capture import MAGIC
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.job import (
    TOLD_TO_END,
    Job,
    capture_path,
    progress_path,
    read_job,
    read_writer,
)
from prefixlab.bench.loadgen.outgoing import RequestWriter
from prefixlab.bench.loadgen.sessions.source import ClosedSessions, OpenSessions
from prefixlab.bench.loadgen.sessions.turns import Turns
from prefixlab.bench.loadgen.sockets.connection import Connection, Endpoint
from prefixlab.bench.loadgen.sockets.loop import Loop
from prefixlab.bench.loadgen.sockets.machine import allow_open_files, die_with_parent, wake_on_time
from prefixlab.bench.loadgen.sockets.pacing import NOT_YET_NS, ClosedLoop, OpenLoop, Source
from prefixlab.bench.loadgen.sockets.plan_file import PlanRows
from prefixlab.bench.loadgen.sockets.poller import make_poller
from prefixlab.bench.loadgen.sockets.stamps import KernelStamps, monotonic_ns, thread_cpu_ns
from prefixlab.bench.loadgen.sockets.tls import TlsConnection, TlsSettings
from prefixlab.bench.targets.dialects import DIALECTS
from prefixlab.core.errors import PrefixlabError

_REFUSED = 2
_ORPHANED = 3


def run_loop(folder: Path, worker: int = 0, start_ns: int | None = None) -> ClientHealth:
    """Run worker `worker` of the job in `folder` here, to its end; its capture is in the folder then.

    Changes neither signal handlers nor the garbage collector. An exception that interrupts it (say,
    KeyboardInterrupt) passes through, and the capture has no end then; to end a run in order, have a handler
    call `Worker.cancel`.

    Args:
        start_ns: the run's start, monotonic; None: now.

    Raises:
        ConfigError: no job there, or too few open files are allowed.
    """
    with Worker(folder, worker) as prepared:
        return prepared.run(monotonic_ns() if start_ns is None else start_ns)


class Worker:
    """A loop ready to go: plan mapped, name looked up, kernel stamps tried, files open.

    Raises:
        ConfigError: no job there, or too few open files are allowed.
    """

    def __init__(self, folder: Path, worker: int) -> None:
        self._job = read_job(folder)
        self._cap = self._job.max_concurrency[worker] if self._job.max_concurrency else None
        self._loop: Loop | None = None
        self._cancelled = False
        with contextlib.ExitStack() as resources:
            self._rows = PlanRows(folder, worker, self._job)
            self._turns = _turns(folder, self._job, self._rows)
            resources.callback(self._rows.close)
            allow_open_files(self._num_streams())
            self._endpoint = Endpoint.resolve(self._job.host, self._job.port)
            self._stamps = KernelStamps.open() if self._job.kernel_stamps else None
            if self._stamps is not None:
                resources.callback(self._stamps.close)
            self._tls = _tls_settings(self._job)
            self._capture_fd = _open_capture(capture_path(folder, worker))
            resources.callback(os.close, self._capture_fd)
            counters = progress_path(folder, worker)
            if not counters.exists():
                progress.create(counters)
            self._counters = progress.open_counters(counters)
            self._resources = resources.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def run(self, start_ns: int) -> ClientHealth:
        """The whole run, once."""
        job = self._job
        source = self._source(start_ns)
        stop_ns = NOT_YET_NS if job.stop_after_ns is None else start_ns + job.stop_after_ns
        with contextlib.closing(make_poller()) as poller:

            def connect() -> Connection:
                if self._tls is not None:
                    return TlsConnection(self._endpoint, poller, self._stamps, self._tls)
                return Connection(self._endpoint, poller, self._stamps)

            loop = Loop(job, source, poller, connect, self._counters, self._capture_fd, stop_ns)
            self._loop = loop
            if self._cancelled:
                loop.cancel()
            began_ns, cpu_ns = monotonic_ns(), thread_cpu_ns()
            loop.run()
            loop.health.wall_s = (monotonic_ns() - began_ns) / 1e9
            loop.health.cpu_s = (thread_cpu_ns() - cpu_ns) / 1e9
        loop.health.stamps = "process" if self._stamps is None else "kernel"
        loop.health.compose_s.merge(self._turns.compose_s)
        return loop.health

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Give up what is in flight and send nothing more; before `run`, it sends nothing at all."""
        self._cancelled = True
        if self._loop is not None:
            self._loop.cancel()

    def _source(self, start_ns: int) -> Source:
        rows, is_open = self._rows, self._job.open_loop
        if rows.has_sessions:
            sessions = OpenSessions if is_open else ClosedSessions
            return sessions(rows, start_ns, self._cap, self._turns)
        pacing = OpenLoop if is_open else ClosedLoop
        return pacing(rows, start_ns, self._cap)

    def _num_streams(self) -> int:
        """Connections it is sure to have open at once. Open loop without a cap may need any number, and a
        request for which no file is left fails and says so."""
        if self._cap is None and self._job.open_loop:
            return 0
        num_sessions = self._rows.num_sessions
        return num_sessions if self._cap is None else min(self._cap, num_sessions)


def _turns(folder: Path, job: Job, rows: PlanRows) -> Turns:
    dialect, state = DIALECTS[job.dialect](), read_writer(folder)
    write = None if state is None else RequestWriter.of(state, dialect)
    return Turns(rows, write, dialect, monotonic_ns)


def _tls_settings(job: Job) -> TlsSettings | None:
    return TlsSettings.make(job.tls_name or job.host, job.verify_tls) if job.tls else None


def _open_capture(path: Path) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    if os.fstat(fd).st_size == 0:
        os.write(fd, MAGIC)
    return fd


def _wait_for_go(prepared: Worker) -> int | None:
    """The start the parent names; None if it has gone away. Cancelled while waiting: now."""
    while not prepared.cancelled:
        if select.select([sys.stdin], [], [], 0.05)[0]:
            word, _, start = sys.stdin.readline().partition(" ")
            return int(start) if word == "go" else None
    return monotonic_ns()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(folder: Path, worker: int) -> int:
    """The process. Returns its exit code."""
    die_with_parent()
    wake_on_time()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    try:
        with Worker(folder, worker) as prepared:
            signal.signal(signal.SIGTERM, lambda *_: prepared.cancel())
            # Nothing the loop makes is cyclic, and a collection in mid-run would show up as latency.
            gc.collect()
            gc.freeze()
            gc.disable()
            _say("ready")
            start_ns = _wait_for_go(prepared)
            if start_ns is None:
                return _ORPHANED
            _say(prepared.run(start_ns).to_json())
            if prepared.cancelled:
                return TOLD_TO_END
    except PrefixlabError as error:
        sys.stderr.write(f"{error}\n")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
