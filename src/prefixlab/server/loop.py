"""The loop thread: drives scheduler, cache and runner, and is the only thread that touches them.

    event loop ── commands ──► take them · step · run · commit · text · ends ── once a step ──► event loop

Owns that thread and what happens when something fails: a step that fails ends its requests and nothing else;
a bug of ours ends all requests with an error and leaves a loop that refuses work and says so, instead of one
that hangs. `jobs.py` turns tokens into updates. Knows no HTTP.

Invariant: every request queued gets exactly one ending update, and pages are back before it is sent. A call
of which one request cannot be queued ends with that error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from prefixlab.cache.manager import CacheManager
from prefixlab.core.clock import Clock
from prefixlab.core.errors import EngineError, NotIdleError, PrefixlabError, ShuttingDownError
from prefixlab.core.seams import Runner
from prefixlab.scheduler.scheduler import Scheduler
from prefixlab.server.calls import Call
from prefixlab.server.jobs import Jobs, as_engine_error
from prefixlab.server.metrics import LoopStats, ServerMetrics

log = logging.getLogger(__name__)

IDLE_CHECK_AFTER_S = 1.0
"""Idle this long, the loop checks every invariant once …"""
MAX_CHECK_S = 0.1
"""… unless the last check took longer than this: a request may be waiting behind it."""
STALL_POLL_S = 0.02
"""Requests wait, none can run: how often to look again (a queue time-out may end one)."""
JOIN_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush dropped."""

    num_dropped_pages: int
    num_dropped_tokens: int


@dataclass(slots=True)
class _Flush:
    deadline_s: float
    timeout_s: float
    answer: asyncio.Future[Flushed]


