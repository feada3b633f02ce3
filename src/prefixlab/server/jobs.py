"""What becomes of a request's tokens: text, times and updates for the call it belongs to.

Owns the live requests of the loop, each with its decoder; lives on the loop's thread. Decides nothing about
batches or pages, except that a stop string in the text ends a request.

Invariant: a job that was opened is closed once, with the update that ends its choice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from prefixlab.core.batch import Batch, StepResult, TokenLogprobs
from prefixlab.core.errors import EngineError, InvalidRequestError, PrefixlabError
from prefixlab.core.request import FinishReason, Request
from prefixlab.core.text.incremental import IncrementalDecoder
from prefixlab.scheduler.scheduler import Scheduler
from prefixlab.server.calls import Call, Ended, Started, Update
from prefixlab.server.metrics import ServerMetrics

log = logging.getLogger(__name__)

Send = Callable[[Callable[[], None]], None]
"""Has the event loop call something, with the other news of this turn."""


@dataclass(slots=True)
class _Job:
    request: Request
    decoder: IncrementalDecoder
    call: Call
    index: int
    is_admitted: bool = False
    last_token_s: float = 0.0
    error: Exception | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    # For a call that does not stream: everything so far, sent at the end.
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class Jobs:
    """See the module."""

    def __init__(self, scheduler: Scheduler, metrics: ServerMetrics, send: Send) -> None:
        self._scheduler = scheduler
        self._metrics = metrics
        self._send = send
        self._live: dict[str, _Job] = {}

    def check_is_new(self, request: Request) -> None:
        """The scheduler's rule too, but here the field has the name that clients give it."""
        if request.request_id in self._live:
            raise InvalidRequestError(f"a live request has the id {request.request_id!r}", "rid")

    def open(self, call: Call, index: int) -> None:
        """The call's request `index` was queued."""
        request, decoder = call.work[index]
        self._live[request.request_id] = _Job(request, decoder, call, index)

    def live_ids_of(self, call: Call) -> list[str]:
        """By jobs, not by ids: a request that was refused may have the id of another call's."""
        jobs = (self._live.get(request.request_id) for request, _ in call.work)
        return [job.request.request_id for job in jobs if job is not None and job.call is call]

    def note_admissions(self, batch: Batch) -> None:
        """`batch` will run: what its new requests found in the cache is known."""
        for request in batch.requests[: batch.num_prefill_rows]:
            job = self._live[request.request_id]
            if not job.is_admitted:
                job.is_admitted = True
                self._metrics.admitted(request)

    def advance(self, batch: Batch, result: StepResult) -> None:
        """Account for a batch that ran, and pass on what each request got."""
        for row, piece in result.prompt_logprobs.items():
            job = self._live[batch.requests[row].request_id]
            computed_again = batch.starts[row] == 0  # or for the first time
            job.prompt_logprobs = piece if computed_again else job.prompt_logprobs + piece
        logprobs_of = {batch.requests[row].request_id: logprobs for row, logprobs in result.logprobs.items()}
        for request in self._scheduler.commit(batch, result):
            job = self._live[request.request_id]
            self._time_last_token(job)
            text = self._text_of_last_token(job)
            logprobs = logprobs_of.get(request.request_id)
            if not job.call.stream:
                job.text.append(text)
                if logprobs is not None:
                    job.logprobs.append(logprobs)
                continue
            update = Update(job.call, job.index, job.last_token_s, text, request.output_token_ids[-1:])
            if logprobs is not None:
                update.logprobs = (logprobs,)
            if request.num_output_tokens == 1:
                update.started = _started(job)
            self._send(partial(job.call.apply, update))

    def close(self, request: Request) -> None:
        """The scheduler is done with `request`."""
        assert request.finish_reason is not None and request.finished_s is not None
        job = self._live[request.request_id]
        self._metrics.ended(request)
        rest = "".join(job.text) + self._rest_of_text(job)
        first_s, last_s = request.first_token_s, request.last_token_s
        update = Update(job.call, job.index, request.finished_s)
        update.ended = Ended(
            reason=request.finish_reason,
            matched_stop=request.matched_stop,
            error=request.error or job.error,
            decode_time_s=last_s - first_s if first_s is not None and last_s is not None else 0.0,
            e2e_time_s=request.finished_s - request.arrival_s,
        )
        if update.ended.error is None:
            update.text = rest
            if not job.call.stream:
                update.token_ids = request.output_token_ids
                update.logprobs = job.logprobs
                update.started = _started(job)
        self._send(partial(job.call.apply, update))
        del self._live[request.request_id]  # last: if anything above fails, `fail_all` still finds it

    def fail(self, call: Call, index: int, error: Exception) -> None:
        """The call's request `index` will never run."""
        ended = Ended(FinishReason.ERROR, None, error, 0.0, 0.0)
        self._send(partial(call.apply, Update(call, index, ended=ended)))

    def fail_all(self, error: Exception) -> None:
        """No request will ever run again."""
        for job in self._live.values():
            self.fail(job.call, job.index, error)
        self._live.clear()

    # Text and time. ---------------------------------------------------------------------------------------

    def _text_of_last_token(self, job: _Job) -> str:
        request = job.request
        if request.finish_reason is FinishReason.STOP:
            return ""  # a stop id belongs to the tokens, not to the text
        try:
            text = job.decoder.feed(request.output_token_ids[-1:])
        except Exception as error:
            self._end_without_text(job, error)
            return ""
        if job.decoder.matched_stop is not None:
            self._scheduler.finish(request, job.decoder.matched_stop)
        return text

    def _rest_of_text(self, job: _Job) -> str:
        if job.error is not None:
            return ""
        try:
            return job.decoder.finish()
        except Exception as error:
            self._end_without_text(job, error)
            return ""

    def _end_without_text(self, job: _Job, error: Exception) -> None:
        log.exception("tokens of %s have no text; it ends with an error", job.request.request_id)
        job.error = as_engine_error(error)
        self._scheduler.abort(job.request.request_id, job.error)  # nothing to do if this was its last token

    def _time_last_token(self, job: _Job) -> None:
        now_s = job.request.last_token_s
        assert now_s is not None
        if job.request.num_output_tokens == 1:
            self._metrics.first_token(now_s - job.request.arrival_s)
        else:
            self._metrics.next_token(now_s - job.last_token_s)
        job.last_token_s = now_s


def as_engine_error(error: BaseException) -> Exception:
    """An error of our tree as it is, any other as an EngineError that quotes it."""
    if isinstance(error, PrefixlabError):
        return error
    return EngineError(f"{type(error).__name__}: {error}")


def _started(job: _Job) -> Started | None:
    request = job.request
    if request.scheduled_s is None or request.first_token_s is None:
        return None
    return Started(
        num_cached_tokens=request.num_cached_tokens or 0,
        num_cached_tokens_by_tier=dict(request.num_cached_tokens_by_tier),
        queue_time_s=request.scheduled_s - request.arrival_s,
        prefill_time_s=request.first_token_s - request.scheduled_s,
        prompt_logprobs=job.prompt_logprobs,
    )
