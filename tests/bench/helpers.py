"""What tests of bench/ build again and again: records, targets without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from prefixlab.bench.loadgen.plan import Planned
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.clock import Clock
from prefixlab.core.errors import TargetError
from prefixlab.core.target import Chunk, Sent, TargetRequest
from tests.bench.fake_server import answer_to


def ok_record(
    request_id: str = "r",
    *,
    intended_s: float = 0.0,
    sent_s: float | None = None,
    arrivals_s: Sequence[float] = (1.0,),
    counts: Sequence[int] | None = None,
    last_s: float | None = None,
    **fields: Any,
) -> Record:
    sent_s = intended_s if sent_s is None else sent_s
    record = Record(
        request_id=request_id,
        outcome=Outcome.OK,
        intended_s=intended_s,
        sent_s=sent_s,
        first_byte_s=arrivals_s[0] if arrivals_s else sent_s,
        arrivals_s=tuple(arrivals_s),
        arrival_counts=tuple(counts if counts is not None else [1] * len(arrivals_s)),
        last_s=last_s if last_s is not None else (arrivals_s[-1] if arrivals_s else sent_s),
        **fields,
    )
    record.check()
    return record


def planned(request_id: str, *, offset_s: float = 0.0, max_new_tokens: int = 2) -> Planned:
    request = TargetRequest(request_id, max_new_tokens, prompt_token_ids=as_token_ids([1, 2, 3]))
    return Planned(request, num_prompt_tokens=3, offset_s=offset_s)


class ScriptedTarget:
    """A Target without a socket: every request takes `duration_s`, fails at once (the first `num_failures` of
    those named, or all), or breaks off after a token."""

    def __init__(
        self,
        clock: Clock,
        *,
        duration_s: float = 0.0,
        failing: Sequence[str] = (),
        num_failures: int | None = None,
        breaking: Sequence[str] = (),
        names_tokens: bool = True,
    ) -> None:
        self._clock = clock
        self._duration_s = duration_s
        self._failing = failing
        self._failures_left = num_failures
        self._breaking = breaking
        self._names_tokens = names_tokens
        self.started: list[str] = []
        self.asked: dict[str, TargetRequest] = {}
        """The requests it got, by id."""
        self.in_flight = 0
        self.peak_in_flight = 0

    async def stream(self, request: TargetRequest) -> AsyncIterator[Sent | Chunk]:
        self.started.append(request.request_id)
        self.asked[request.request_id] = request
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            yield Sent(self._clock.now())
            if request.request_id in self._failing and self._failures_left != 0:
                self._failures_left = None if self._failures_left is None else self._failures_left - 1
                raise TargetError("HTTP 503: queue is full")
            for done in range(1, request.max_new_tokens + 1):
                await asyncio.sleep(self._duration_s / request.max_new_tokens)
                yield Chunk(
                    self._clock.now(),
                    "x",
                    carries_tokens=True,
                    num_output_tokens=done,
                    num_cached_tokens=0,
                    token_ids=self._named(request, done),
                )
                if request.request_id in self._breaking:
                    raise TargetError("the stream broke off")
        finally:
            self.in_flight -= 1

    def _named(self, request: TargetRequest, done: int) -> list[int] | None:
        if not self._names_tokens or request.prompt_token_ids is None:
            return None
        return answer_to(request.prompt_token_ids.tolist(), done)[-1:]
