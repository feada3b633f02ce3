"""What every Target must do: the engine in this process, on torch and simulated, and the tests' own fake."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from prefixlab.cli.in_process import in_process_target
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.errors import TargetError
from prefixlab.core.seams import Target
from prefixlab.core.target import Chunk, Sent, TargetRequest
from tests.bench.helpers import ScriptedTarget

SETTINGS: dict[str, dict[str, Any]] = {
    "simulated": {"model": "sim", "sim_speedup": 10.0},
    "torch": {"model": "tiny", "num_pages": 64, "max_model_len": 512},
}
TOO_LONG = 300_000


@pytest.fixture(scope="module", params=["simulated", "torch", "scripted"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    if request.param == "scripted":
        yield ScriptedTarget(MonotonicClock(), duration_s=0.02, failing=["too-long"])
        return
    with in_process_target(argparse.Namespace(**SETTINGS[request.param])) as made:
        yield made


def a_request(request_id: str, *, max_new_tokens: int = 4, first_token: int = 300) -> TargetRequest:
    prompt = as_token_ids(range(first_token, first_token + 40))
    return TargetRequest(request_id, max_new_tokens, prompt_token_ids=prompt)


async def items_of(target: Target, request: TargetRequest) -> list[Sent | Chunk]:
    return [item async for item in target.stream(request)]


def ask(target: Target, request: TargetRequest) -> tuple[Sent, list[Chunk]]:
    sent, *chunks = asyncio.run(items_of(target, request))
    assert isinstance(sent, Sent)
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    return sent, chunks  # type: ignore[return-value]


def test_a_stream_is_one_sent_then_chunks_in_order_of_time(target: Target) -> None:
    before_s = MonotonicClock().now()
    sent, chunks = ask(target, a_request("order"))
    times = [before_s, sent.sent_s, *(chunk.arrival_s for chunk in chunks), MonotonicClock().now()]
    assert times == sorted(times)


def test_counts_are_totals_so_far_and_end_at_what_was_asked(target: Target) -> None:
    _, chunks = ask(target, a_request("counts"))
    totals = [chunk.num_output_tokens for chunk in chunks if chunk.num_output_tokens is not None]
    assert totals == sorted(totals) and totals[-1] == 4
    assert all(chunk.carries_tokens for chunk in chunks if chunk.num_output_tokens == 1)
    cached = [chunk.num_cached_tokens for chunk in chunks if chunk.num_cached_tokens is not None]
    assert cached, "a target in this process knows"


def test_many_are_answered_at_once_each_with_its_own(target: Target) -> None:
    async def all_at_once() -> list[list[Sent | Chunk]]:
        requests = [a_request(f"many-{i}", max_new_tokens=i + 1, first_token=300 + 41 * i) for i in range(6)]
        return await asyncio.gather(*(items_of(target, request) for request in requests))

    for number, (_, *chunks) in enumerate(asyncio.run(all_at_once())):
        assert [c for c in chunks if isinstance(c, Chunk)][-1].num_output_tokens == number + 1


def test_a_stream_that_is_left_early_is_given_up_and_its_name_free_again(target: Target) -> None:
    async def leave_early() -> None:
        async with aclosing(target.stream(a_request("left", max_new_tokens=200))) as stream:  # type: ignore[type-var]
            async for item in stream:
                if isinstance(item, Chunk):
                    return

    for _ in range(3):
        asyncio.run(leave_early())
    _, chunks = ask(target, a_request("left"))
    assert chunks[-1].num_output_tokens == 4


def test_what_it_cannot_answer_is_a_target_error(target: Target) -> None:
    prompt = as_token_ids(np.full(TOO_LONG, 300))
    with pytest.raises(TargetError, match=r"300000|queue is full"):
        ask(target, TargetRequest("too-long", 4, prompt_token_ids=prompt))
    _, chunks = ask(target, a_request("after"))
    assert chunks[-1].num_output_tokens == 4
