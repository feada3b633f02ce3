"""The loop thread: drives scheduler, cache and runner, and is the only thread that touches them.

    event loop ── commands ──► take them · step · run · commit · text · ends ── once a step ──► event loop

Owns that thread, the requests' decoders, and what happens when something fails: a step that fails ends its
requests and nothing else; a bug of ours ends all requests with an error and leaves a loop that refuses work
and says so, instead of one that hangs. Knows no HTTP.

Invariant: every request submitted gets exactly one ending update, and pages are back before it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from prefixlab.cache.manager import CacheManager
from prefixlab.core.batch import Batch, StepResult, TokenLogprobs
from prefixlab.core.clock import Clock
from prefixlab.core.errors import EngineError, NotIdleError, PrefixlabError, ShuttingDownError
from prefixlab.core.request import FinishReason, Request
from prefixlab.core.seams import Runner
from prefixlab.core.text import IncrementalDecoder
from prefixlab.scheduler.scheduler import Scheduler
from prefixlab.server.calls import Call, Ended, Started, Update
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
class _Job:
    """A live request, as the loop sees it."""

    request: Request
    decoder: IncrementalDecoder
    call: Call
    index: int
    is_admitted: bool = False
    last_token_s: float = 0.0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    # For a call that does not stream: everything so far, sent at the end.
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(slots=True)
class _Flush:
    deadline_s: float
    timeout_s: float
    answer: asyncio.Future[Flushed]


class EngineLoop:
    """See the module. Methods are for the event loop's thread, unless they begin with an underscore."""

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
        self._jobs: dict[str, _Job] = {}
        self._flushes: list[_Flush] = []
        self._messages: list[Callable[[], None]] = []
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
        """Begin, answering to the running event loop."""
        self._event_loop = asyncio.get_running_loop()
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
        """Drop everything cached as soon as nothing waits or runs.

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
            self._note_admissions(batch)
            try:
                result = self._runner.run(batch)
            except Exception as error:
                log.exception("a step of %d rows failed; its requests end with an error", batch.num_rows)
                self._scheduler.fail(batch, _as_engine_error(error))
            else:
                self._advance(batch, result)
        for request in self._scheduler.take_ended():
            self._end(self._jobs.pop(request.request_id), request)

    def _note_admissions(self, batch: Batch) -> None:
        for request in batch.requests[: batch.num_prefill_rows]:
            job = self._jobs[request.request_id]
            if not job.is_admitted:
                job.is_admitted = True
                self._metrics.admitted(request)

    def _advance(self, batch: Batch, result: StepResult) -> None:
        """Account for the batch, and turn new tokens into text and updates."""
        for row, piece in result.prompt_logprobs.items():
            job = self._jobs[batch.requests[row].request_id]
            computed_again = batch.starts[row] == 0  # or for the first time
            job.prompt_logprobs = piece if computed_again else job.prompt_logprobs + piece
        logprobs_of = {batch.requests[row].request_id: logprobs for row, logprobs in result.logprobs.items()}
        for request in self._scheduler.commit(batch, result):
            job = self._jobs[request.request_id]
            self._time_token(job, request)
            try:
                text = self._text_of_last_token(job, request)
            except Exception as error:
                log.exception("tokens of %s have no text; it ends with an error", request.request_id)
                self._scheduler.abort(request.request_id, _as_engine_error(error))
                continue
            logprobs = logprobs_of.get(request.request_id)
            if not job.call.stream:
                job.text.append(text)
                if logprobs is not None:
                    job.logprobs.append(logprobs)
                continue
            update = Update(job.call, job.index, text, request.output_token_ids[-1:])
            if logprobs is not None:
                update.logprobs = (logprobs,)
            if request.num_output_tokens == 1:
                update.started = _started(job, request)
            self._messages.append(partial(job.call.apply, update))

    def _time_token(self, job: _Job, request: Request) -> None:
        now_s = request.last_token_s
        assert now_s is not None
        if request.num_output_tokens == 1:
            self._metrics.first_token(now_s - request.arrival_s)
        else:
            self._metrics.next_token(now_s - job.last_token_s)
        job.last_token_s = now_s

    def _text_of_last_token(self, job: _Job, request: Request) -> str:
        if request.finish_reason is FinishReason.STOP:
            return ""  # a stop id belongs to the tokens, not to the text
        text = job.decoder.feed(request.output_token_ids[-1:])
        if job.decoder.matched_stop is not None:
            self._scheduler.finish(request, job.decoder.matched_stop)
        return text

    def _end(self, job: _Job, request: Request) -> None:
        self._metrics.ended(request)
        assert request.finish_reason is not None and request.finished_s is not None
        first_s, last_s = request.first_token_s, request.last_token_s
        update = Update(job.call, job.index)
        update.ended = Ended(
            reason=request.finish_reason,
            matched_stop=request.matched_stop,
            error=request.error,
            decode_time_s=last_s - first_s if first_s is not None and last_s is not None else 0.0,
            e2e_time_s=request.finished_s - request.arrival_s,
        )
        if request.error is None:
            update.text = "".join(job.text) + job.decoder.finish()
            if not job.call.stream:
                update.token_ids = request.output_token_ids
                update.logprobs = job.logprobs
                update.started = _started(job, request)
        self._messages.append(partial(job.call.apply, update))

    # Commands, run by the loop thread. --------------------------------------------------------------------

    def _submit(self, call: Call) -> None:
        for index, (request, decoder) in enumerate(call.work):
            try:
                if self._is_over:
                    raise self._why_over()
                self._scheduler.add(request)
            except PrefixlabError as error:
                self._metrics.refused()
                self._fail(call, index, error)
                self._abort_call(call)
                return
            self._jobs[request.request_id] = _Job(request, decoder, call, index)
        self._messages.append(call.accept)

    def _abort_call(self, call: Call) -> None:
        # By its jobs, not its ids: one that was refused may have the id of another call's request.
        jobs = (self._jobs.get(request.request_id) for request, _ in call.work)
        self._abort([job.request.request_id for job in jobs if job is not None and job.call is call])

    def _abort(self, request_ids: list[str], error: Exception | None = None) -> None:
        if not self._is_over:
            for request_id in request_ids:
                self._scheduler.abort(request_id, error)

    def _stop(self) -> None:
        self._is_stopping = True

    def _answer_flushes(self) -> None:
        if not self._flushes:
            return
        now_s = self._clock.now()
        waiting = []
        for flush in self._flushes:
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
            for job in self._jobs.values():
                self._fail(job.call, job.index, self._why_over())
            self._jobs.clear()
            for flush in self._flushes:
                self._messages.append(partial(_set_exception, flush.answer, self._why_over()))
            self._flushes.clear()
            self._send_messages()
            if self._is_stopping and self._commands.empty():
                return
            self._commands.get()()

    def _why_over(self) -> Exception:
        return self.death or ShuttingDownError("the server is shutting down")

    def _fail(self, call: Call, index: int, error: Exception) -> None:
        ended = Ended(FinishReason.ERROR, None, error, 0.0, 0.0)
        self._messages.append(partial(call.apply, Update(call, index, ended=ended)))


def _started(job: _Job, request: Request) -> Started | None:
    if request.scheduled_s is None or request.first_token_s is None:
        return None
    return Started(
        num_cached_tokens=request.num_cached_tokens or 0,
        num_cached_tokens_by_tier=dict(request.num_cached_tokens_by_tier),
        queue_time_s=request.scheduled_s - request.arrival_s,
        prefill_time_s=request.first_token_s - request.scheduled_s,
        prompt_logprobs=job.prompt_logprobs,
    )


def _as_engine_error(error: BaseException) -> Exception:
    if isinstance(error, PrefixlabError):
        return error
    return EngineError(f"{type(error).__name__}: {error}")


def _call_all(messages: list[Callable[[], None]]) -> None:
    for message in messages:
        message()


def _set_result(answer: asyncio.Future[Flushed], result: Flushed) -> None:
    if not answer.done():
        answer.set_result(result)


def _set_exception(answer: asyncio.Future[Flushed], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
