"""The loop of decisions: `step()` says what runs next, `commit()` accounts for what ran.

Owns the queue, the running set and every request's progress; asks the cache manager for pages and the policy for
order. Has no clock, thread or randomness of its own.

Invariant: every request added ends exactly once, through `take_ended`; an ended request holds no page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prefixlab.cache.manager import CacheManager
from prefixlab.core.batch import Batch, StepResult
from prefixlab.core.clock import Clock
from prefixlab.core.request import FinishReason, Request
from prefixlab.scheduler.config import SchedulerConfig


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step, for listeners. Times in seconds on the scheduler's clock."""

    now_s: float
    duration_s: float
    num_prefill_rows: int
    num_prefill_tokens: int
    num_decode_rows: int
    num_cached_tokens: int
    """Prompt tokens that first admissions in this step took from the cache."""
    num_waiting: int
    num_running: int
    num_retracted: int
    num_free_pages: int
    num_evictable_pages: int
    new_token_ratio: float


class Scheduler:
    """See the module. `listener` gets a StepStats at each commit."""

    def __init__(
        self,
        config: SchedulerConfig,
        cache: CacheManager,
        clock: Clock,
        *,
        max_model_len: int,
        listener: Callable[[StepStats], None] | None = None,
    ) -> None:
        raise NotImplementedError

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ContextLengthError: prompt + max_new_tokens exceed max_model_len or all pages together.
            QueueFullError: `max_queued_requests` are waiting.
            InvalidRequestError: a live request has its id, or the prompt is empty.
        """
        raise NotImplementedError

    def abort(self, request_id: str, error: Exception | None = None) -> bool:
        """End a request wherever it stands, in mid-prefill too; every page goes back. False if unknown.

        Between `step()` and its `commit()` the row is given up at the commit, not before.
        """
        raise NotImplementedError

    def finish(self, request: Request, matched_stop: str) -> None:
        """End a running request as stopped: the edge found a stop string in its text. Between steps only."""
        raise NotImplementedError

    def step(self) -> Batch | None:
        """Decide what runs next; None when nothing can. Prefill goes before decode, unless mixed."""
        raise NotImplementedError

    def commit(self, batch: Batch, result: StepResult) -> list[Request]:
        """Account for a batch that ran. Returns the requests that got a token, in batch order; the token is
        the last of `output_token_ids`, and those that ended have `finish_reason` set."""
        raise NotImplementedError

    def fail(self, batch: Batch, error: Exception) -> None:
        """The runner could not compute the batch: its requests end with `error`, pages back, others go on."""
        raise NotImplementedError

    def take_ended(self) -> list[Request]:
        """Requests that ended since the last call, by whatever way (also abort, time-out, failure)."""
        raise NotImplementedError

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing runs."""
        raise NotImplementedError

    @property
    def num_waiting(self) -> int:
        raise NotImplementedError

    @property
    def num_running(self) -> int:
        raise NotImplementedError

    def check(self) -> None:
        """Rows, pages and counters agree, the slow way. AssertionError if not."""
        raise NotImplementedError
