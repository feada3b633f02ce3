"""A scheduler with everything around it, and the loop that drives it: what every test of this folder uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from prefixlab.cache.config import CacheConfig
from prefixlab.cache.manager import CacheManager
from prefixlab.core.batch import Batch
from prefixlab.core.clock import VirtualClock
from prefixlab.core.request import FinishReason, Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.scheduler.scheduler import Scheduler, StepStats
from tests.fakes import FakeRunner, oracle_tokens

VOCAB_SIZE = 1000
NEVER_SAMPLED = VOCAB_SIZE + 1
"""As a stop id: the scheduler cannot be certain of the length, yet nothing stops the request."""


def make_request(
    request_id: str,
    prompt: Sequence[int] | int,
    max_new_tokens: int = 4,
    *,
    may_stop: bool = False,
    stop_token_ids: Iterable[int] = (),
    min_new_tokens: int = 0,
    stop: tuple[str, ...] = (),
    **fields: Any,
) -> Request:
    """`prompt` is its tokens, or how many: then no two ids share a first token."""
    if isinstance(prompt, int):
        # The first token is the id's own; the rest need not be.
        first = int.from_bytes(request_id.encode()[-3:], "big")
        prompt = [first, *range(1, prompt)]
    stop_ids = frozenset(stop_token_ids) | ({NEVER_SAMPLED} if may_stop else set())
    sampling = SamplingParams(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, stop=stop)
    tokens = np.array(prompt, dtype=np.int32)
    return Request(request_id, tokens, sampling, stop_token_ids=stop_ids, **fields)


class World:
    """Scheduler, cache, fake runner and virtual clock. Every step costs `step_s` of virtual time, and after
    every step and commit everything is checked."""

    def __init__(
        self,
        *,
        num_pages: int = 64,
        page_size: int = 4,
        cache: str = "radix",
        force_miss: bool = False,
        eviction_policy: str = "lru",
        max_model_len: int = 256,
        step_s: float = 1.0,
        checked: bool = True,
        **settings: Any,
    ) -> None:
        self._repr = f"World({page_size=}, {num_pages=}, {cache=}, {force_miss=}, {settings})"
        self.clock = VirtualClock()
        self.stats: list[StepStats] = []
        self.ended: list[Request] = []
        config = SchedulerConfig(**settings)
        self.cache = CacheManager(
            CacheConfig(
                cache=cache, page_size=page_size, force_miss=force_miss, eviction_policy=eviction_policy
            ),
            num_pages=num_pages,
            max_rows=config.max_running_requests,
            max_tokens_per_row=max_model_len,
        )
        self.scheduler = Scheduler(
            config, self.cache, self.clock, max_model_len=max_model_len, listener=self.stats.append
        )
        self.runner = FakeRunner(
            num_pages=num_pages,
            page_size=page_size,
            vocab_size=VOCAB_SIZE,
            fixed_s=step_s,
            clock=self.clock,
        )
        self._checked = checked

    def __repr__(self) -> str:
        return self._repr

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add(request)

    def check(self) -> None:
        if self._checked:
            self.scheduler.check()
            self.cache.check()

    def step(self) -> Batch | None:
        """One step and its commit."""
        batch = self.scheduler.step()
        self.check()
        if batch is not None:
            self.scheduler.commit(batch, self.runner.run(batch))
            self.check()
        self.ended += self.scheduler.take_ended()
        return batch

    def run(self, until: Callable[[], bool] | None = None, max_steps: int = 10_000) -> list[Batch]:
        """Step until `until` holds (by default: idle), but not for ever."""
        batches = []
        for _ in range(max_steps):
            if self.scheduler.is_idle if until is None else until():
                self.ended += self.scheduler.take_ended()
                return batches
            batch = self.step()
            assert batch is not None or self.scheduler.is_idle, "requests are left and nothing can run"
            if batch is not None:
                batches.append(batch)
        raise AssertionError(f"not done after {max_steps} steps")

    def assert_all_pages_back(self) -> None:
        stats = self.cache.stats()
        assert stats.num_in_use_pages == stats.num_protected_pages == 0
        assert stats.num_free_pages + stats.num_evictable_pages == stats.num_pages


def rows_of(batch: Batch | None) -> list[tuple[str, int, int]]:
    """(request id, start, length) of each row."""
    assert batch is not None
    return [
        (request.request_id, start, length)
        for request, start, length in zip(
            batch.requests, batch.starts.tolist(), batch.lengths.tolist(), strict=True
        )
    ]


def ids_of(requests: Iterable[Request]) -> list[str]:
    return [request.request_id for request in requests]


def assert_tokens_are_right(request: Request) -> None:
    """Its tokens are those a run alone, without a cache, gives: all of them, or, if it was cut short, the
    first ones."""
    expected = oracle_tokens(
        request.prompt_token_ids.tolist(),
        request.sampling.max_new_tokens,
        vocab_size=VOCAB_SIZE,
        stop_token_ids=request.stop_token_ids,
        min_new_tokens=request.sampling.min_new_tokens,
    )
    is_whole = request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    if is_whole and not isinstance(request.matched_stop, str):
        assert request.output_token_ids == expected, request
    else:
        assert request.output_token_ids == expected[: request.num_output_tokens], request
