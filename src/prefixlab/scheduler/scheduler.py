"""The loop of decisions: `step()` says what runs next, `commit()` accounts for what ran.

Owns the queue, the running set and every request's progress; asks the cache manager for pages and the policy
for order. Has no clock, thread or randomness of its own.

    WAITING ──admit──► RUNNING: its prompt, in pieces ──► RUNNING: decode ──► FINISHED
       ▲                             │                           │        (or from anywhere:
       └── retract: pages ran out, or a more urgent request ─────┘         abort, time-out, failure)

Invariant: every request added ends exactly once, through `take_ended`; an ended request holds no page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefixlab.cache.manager import CacheManager
from prefixlab.core.batch import Batch, StepResult
from prefixlab.core.clock import Clock
from prefixlab.core.errors import ConfigError, ContextLengthError, InvalidRequestError, QueueFullError
from prefixlab.core.request import FinishReason, Request, RequestStatus
from prefixlab.scheduler.admission import RatioRule
from prefixlab.scheduler.assembly import Piece, assemble
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.scheduler.policies import first_to_retract, outranked_by
from prefixlab.scheduler.prefill import PrefillPlanner
from prefixlab.scheduler.queue import WaitingQueue
from prefixlab.scheduler.room import Room
from prefixlab.scheduler.rows import NO_DECODE, DecodeGroup, RunningRows
from prefixlab.scheduler.stats import StepStats
from prefixlab.scheduler.timeouts import Timeouts

__all__ = ["Scheduler", "StepStats"]


class Scheduler:
    """See the module. `listener` gets a StepStats at each commit.

    Raises ConfigError at construction when a chunk, or a step's prompt tokens, are less than a page.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cache: CacheManager,
        clock: Clock,
        *,
        max_model_len: int,
        listener: Callable[[StepStats], None] | None = None,
    ) -> None:
        _check_pieces_hold_a_page(config, cache.page_size)
        assert cache.page_table.shape[0] >= config.max_running_requests, "fewer rows than running requests"
        assert cache.page_table.shape[1] * cache.page_size >= max_model_len, "rows shorter than max_model_len"
        self._config = config
        self._cache = cache
        self._clock = clock
        self._max_model_len = max_model_len
        self._listener = listener

        self._live: dict[str, Request] = {}
        self._ended: list[Request] = []
        self._waiting = WaitingQueue(config, cache.page_size)
        self._rows = RunningRows(config.max_running_requests)
        ratio_rule = RatioRule.from_conservativeness(config.schedule_conservativeness)
        self._room = Room(cache, self._rows, ratio_rule)
        self._prefill = PrefillPlanner(config, cache, self._waiting, self._rows, self._room)
        self._timeouts = Timeouts(config)

        self._in_flight: Batch | None = None
        self._aborted_in_flight: dict[str, Exception | None] = {}
        self._num_cached_tokens = 0  # since the last commit, for StepStats
        self._num_retracted = 0

    # The loop. ----------------------------------------------------------------------------------------

    def step(self) -> Batch | None:
        """Decide what runs next; None when nothing can. Prefill goes before decode, unless mixed."""
        assert self._in_flight is None, "the last batch is neither committed nor failed"
        now_s = self._clock.now()
        for request, error in self._timeouts.expired(self._live.values(), now_s):
            self._end(request, FinishReason.TIMEOUT, error=error)
        if self._config.schedule_policy == "priority":
            self._preempt_for_most_urgent()

        if self._config.enable_mixed_chunk:
            # Decode takes its pages first: who runs already comes before who might.
            group = self._grow_decode_group()
            pieces = self._prefill.plan()
        else:
            pieces = self._prefill.plan()
            group = NO_DECODE if pieces else self._grow_decode_group()

        if not pieces and not group.requests:
            return None
        self._note_first_admissions(pieces, now_s)
        self._in_flight = assemble(
            pieces, group, self._rows, self._cache.page_table, self._cache.page_size, len(self._waiting)
        )
        return self._in_flight

    def commit(self, batch: Batch, result: StepResult) -> list[Request]:
        """Account for a batch that ran. Returns the requests that got a token, in batch order; the token is
        the last of `output_token_ids`, and those that ended have `finish_reason` set."""
        aborted = self._land(batch)
        now_s = self._clock.now()
        self._rows.num_computed[batch.rows] += batch.lengths
        advanced = self._append_tokens(batch, result, aborted, now_s)
        self._settle_prefills(batch)
        self._end_aborted(aborted)
        if self._listener is not None:
            self._listener(self._stats(batch, result, now_s))
        self._num_cached_tokens = self._num_retracted = 0
        return advanced

    def fail(self, batch: Batch, error: Exception) -> None:
        """The runner could not compute the batch: its requests end with `error`, pages back, others go on."""
        aborted = self._land(batch)
        for request in batch.requests:
            if request.request_id not in aborted:
                self._end(request, FinishReason.ERROR, error=error)
        self._end_aborted(aborted)

    # Requests come and go. ----------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        When the queue is full under the priority policy, a more urgent newcomer takes the place of the least
        urgent waiting request that never ran, which ends with a QueueFullError in its stead.

        Raises:
            ContextLengthError: prompt + max_new_tokens exceed max_model_len or all pages together.
            QueueFullError: `max_queued_requests` are waiting.
            InvalidRequestError: a live request has its id, or the prompt is empty.
        """
        self._check_can_ever_run(request)
        if self._waiting.is_full:
            limit = self._config.max_queued_requests
            displaced = self._waiting.displaceable_by(request)
            if displaced is None:
                raise QueueFullError(f"the request queue is full: {limit} are waiting")
            error = QueueFullError(f"a more urgent request took its place in the queue of {limit}")
            self._end(displaced, FinishReason.ERROR, error=error)
        self._live[request.request_id] = request
        self._waiting.push(request)
        self._timeouts.watch(request)
        self._prefill.notice_change()

    def abort(self, request_id: str, error: Exception | None = None) -> bool:
        """End a request wherever it stands, in mid-prefill too; every page goes back. False if unknown.

        Between `step()` and its `commit()` the row is given up at the commit, not before.
        """
        request = self._live.get(request_id)
        if request is None:
            return False
        if request.row >= 0 and self._in_flight is not None:
            self._aborted_in_flight.setdefault(request_id, error)
        else:
            self._end(request, FinishReason.ABORT, error=error)
        return True

    def finish(self, request: Request, matched_stop: str) -> None:
        """End a running request as stopped: the edge found a stop string in its text. Between steps only.

        If the token that completes the string was also its last by length, it counts as stopped.
        """
        assert self._in_flight is None, "a request is finished between steps"
        if request.status is not RequestStatus.FINISHED:
            self._end(request, FinishReason.STOP, matched_stop=matched_stop)
        elif request.finish_reason is FinishReason.LENGTH:
            request.finish_reason, request.matched_stop = FinishReason.STOP, matched_stop

    def take_ended(self) -> list[Request]:
        """Requests that ended since the last call, by whatever way (also abort, time-out, failure)."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._live

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._rows)

    # Step: pages for decode, and who gives way. ---------------------------------------------------------

    def _grow_decode_group(self) -> DecodeGroup:
        """Everybody who decodes, each with a page for the next token; under pressure some give way first."""
        num_retracted = 0
        while True:
            group = self._rows.decode_group()
            num_places = self._cache.num_row_pages[group.rows] * self._cache.page_size
            if self._cache.grow_rows(group.rows, self._rows.num_computed[group.rows] >= num_places):
                break
            self._retract(self._choose_to_retract(group))
            num_retracted += 1
        if num_retracted:
            self._room.somebody_gave_way()
        elif group.requests:
            self._room.everybody_decoded()
        return group

    def _choose_to_retract(self, group: DecodeGroup) -> Request:
        """Whom page pressure sends back. Never the last one to decode: alone it has all pages, so somebody
        always gets on."""
        last = group.requests[0] if len(group.requests) == 1 else None
        candidates = [request for request in self._rows.requests() if request is not last]
        assert candidates, "a request that runs alone has all pages"
        return first_to_retract(candidates, self._config)

    def _preempt_for_most_urgent(self) -> None:
        """Priority policy: make room for the first in line by sending back running requests it outranks by
        more than the threshold; none of them when even all would not be enough."""
        prefill = self._prefill
        if not prefill.is_worth_asking():
            return
        urgent = next(iter(self._waiting.in_order(prefill.num_matched)))
        victims = outranked_by(urgent, self._rows.requests(), self._config)
        if not victims or prefill.waits_for_sibling(urgent):
            return
        if prefill.num_missing_pages(urgent) > self._room.num_pages_back(victims):
            return
        for victim in victims:
            if not self._rows.is_full and prefill.num_missing_pages(urgent) <= 0:
                break
            self._retract(victim)

    def _retract(self, request: Request) -> None:
        """Back to the front of the queue with all its tokens; what it computed stays in the cache for as long
        as nobody needs the pages."""
        self._give_up_row(request)
        request.status = RequestStatus.WAITING
        request.num_computed_tokens = 0
        request.num_retractions += 1
        self._num_retracted += 1
        self._waiting.push_first(request)

    def _note_first_admissions(self, pieces: Sequence[Piece], now_s: float) -> None:
        for request in (piece.request for piece in pieces):
            if request.scheduled_s is None:
                request.scheduled_s = now_s
                self._timeouts.watch(request)
                self._num_cached_tokens += request.num_cached_tokens or 0

    # Commit: what came of a batch. ----------------------------------------------------------------------

    def _land(self, batch: Batch) -> dict[str, Exception | None]:
        """The batch is back. Returns who was aborted while it was out, and why."""
        assert batch is self._in_flight, "a batch comes back once, before the next step"
        self._in_flight = None
        aborted, self._aborted_in_flight = self._aborted_in_flight, {}
        return aborted

    def _append_tokens(
        self, batch: Batch, result: StepResult, aborted: dict[str, Exception | None], now_s: float
    ) -> list[Request]:
        """Give each sampling row its token, and end those for whom it is the last. Aborted ones get none."""
        requests, rows, token_ids = batch.requests, batch.rows, result.token_ids
        if batch.num_prefill_rows or aborted:
            getting = [
                index
                for index, samples in enumerate(batch.samples.tolist())
                if samples and requests[index].request_id not in aborted
            ]
            requests, rows, token_ids = [requests[i] for i in getting], rows[getting], token_ids[getting]
            for request in requests:
                if request.first_token_s is None:
                    request.first_token_s = now_s
        ends, stops = self._rows.append_tokens(rows, token_ids)
        for request, token_id in zip(requests, token_ids.tolist(), strict=True):
            request.output_token_ids.append(token_id)
            request.last_token_s = now_s
        for index in ends.tolist():
            if stops[index]:
                self._end(requests[index], FinishReason.STOP, matched_stop=int(token_ids[index]))
            else:
                self._end(requests[index], FinishReason.LENGTH)
        return requests

    def _settle_prefills(self, batch: Batch) -> None:
        """What was computed of prompts enters the cache, for siblings to match; complete ones now decode."""
        has_next_token = batch.samples.tolist()
        for index, request in enumerate(batch.requests[: batch.num_prefill_rows]):
            if request.row < 0:
                continue  # it has ended, and its release put the same tokens into the cache
            self._cache.checkpoint(request, int(self._rows.num_computed[request.row]))
            if has_next_token[index]:
                self._rows.join_decode(request)
            self._prefill.notice_change()

    def _end_aborted(self, aborted: dict[str, Exception | None]) -> None:
        for request_id, error in aborted.items():
            self._end(self._live[request_id], FinishReason.ABORT, error=error)

    # Ends. ----------------------------------------------------------------------------------------------

    def _end(
        self,
        request: Request,
        reason: FinishReason,
        *,
        error: Exception | None = None,
        matched_stop: int | str | None = None,
    ) -> None:
        """The one way out, from wherever the request stands."""
        if request.row >= 0:
            self._give_up_row(request)
        else:
            self._waiting.remove(request)
            self._prefill.notice_change()
        del self._live[request.request_id]
        request.status = RequestStatus.FINISHED
        request.finish_reason, request.error, request.matched_stop = reason, error, matched_stop
        request.finished_s = self._clock.now()
        self._ended.append(request)
        if self.is_idle:
            self._room.forget()

    def _give_up_row(self, request: Request) -> None:
        row = request.row
        self._cache.release(request, num_computed_tokens=int(self._rows.num_computed[row]))
        self._rows.give_back(request, row)
        self._prefill.gave_up_row(request)

    # Checks and figures. --------------------------------------------------------------------------------

    def _check_can_ever_run(self, request: Request) -> None:
        if request.num_prompt_tokens == 0:
            raise InvalidRequestError("the prompt is empty", "prompt")
        if request.request_id in self._live:
            raise InvalidRequestError(f"a live request has the id {request.request_id!r}", "request_id")
        num_prompt, max_new = request.num_prompt_tokens, request.sampling.max_new_tokens
        asked = f"{num_prompt} prompt tokens and {max_new} new ones"
        if num_prompt + max_new > self._max_model_len:
            raise ContextLengthError(f"{asked} exceed the {self._max_model_len} the model is served with")
        num_places = self._cache.num_pages * self._cache.page_size
        if num_prompt + max_new > num_places:
            raise ContextLengthError(f"{asked} exceed the {num_places} that the whole cache holds")

    def _stats(self, batch: Batch, result: StepResult, now_s: float) -> StepStats:
        cache = self._cache.stats()
        return StepStats(
            now_s=now_s,
            duration_s=result.duration_s,
            num_prefill_rows=batch.num_prefill_rows,
            num_prefill_tokens=batch.num_prefill_tokens,
            num_decode_rows=batch.num_rows - batch.num_prefill_rows,
            num_cached_tokens=self._num_cached_tokens,
            num_waiting=len(self._waiting),
            num_running=len(self._rows),
            num_retracted=self._num_retracted,
            num_free_pages=cache.num_free_pages,
            num_evictable_pages=cache.num_evictable_pages,
            new_token_ratio=self._room.new_token_ratio,
        )

    def check(self) -> None:
        """Rows, pages and counters agree, the slow way. AssertionError if not."""
        live = list(self._live.values())
        for request in live:
            waits = request in self._waiting
            assert waits == (request.row < 0) == (request.lease is None), f"{request}: waits, or runs"
            assert waits == (request.status is RequestStatus.WAITING), f"{request}: status"
        assert len(self._waiting) + len(self._rows) == len(live), "a request is lost"
        self._rows.check(live, self._prefill.partial, is_between_steps=self._in_flight is None)
        num_places = self._cache.num_row_pages[: len(self._rows.num_tokens)] * self._cache.page_size
        assert (self._rows.num_computed <= num_places).all(), "tokens are computed that no page holds"
        for request in self._ended:
            assert request.row < 0 and request.lease is None, f"{request} ended and holds pages"


def _check_pieces_hold_a_page(config: SchedulerConfig, page_size: int) -> None:
    if config.chunked_prefill_size == -1:
        return
    for name in ("chunked_prefill_size", "max_prefill_tokens"):
        value = getattr(config, name)
        if value < page_size:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {value} is less than a page (--page-size {page_size})")
