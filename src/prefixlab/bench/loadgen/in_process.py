"""The driver for what needs no socket: puts a plan to a `core.seams.Target`, such as the engine in-process.

Owns pacing and accounting on one event loop, which lives as long as a run. The stamps are the target's own,
so no client lies between an event and its time.

Closed loop: at most so many requests at once, the next one goes when one ends. Open loop: each goes at its
own time, counted from the run's start (so without drift), and waits for a slot where there is a cap. What
waits for another goes when that has ended and its delay is over, in closed loop in the slot of its session.

Invariant: every planned request ends as exactly one record, also when the run is interrupted: those in flight
as cancelled, the rest as unsent.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from prefixlab.bench.loadgen.compose import NoTokenIdsError, next_request, reply_of_chunks
from prefixlab.bench.loadgen.driver import Drive, OnProgress, Progress
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.records.builder import RecordBuilder
from prefixlab.bench.records.line import encode
from prefixlab.bench.records.record import Failure, Outcome, Record, check_complete
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.targets.dialects import Reply
from prefixlab.core.clock import Clock
from prefixlab.core.errors import TargetError
from prefixlab.core.seams import Target
from prefixlab.core.target import Chunk, Sent, TargetRequest

PROGRESS_INTERVAL_S = 0.2
RETRY_WAIT_S = 0.1
RECORDS_FILE = "records-0.jsonl"


class StreamDriver:
    """See the module. `clock` must be the one the target stamps with."""

    def __init__(self, target: Target, clock: Clock) -> None:
        self._target = target
        self._clock = clock

    def run(
        self,
        plan: Iterable[Planned],
        load: Load,
        *,
        on_progress: OnProgress | None = None,
        folder: Path | None = None,
    ) -> Drive:
        """See `Driver`. Not to be called from within an event loop."""
        with contextlib.ExitStack() as files:
            lines = None if folder is None else files.enter_context((folder / RECORDS_FILE).open("xb", 0))
            run = _Run(self._target, self._clock, list(plan), load, lines)
            try:
                return asyncio.run(run.to_its_end(on_progress))
            except BaseExceptionGroup as group:
                # The first thing that went wrong ended all other tasks with it.
                raise _first_error(group) from None


class _Run:
    """Pacing: when each request of one run goes, and how it is asked."""

    def __init__(
        self, target: Target, clock: Clock, plan: Sequence[Planned], load: Load, lines: BinaryIO | None
    ) -> None:
        self._target = target
        self._clock = clock
        self._plan = plan
        self._load = load
        self._start_s = clock.now()
        self._ledger = _Ledger(plan, self._start_s, lines)
        limit = load.max_concurrency
        self._slots = asyncio.Semaphore(limit) if load.open_loop and limit is not None else None
        self._behind: dict[int, list[int]] = {}  # row → rows that wait for it
        for row, planned in enumerate(plan):
            if planned.after is not None:
                assert planned.after < row, f"{planned.request.request_id} waits for no earlier request"
                self._behind.setdefault(planned.after, []).append(row)

    async def to_its_end(self, on_progress: OnProgress | None) -> Drive:
        interrupted = False
        try:
            with _sigterm_cancels_this_task():
                async with asyncio.TaskGroup() as tasks:
                    reporting = tasks.create_task(self._report(on_progress)) if on_progress else None
                    await (self._open_loop() if self._load.open_loop else self._closed_loop())
                    if reporting is not None:
                        reporting.cancel()
        except asyncio.CancelledError:  # Ctrl-C, which asyncio.run makes of SIGINT, or SIGTERM
            interrupted = True
        drive = self._ledger.close(interrupted)
        if on_progress is not None:
            on_progress(self._ledger.progress(self._since_start_s()))
        return drive

    async def _closed_loop(self) -> None:
        begins = [row for row, planned in enumerate(self._plan) if planned.after is None]
        waiting = iter(begins)

        async def keep_one_under_way() -> None:
            for row in waiting:
                if self._is_over():
                    return
                await self._session(row, self._plan[row].request, self._clock.now())

        num_slots = min(self._load.max_concurrency or len(begins), len(begins))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(num_slots):
                tasks.create_task(keep_one_under_way())

    async def _open_loop(self) -> None:
        stop_after_s = self._load.stop_after_s
        begins = [row for row, planned in enumerate(self._plan) if planned.after is None]
        async with asyncio.TaskGroup() as tasks:
            for row in sorted(begins, key=lambda row: self._plan[row].offset_s):
                planned = self._plan[row]
                if stop_after_s is not None and planned.offset_s > stop_after_s:
                    break
                due_s = self._start_s + planned.offset_s
                await self._until(due_s)
                tasks.create_task(self._session(row, planned.request, due_s))

    async def _session(self, row: int, request: TargetRequest, due_s: float) -> None:
        """A request whose time has come, and whatever waits for it."""
        self._ledger.due += 1
        flight = await self._send_in_turn(row, request, due_s)
        behind = self._behind.get(row, ())
        if flight is None or not behind:
            return
        async with asyncio.TaskGroup() as tasks:
            for later in behind:
                tasks.create_task(self._go_on(later, request, flight))

    async def _go_on(self, row: int, before: TargetRequest, flight: _Flight) -> None:
        """A turn behind one that has ended."""
        planned = self._plan[row]
        request, due_s = planned.request, flight.ended_s + planned.delay_s
        if planned.continues:
            if flight.outcome is not Outcome.OK:
                self._give_up(row, due_s)
                return
            try:
                request = next_request(before, flight.reply, request)
            except NoTokenIdsError as error:
                self._give_up(row, due_s, error)
                return
        stop_after_s = self._load.stop_after_s
        if stop_after_s is not None and due_s > self._start_s + stop_after_s:
            return
        await self._until(due_s)
        await self._session(row, request, due_s)

    def _give_up(self, row: int, due_s: float, error: NoTokenIdsError | None = None) -> None:
        """A turn that is never sent, and so is nothing behind it."""
        unsent = self._plan[row].unsent(due_s)
        if error is not None:
            unsent = replace(unsent, outcome=Outcome.FAILED, failure=Failure.NO_TOKEN_IDS, error=str(error))
        self._ledger.keep(unsent)
        for later in self._behind.get(row, ()):
            self._give_up(later, due_s)

    async def _until(self, due_s: float) -> None:
        # A sleep may end a little early, and nothing is sent before it is due.
        while (wait_s := due_s - self._clock.now()) > 0:
            await asyncio.sleep(wait_s)

    async def _send_in_turn(self, row: int, request: TargetRequest, due_s: float) -> _Flight | None:
        """What became of it; None if the run was over before its turn."""
        if self._slots is None:
            return await self._send(row, request, due_s)
        with self._ledger.queueing(self._slots.locked()):
            await self._slots.acquire()
        try:
            return None if self._is_over() else await self._send(row, request, due_s)
        finally:
            self._slots.release()

    async def _send(self, row: int, request: TargetRequest, due_s: float) -> _Flight:
        """One request, from its first attempt to its record. What the target does is data, not an error."""
        unsent = self._plan[row].unsent(due_s)
        with self._ledger.flight(unsent, self._clock, keeps=row in self._behind) as flight:
            for attempt in range(self._load.retries + 1):
                if attempt:
                    await asyncio.sleep(RETRY_WAIT_S)
                flight.begin(attempt)
                try:
                    async for item in self._target.stream(request):
                        flight.take(item)
                except TargetError as error:
                    flight.fail(str(error))
                    if flight.answered:
                        break
                else:
                    flight.outcome = Outcome.OK
                    break
        return flight

    def _is_over(self) -> bool:
        stop_after_s = self._load.stop_after_s
        return stop_after_s is not None and self._since_start_s() > stop_after_s

    def _since_start_s(self) -> float:
        return self._clock.now() - self._start_s

    async def _report(self, on_progress: OnProgress) -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            on_progress(self._ledger.progress(self._since_start_s()))


class _Ledger:
    """Accounting: what is known of one run so far, and the records of what has ended."""

    def __init__(self, plan: Sequence[Planned], start_s: float, lines: BinaryIO | None) -> None:
        self._plan = plan
        self._start_s = start_s
        self._lines = lines
        self._records: list[Record] = []
        self._health = ClientHealth(stamps="target")
        self.due = self.sent = self.first = self.tokens = 0
        self._failed = self._in_flight = self._queued = 0
        self._num_ttft = self._num_gaps = 0
        self._ttft_s = self._gaps_s = 0.0

    @contextlib.contextmanager
    def queueing(self, waits: bool) -> Iterator[None]:
        self._queued += waits
        self._health.peak_queued = max(self._health.peak_queued, self._queued)
        try:
            yield
        finally:
            self._queued -= waits

    @contextlib.contextmanager
    def flight(self, unsent: Record, clock: Clock, *, keeps: bool) -> Iterator[_Flight]:
        """A request on its way; however the block ends, its record is kept.

        Args:
            keeps: what was answered is kept, too.
        """
        flight = _Flight(unsent, self, keeps)
        ready_s = clock.now()
        self._in_flight += 1
        self._health.peak_in_flight = max(self._health.peak_in_flight, self._in_flight)
        try:
            yield flight
        finally:
            self._in_flight -= 1
            flight.ended_s = clock.now()
            record = flight.record(flight.ended_s)
            self._health.num_retries += record.num_retries
            if record.sent_s is not None:
                self._health.send_lag_s.record(max(0.0, record.sent_s - ready_s))
            self.keep(record)

    def close(self, interrupted: bool) -> Drive:
        """Every planned request has its record now."""
        seen = {record.request_id for record in self._records}
        for planned in self._plan:
            if planned.request.request_id not in seen:
                self.keep(planned.unsent(self._start_s + planned.offset_s))
        check_complete(self._records, len(self._plan))
        duration_s = max((r.last_s for r in self._records if r.last_s is not None), default=0.0)
        self._health.wall_s = duration_s
        return Drive(RecordTable.of(self._records), duration_s, self._health, interrupted)

    def progress(self, elapsed_s: float) -> Progress:
        return Progress(
            elapsed_s=elapsed_s,
            planned=len(self._plan),
            due=self.due,
            sent=self.sent,
            first=self.first,
            tokens=self.tokens,
            finished=len(self._records),
            failed=self._failed,
            in_flight=self._in_flight,
            queued=self._queued,
            peak_in_flight=self._health.peak_in_flight,
            peak_queued=self._health.peak_queued,
            ttft_s=self._ttft_s / self._num_ttft if self._num_ttft else None,
            itl_s=self._gaps_s / self._num_gaps if self._num_gaps else None,
        )

    def keep(self, record: Record) -> None:
        """The one ending of a request. `record` has the clock's times; from here on they count from the run's
        start."""
        record = _since(record, self._start_s)
        self._records.append(record)
        if self._lines is not None:
            self._lines.write(encode(record))
        self._failed += record.outcome is Outcome.FAILED
        if record.outcome is Outcome.OK and record.arrivals_s and record.sent_s is not None:
            self._ttft_s += record.arrivals_s[0] - record.sent_s
            self._num_ttft += 1
            self._gaps_s += record.arrivals_s[-1] - record.arrivals_s[0]
            self._num_gaps += record.num_output_tokens - record.arrival_counts[0]


class _Flight:
    """One request on its way, attempt by attempt: only the last one makes the record.

    Attributes:
        ended_s: when it was over.
    """

    def __init__(self, unsent: Record, ledger: _Ledger, keeps: bool) -> None:
        self._unsent = unsent
        self._ledger = ledger
        self._keeps = keeps
        self._chunks: list[Chunk] = []
        self.ended_s = 0.0
        self._builder = RecordBuilder(unsent)
        self._was_sent = False
        self._num_tokens = 0
        self._error: str | None = None
        self.answered = False
        self.outcome = Outcome.UNSENT

    def begin(self, attempt: int) -> None:
        self._builder = RecordBuilder(replace(self._unsent, num_retries=attempt))
        self._chunks.clear()
        self._error = None
        self.outcome = Outcome.CANCELLED  # unless it gets to an end of its own

    def take(self, item: Sent | Chunk) -> None:
        if isinstance(item, Sent):
            self._builder.sent(item)
            self._ledger.sent += not self._was_sent
            self._was_sent = True
            return
        self._builder.add(item)
        if self._keeps:
            self._chunks.append(item)
        self._ledger.first += not self.answered
        self.answered = True
        if item.num_output_tokens is not None:
            self._ledger.tokens += item.num_output_tokens - self._num_tokens
            self._num_tokens = item.num_output_tokens
        else:
            self._ledger.tokens += item.carries_tokens

    def fail(self, error: str) -> None:
        self._error = error
        self.outcome = Outcome.FAILED

    @property
    def reply(self) -> Reply:
        return reply_of_chunks(self._chunks)

    def record(self, now_s: float) -> Record:
        if self.outcome is Outcome.CANCELLED and not self._was_sent:
            return self._unsent
        return self._builder.finish(self.outcome, now_s, error=self._error)


def _since(record: Record, start_s: float) -> Record:
    """The record with its times counted from `start_s`."""

    def since(time_s: float | None) -> float | None:
        return None if time_s is None else time_s - start_s

    return replace(
        record,
        intended_s=record.intended_s - start_s,
        sent_s=since(record.sent_s),
        connect_started_s=since(record.connect_started_s),
        connected_s=since(record.connected_s),
        first_byte_s=since(record.first_byte_s),
        first_content_s=since(record.first_content_s),
        arrivals_s=tuple(arrival_s - start_s for arrival_s in record.arrivals_s),
        last_s=since(record.last_s),
    )


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first_error(error) if isinstance(error, BaseExceptionGroup) else error


@contextlib.contextmanager
def _sigterm_cancels_this_task() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does. Only the main thread may say so; elsewhere nothing changes."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "called from a coroutine"
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(task.cancel)

    before = signal.signal(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
