"""The driver for HTTP servers: worker processes with kernel stamps, and decoders behind them.

Owns a run from plan to table: lays the job down, runs it, here if it is small and in a fleet otherwise, and
accounts for every request. Knows neither sockets nor events.

Invariant: every planned request is one row of the table, whichever process died; lines that were written are
never written again.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen import progress
from prefixlab.bench.loadgen.decoding.process import Decoder
from prefixlab.bench.loadgen.driver import Drive, OnProgress, Progress
from prefixlab.bench.loadgen.fleet import STREAMS_PER_WORKER, TICK_S, Interrupts, Machines, ThisMachine
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.loadgen.outgoing import Address, RequestWriter
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.progress import Counter, Counters
from prefixlab.bench.loadgen.sockets.worker import Worker
from prefixlab.bench.records import line
from prefixlab.bench.records.record import Failure, Outcome
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.targets.dialects import Dialect
from prefixlab.core.clock import Clock, MonotonicClock

MAX_INLINE_REQUESTS = 8
"""Up to so many are sent from this process: probes, which need not wait for others to start."""


class SocketDriver:
    """See the module. Nothing is opened before `run`, and nothing is left open after it.

    Args:
        url: base URL; `path` under it, or the dialect's where None, is asked.
        read_timeout_s: the longest silence inside an answer, the wait for its first byte included.
        total_timeout_s: the longest a request may take; None: no limit.
        machines: where client processes run; None: here. A handful of requests always goes from here.

    Raises:
        ConfigError: the URL or a header cannot be used.
    """

    def __init__(
        self,
        url: str,
        dialect: Dialect,
        *,
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
        path: str | None = None,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 1200.0,
        total_timeout_s: float | None = None,
        reuse_connections: bool = True,
        verify_tls: bool = True,
        kernel_stamps: bool = True,
        machines: Machines | None = None,
    ) -> None:
        address = Address(url, dialect.path if path is None else path)
        self._clock: Clock = MonotonicClock()
        self._machines = machines or ThisMachine()
        self._write = RequestWriter(
            address,
            dialect,
            model=model,
            headers=headers or {},
            api_key=api_key,
            reuse_connections=reuse_connections,
        )
        self._job = Job(
            host=address.host,
            port=address.port,
            dialect=dialect.name,
            path=address.path,
            tls=address.tls,
            verify_tls=verify_tls,
            tls_name=address.host if address.tls else None,
            connect_timeout_ns=_nanoseconds(connect_timeout_s),
            read_timeout_ns=_nanoseconds(read_timeout_s),
            total_timeout_ns=None if total_timeout_s is None else _nanoseconds(total_timeout_s),
            reuse_connections=reuse_connections,
            kernel_stamps=kernel_stamps,
        )

    def run(
        self,
        plan: Iterable[Planned],
        load: Load,
        *,
        on_progress: OnProgress | None = None,
        folder: Path | None = None,
    ) -> Drive:
        """See `Driver`. `on_progress` may be called from another thread, while this one waits.

        Raises:
            KeyboardInterrupt: interrupted a second time; `recover` gets what had finished by then.
        """
        with contextlib.ExitStack() as resources:
            if folder is None:
                folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="prefixlab-")))
            resources.callback(jobs.forget_plan, folder)
            num_planned = jobs.write_plan(folder, plan, self._write)
            num_sessions = int((jobs.read_plan(folder)["after"] == 0).sum())
            job = pace(self._job, load, num_planned, self._machines, num_sessions=num_sessions)
            jobs.write_job(folder, job)
            run = _Run(folder, job, num_planned, self._clock, on_progress)
            if not num_planned:
                health = ClientHealth(num_workers=0)
            elif num_planned <= MAX_INLINE_REQUESTS and load.num_workers is None:
                health = run.here()
            else:
                health = run.in_fleet(self._machines)
            health.cap_is_shared = job.open_loop and job.num_workers > 1 and job.max_concurrency is not None
            table = run.account()
            run.report()
            jobs.tidy(folder)
        ended_s = table.last_s[np.isfinite(table.last_s)]
        return Drive(table, float(ended_s.max(initial=0.0)), health, run.interrupted, run.deaths)


def pace(job: Job, load: Load, num_planned: int, machines: Machines, *, num_sessions: int) -> Job:
    """`job` as `load` says, with the slots shared out over as many workers as have one.

    Args:
        num_sessions: requests of the plan that wait for no other. In closed loop slots are theirs.
    """
    num_wanted = max(1, num_planned if load.open_loop else num_sessions)
    cap = None if load.max_concurrency is None else min(load.max_concurrency, num_wanted)
    num_streams = cap or num_sessions
    if load.open_loop and cap is not None:
        # A request that is due waits for a slot of its own process: as few as can serve so many.
        num_streams = max(1, cap // STREAMS_PER_WORKER) * STREAMS_PER_WORKER
    num_workers = load.num_workers or machines.default_num_workers(num_streams)
    num_workers = max(1, min(num_workers, cap or num_sessions, num_sessions))
    return msgspec.structs.replace(
        job,
        num_workers=num_workers,
        open_loop=load.open_loop,
        max_concurrency=None if cap is None else _shares(cap, num_workers),
        stop_after_ns=None if load.stop_after_s is None else _nanoseconds(load.stop_after_s),
        retries=load.retries,
    )


def _shares(total: int, num_parts: int) -> tuple[int, ...]:
    return tuple(total // num_parts + (part < total % num_parts) for part in range(num_parts))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


class _Run:
    """One run of a job that lies in `folder`.

    Attributes:
        interrupted: a first Ctrl-C or SIGTERM came.
    """

    def __init__(
        self, folder: Path, job: Job, num_planned: int, clock: Clock, on_progress: OnProgress | None
    ) -> None:
        self._folder = folder
        self._job = job
        self._num_planned = num_planned
        self._clock = clock
        self._on_progress = on_progress
        self._start_ns: int | None = None
        self._deaths: dict[int, str] = {}
        self.interrupted = False
        self._counters = []
        for worker in range(job.num_workers):
            path = jobs.progress_path(folder, worker)
            progress.create(path)
            self._counters.append(progress.open_counters(path))

    def here(self) -> ClientHealth:
        """In this process: the loop first, then the decoder."""
        with Worker(self._folder, 0) as worker, Interrupts(worker.cancel) as interrupts:
            self._start_ns = round(self._clock.now() * 1e9)
            jobs.write_start(self._folder, self._start_ns)
            with self._reporting():
                health = worker.run(self._start_ns)
            self.interrupted = interrupts.count > 0
        with Decoder(self._folder, 0) as decoder:
            decoder.catch_up(last_call=True)
            health.merge(decoder.health)
        return health

    def in_fleet(self, machines: Machines) -> ClientHealth:
        """In processes of their own."""
        with (
            Interrupts() as interrupts,
            machines.fleet(self._folder, self._job.num_workers, self._clock) as fleet,
        ):
            fleet.wait_until_ready()
            self._start_ns = fleet.start()
            fleet.watch(interrupts, self.report)
            self.interrupted = interrupts.count > 0
            end = fleet.end()
        self._deaths = end.deaths
        return end.health

    def account(self) -> RecordTable:
        """The table of all that was planned, once nobody writes any more."""
        table = self._read()
        if len(table) < self._num_planned:
            self._write_missing(set(table.request_id))
            table = self._read()
        assert len(table) == self._num_planned, f"{self._num_planned} planned, {len(table)} recorded"
        return table

    @property
    def deaths(self) -> tuple[str, ...]:
        """See `Drive`."""
        return tuple(self._deaths[worker] for worker in sorted(self._deaths))

    def report(self) -> None:
        """Tell how far it is."""
        if self._on_progress is not None and self._start_ns is not None:
            elapsed_s = self._clock.now() - self._start_ns / 1e9
            self._on_progress(sum_up(self._counters, self._num_planned, elapsed_s))

    def _read(self) -> RecordTable:
        paths = [jobs.records_path(self._folder, worker) for worker in range(self._job.num_workers)]
        return RecordTable.read([path for path in paths if path.exists()])

    def _write_missing(self, seen: set[str]) -> None:
        """A record for each request that died with the process that was to send it."""
        templates, plan = jobs.read_templates(self._folder), jobs.read_plan(self._folder)
        for worker in range(self._job.num_workers):
            with jobs.records_path(self._folder, worker).open("ab") as file:
                for row in jobs.rows_of(self._job, worker, plan).tolist():
                    template = templates[row]
                    if template.request_id not in seen:
                        death = self._deaths.setdefault(
                            worker, f"client process {worker} left no answer in its capture"
                        )
                        record = replace(
                            template,
                            outcome=Outcome.FAILED,
                            failure=Failure.CLIENT,
                            error=f"{death}; whether this request had been sent is not known",
                            client=worker,
                        )
                        file.write(line.encode(record))
                        self._counters[worker][Counter.FAILED] += 1

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """A thread that reports while this one is busy sending."""
        if self._on_progress is None:
            yield
            return
        done = threading.Event()

        def report() -> None:
            while not done.wait(TICK_S):
                self.report()

        thread = threading.Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def sum_up(counters: Sequence[Counters], num_planned: int, elapsed_s: float) -> Progress:
    """How far a run is, from the counters of its workers and decoders.

    A decoder may be behind, as it runs when nobody else wants to: answers it has not come to count as many
    tokens as those before them had on average, so that a figure on the screen does not fall back.
    """
    sums = np.sum(counters, axis=0).tolist()
    behind = max(0, sums[Counter.ENDED] - sums[Counter.DECODED])
    mean_tokens = sums[Counter.TOKENS] / max(1, sums[Counter.DECODED])

    def mean_s(total_ns: Counter, count: Counter) -> float | None:
        return sums[total_ns] / sums[count] / 1e9 if sums[count] else None

    return Progress(
        elapsed_s=elapsed_s,
        planned=num_planned,
        due=sums[Counter.DUE],
        sent=sums[Counter.SENT],
        first=sums[Counter.FIRST],
        tokens=sums[Counter.TOKENS] + sums[Counter.PIECES] + round(behind * mean_tokens),
        finished=sums[Counter.ENDED],
        failed=sums[Counter.FAILED],
        in_flight=sums[Counter.IN_FLIGHT],
        queued=sums[Counter.QUEUED],
        peak_in_flight=sums[Counter.PEAK_IN_FLIGHT],
        peak_queued=sums[Counter.PEAK_QUEUED],
        ttft_s=mean_s(Counter.TTFT_SUM_NS, Counter.TTFT_COUNT),
        itl_s=mean_s(Counter.ITL_SUM_NS, Counter.ITL_COUNT),
    )
