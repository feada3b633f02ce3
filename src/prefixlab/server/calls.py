"""What one HTTP request asks of the engine loop, and its answer as it grows: all that both threads touch.

The loop thread makes Updates and never reads a Choice; the event loop applies them, once per engine step for
all calls together, and wakes each call's one consumer. So a slow consumer costs memory, not steps: it finds
everything that happened since it last looked.

Invariant: a Choice gets exactly one update that ends it, and none after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from prefixlab.core.batch import TokenLogprobs
from prefixlab.core.block_hash import TokenIds
from prefixlab.core.request import FinishReason, Request
from prefixlab.core.text.incremental import IncrementalDecoder


class ClientGoneError(Exception):
    """The client closed its connection; nobody reads what we would answer."""


@dataclass(frozen=True, slots=True)
class Started:
    """Known from the first token on."""

    num_cached_tokens: int
    num_cached_tokens_by_tier: dict[str, int]
    queue_time_s: float
    prefill_time_s: float
    prompt_logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended. `error` is set for what the client must be told as an error."""

    reason: FinishReason
    matched_stop: int | str | None
    error: Exception | None
    decode_time_s: float
    e2e_time_s: float


@dataclass(slots=True)
class Update:
    """What one step brought one request (or, where nobody streams, what all its steps brought).

    `time_s` is when that was known, on the engine's clock and on its thread: 0 for a request that never ran.
    """

    call: Call
    index: int
    time_s: float = 0.0
    text: str = ""
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprobs] = ()
    started: Started | None = None
    ended: Ended | None = None


@dataclass(slots=True)
class Choice:
    """One request's answer so far."""

    index: int
    request_id: str
    prompt_token_ids: TokenIds
    arrival_s: float
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    started: Started | None = None
    ended: Ended | None = None

    @property
    def num_cached_tokens(self) -> int:
        return self.started.num_cached_tokens if self.started else 0


class Call:
    """All requests of one HTTP request: a batch's prompts, each `n` times.

    Args:
        rid: what `/abort_request` knows the whole call by.
        work: the requests and their decoders; the loop's from submission on.
        stream: whether the consumer wants every step, or only the end.
    """

    def __init__(self, rid: str, work: Iterable[tuple[Request, IncrementalDecoder]], *, stream: bool) -> None:
        self.rid = rid
        self.work = list(work)
        self.stream = stream
        self.choices = [
            Choice(index, request.request_id, request.prompt_token_ids, request.arrival_s)
            for index, (request, _) in enumerate(self.work)
        ]
        self._num_unfinished = len(self.choices)
        self._accepted = False
        self._error: Exception | None = None
        self._changed: dict[int, Choice] = {}
        self._waiter: asyncio.Future[None] | None = None

    # The event loop's side: called by EngineLoop and by whoever watches the connection. -----------------

    def accept(self) -> None:
        """Every request is in the queue: a stream may begin."""
        self._accepted = True
        self._wake()

    def apply(self, update: Update) -> None:
        choice = self.choices[update.index]
        choice.text += update.text
        choice.token_ids.extend(update.token_ids)
        choice.logprobs.extend(update.logprobs)
        if update.started is not None:
            choice.started = update.started
        if update.ended is not None:
            assert choice.ended is None, f"{choice.request_id} ended twice"
            choice.ended = update.ended
            self._num_unfinished -= 1
            if self._error is None:
                self._error = update.ended.error
        self._changed[update.index] = choice
        if self.stream or self._error is not None or not self._num_unfinished:
            self._wake()

    def client_gone(self) -> None:
        self._error = ClientGoneError()
        self._wake()

    # The consumer's side: one coroutine. ---------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        """Every choice ended."""
        return not self._num_unfinished

    async def accepted(self) -> None:
        """Wait until all requests are queued. Raises what kept one of them out, or ClientGoneError."""
        while not self._accepted and self._error is None:
            await self._news()
        self._raise_error()

    async def changed(self) -> list[Choice]:
        """Wait for news; return the choices that have some. Raises the first error, or ClientGoneError."""
        while not self._changed and self._error is None:
            await self._news()
        self._raise_error()
        changed = list(self._changed.values())
        self._changed.clear()
        return changed

    async def finished(self) -> list[Choice]:
        """Wait until every choice ended. Raises the first error, or ClientGoneError."""
        while not self.is_finished:
            self._raise_error()
            await self._news()
        self._raise_error()
        return self.choices

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