class EngineLoop:
    """See the module. Public methods are for the event loop's thread."""

    def __init__(
        self, scheduler: Scheduler, cache: CacheManager, runner: Runner, clock: Clock, metrics: ServerMetrics
    ) -> None:
        self._scheduler = scheduler
        self._cache = cache
        self._runner = runner
        self._clock = clock
        self._metrics = metrics
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[Call] = set()
        self._is_draining = False

        # The loop thread's own.
        self._flushes: list[_Flush] = []
        self._messages: list[Callable[[], None]] = []
        self._jobs = Jobs(scheduler, metrics, lambda message: self._messages.append(message))
        self._is_stalled = False
        self._is_stopping = False
        self._is_over = False
        self._needs_check = False
        self._checks_are_cheap = True

        # Written by the loop thread, read by any.
        self.stats = self._stats_now()
        self.death: EngineError | None = None
        """Why the loop takes no more work, if it died."""

    # For the event loop. --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, answering to the running event loop; begun before, answer to this one from now on. Calls of
        another one are not told any more how they end, so there should be none."""
        self._event_loop = asyncio.get_running_loop()
        if self._thread.ident is None:
            self._thread.start()

    async def stop(self) -> None:
        """End the thread; requests still running end with ShuttingDownError."""
        self.refuse_new()
        self._commands.put(self._stop)
        await asyncio.to_thread(self._thread.join, JOIN_TIMEOUT_S)

    @property
    def is_running(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def is_healthy(self) -> bool:
        """Whether it takes work."""
        return self._thread.is_alive() and self.death is None and not self._is_draining

    @property
    def num_unfinished(self) -> int:
        """Requests that came and are not answered yet."""
        return sum(choice.ended is None for call in self._calls for choice in call.choices)

    @contextlib.contextmanager
    def running(self, call: Call) -> Iterator[None]:
        """Submit `call` on entry; on exit, however that comes about, abort what is left of it.

        Raises:
            ShuttingDownError, EngineError: the server drains, or the loop died.
        """
        self._check_takes_work()
        self._calls.add(call)
        self._commands.put(partial(self._submit, call))
        try:
            yield
        finally:
            self._calls.discard(call)
            if not call.is_finished:
                self._commands.put(partial(self._abort_call, call))

    def abort(self, rid: str | None) -> int:
        """Abort the calls known as `rid`, or the one request of that id; None aborts everything. Their
        clients get what there is, with finish reason abort. Returns how many requests that concerns."""
        request_ids = [
            choice.request_id
            for call in self._calls
            for choice in call.choices
            if choice.ended is None and rid in (None, call.rid, choice.request_id)
        ]
        if request_ids:
            self._commands.put(partial(self._abort, request_ids))
        return len(request_ids)

    async def flush(self, timeout_s: float) -> Flushed:
        """Drop everything cached as soon as nothing waits or runs. Cancelled before that, it drops nothing.

        Raises:
            NotIdleError: requests were still there after `timeout_s`; nothing was dropped.
            ShuttingDownError, EngineError: the server drains, or the loop died.
        """
        self._check_takes_work()
        answer: asyncio.Future[Flushed] = asyncio.get_running_loop().create_future()
        flush = _Flush(self._clock.now() + timeout_s, timeout_s, answer)
        self._commands.put(partial(self._flushes.append, flush))
        return await answer

    def _check_takes_work(self) -> None:
        if self.death is not None:
            raise self.death
        if self._is_draining:
            raise ShuttingDownError("the server is shutting down")

    def refuse_new(self) -> None:
        """Take no new calls from now on. May be called from a signal handler."""
        self._is_draining = True

    async def drain(self, timeout_s: float) -> None:
        """Take no new calls; wait until those here are answered, then abort what is left."""
        self.refuse_new()
        deadline_s = self._clock.now() + timeout_s
        while self._calls and self._clock.now() < deadline_s:
            await asyncio.sleep(0.05)
        ids = [choice.request_id for call in self._calls for choice in call.choices if choice.ended is None]
        if ids:
            log.warning("%d requests did not finish within %g s; they are aborted", len(ids), timeout_s)
            self._commands.put(partial(self._abort, ids, ShuttingDownError("the server is shutting down")))

    # The loop. ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._take_commands()
                self._answer_flushes()
                self._report()  # who was let in, and who not, before a step that may be long
                self._step()
                self._report()
        except BaseException as bug:
            log.critical("the engine loop died: a bug of prefixlab", exc_info=bug)
            self.death = EngineError(f"the engine loop died: {type(bug).__name__}: {bug}")
        self._refuse_all()

    def _take_commands(self) -> None:
        command = self._next_command()
        while command is not None:
            command()
            command = None if self._commands.empty() else self._commands.get()

    def _next_command(self) -> Callable[[], None] | None:
        """The next command; while there is nothing else to do, wait for it."""
        is_idle = self._scheduler.is_idle
        if (is_idle and self._flushes) or not (is_idle or self._is_stalled):
            return None if self._commands.empty() else self._commands.get()
        if not is_idle:
            with contextlib.suppress(queue.Empty):
                return self._commands.get(timeout=STALL_POLL_S)
            return None
        if self._needs_check and self._checks_are_cheap:
            with contextlib.suppress(queue.Empty):
                return self._commands.get(timeout=IDLE_CHECK_AFTER_S)
            self._check()
        return self._commands.get()

    def _step(self) -> None:
        batch = self._scheduler.step()
        self._is_stalled = batch is None
        if batch is not None:
            self._needs_check = True
            self._jobs.note_admissions(batch)
            try:
                result = self._runner.run(batch)
            except Exception as error:
                log.exception("a step of %d rows failed; its requests end with an error", batch.num_rows)
                self._scheduler.fail(batch, as_engine_error(error))
            else:
                self._jobs.advance(batch, result)
        self._close_ended()

    def _close_ended(self) -> None:
        for request in self._scheduler.take_ended():
            self._jobs.close(request)

    # Commands, run by the loop thread. --------------------------------------------------------------------

    def _submit(self, call: Call) -> None:
        for index, (request, _) in enumerate(call.work):
            try:
                if self._is_over:
                    raise self._why_over()
                self._jobs.check_is_new(request)
                self._scheduler.add(request)
            except Exception as error:
                self._metrics.refused()
                self._jobs.fail(call, index, as_engine_error(error))
                self._abort_call(call)
                if isinstance(error, PrefixlabError):
                    return
                raise
            self._jobs.open(call, index)
        self._messages.append(call.accept)

    def _abort_call(self, call: Call) -> None:
        self._abort(self._jobs.live_ids_of(call))

    def _abort(self, request_ids: list[str], error: Exception | None = None) -> None:
        if not self._is_over:
            for request_id in request_ids:
                self._scheduler.abort(request_id, error)
            self._close_ended()  # now, as the next command may bring an id that this made free

    def _stop(self) -> None:
        self._is_stopping = True

    def _answer_flushes(self) -> None:
        if not self._flushes:
            return
        now_s = self._clock.now()
        waiting = []
        for flush in self._flushes:
            if flush.answer.cancelled():
                continue
            if self._scheduler.is_idle:
                num_pages = self._cache.reset()
                flushed = Flushed(num_pages, num_pages * self._cache.page_size)
                self._messages.append(partial(_set_result, flush.answer, flushed))
            elif now_s >= flush.deadline_s:
                counts = f"{self._scheduler.num_running} run and {self._scheduler.num_waiting} wait"
                error = NotIdleError(f"not flushed: after {flush.timeout_s:g} s, {counts}")
                self._messages.append(partial(_set_exception, flush.answer, error))
            else:
                waiting.append(flush)
        self._flushes[:] = waiting

    # Around the loop. -------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Show the new state, then tell the event loop: who hears that it ended finds its pages free."""
        self.stats = self._stats_now()
        self._send_messages()

    def _send_messages(self) -> None:
        if self._messages:
            messages, self._messages = self._messages, []
            assert self._event_loop is not None
            # The event loop is closed when the process stops: then nobody waits for an answer.
            with contextlib.suppress(RuntimeError):
                self._event_loop.call_soon_threadsafe(_call_all, messages)

    def _stats_now(self) -> LoopStats:
        scheduler = self._scheduler
        return LoopStats(self._cache.stats(), scheduler.num_waiting, scheduler.num_running, scheduler.is_idle)

    def _check(self) -> None:
        start_s = self._clock.now()
        self._scheduler.check()
        self._cache.check()
        self._needs_check = False
        self._checks_are_cheap = self._clock.now() - start_s <= MAX_CHECK_S

    # The end. ---------------------------------------------------------------------------------------------

    def _refuse_all(self) -> None:
        """The loop is over: what is here, and whatever still comes in, ends with the reason, until stopped.
        Scheduler and cache are not touched any more: after a bug, nobody knows their state."""
        self._is_over = True
        while True:
            self._jobs.fail_all(self._why_over())
            for flush in self._flushes:
                self._messages.append(partial(_set_exception, flush.answer, self._why_over()))
            self._flushes.clear()
            self._send_messages()
            if self._is_stopping and self._commands.empty():
                return
            self._commands.get()()

    def _why_over(self) -> Exception:
        return self.death or ShuttingDownError("the server is shutting down")


def _call_all(messages: list[Callable[[], None]]) -> None:
    for message in messages:
        message()


def _set_result(answer: asyncio.Future[Flushed], result: Flushed) -> None:
    if not answer.done():
        answer.set_result(result)


def _set_exception(answer: asyncio.Future[Flushed], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
