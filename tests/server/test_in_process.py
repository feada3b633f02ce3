"""The engine in this process as a Target: what the seam promises, on the simulated engine and on torch."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.loadgen.in_process import StreamDriver
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.cache.config import CacheConfig
from prefixlab.cli.in_process import in_process_target
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.clock import MonotonicClock, VirtualClock
from prefixlab.core.errors import ConfigError, TargetError
from prefixlab.core.step_time.built_in import PROFILES
from prefixlab.core.step_time.shape import StepShape
from prefixlab.core.target import Chunk, Sent, TargetRequest
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.server.in_process import EngineTarget, engine_target
from prefixlab.simulator.config import DEFAULT_PROFILE, SimConfig
from prefixlab.simulator.engine import load_simulated
from tests.engine.harness import random_tokens

PAGE_SIZE = 16
SIZES = {"page_size": PAGE_SIZE, "num_pages": 256}


def simulated(clock: Any, **settings: Any) -> AbstractContextManager[EngineTarget]:
    engine = load_simulated(
        SimConfig(**settings), **SIZES, max_model_len=2048, seed=0, clock=clock, keeps_pace=False
    )
    cache = CacheConfig(page_size=PAGE_SIZE)
    return engine_target(engine, cache, SchedulerConfig(), clock, {"model": "sim"})


def on_torch() -> AbstractContextManager[EngineTarget]:
    from prefixlab.engine.config import EngineConfig
    from prefixlab.engine.load import load_engine

    clock = MonotonicClock()
    engine = load_engine(EngineConfig(), **SIZES, max_running_requests=4, clock=clock)
    return engine_target(engine, CacheConfig(page_size=PAGE_SIZE), SchedulerConfig(), clock)


ENGINES: dict[str, Callable[[], AbstractContextManager[EngineTarget]]] = {
    "simulated": lambda: simulated(VirtualClock()),
    "torch": on_torch,
}


@pytest.fixture(scope="module", params=ENGINES)
def target(request: pytest.FixtureRequest) -> Iterator[EngineTarget]:
    with ENGINES[request.param]() as made:
        yield made


def a_request(num_tokens: int = 5, prompt_len: int = 40, **changes: Any) -> TargetRequest:
    given: dict[str, Any] = {"prompt_token_ids": as_token_ids(random_tokens(prompt_len, prompt_len))}
    return TargetRequest("r", num_tokens, **(given | changes))


async def stream(target: EngineTarget, request: TargetRequest) -> tuple[Sent, list[Chunk]]:
    items = [item async for item in target.stream(request)]
    assert isinstance(items[0], Sent)
    return items[0], [item for item in items[1:] if isinstance(item, Chunk)]


def ask(target: EngineTarget, request: TargetRequest) -> tuple[Sent, list[Chunk]]:
    return asyncio.run(stream(target, request))


def test_a_stream_is_one_sent_then_one_chunk_per_token_in_order_of_time(target: EngineTarget) -> None:
    sent, chunks = ask(target, a_request())
    assert [chunk.num_output_tokens for chunk in chunks if chunk.carries_tokens] == [1, 2, 3, 4, 5]
    times = [sent.sent_s, *(chunk.arrival_s for chunk in chunks)]
    assert times == sorted(times)
    assert (sent.connect_started_s, sent.connected_s) == (None, None)
    *others, last = chunks
    assert (last.carries_tokens, last.num_output_tokens, last.finish_reason) == (False, 5, "length")
    assert all(chunk.finish_reason is None for chunk in others)
    assert {chunk.num_prompt_tokens for chunk in chunks} == {40}
    assert [len(chunk.token_ids or ()) for chunk in chunks] == [1, 1, 1, 1, 1, 0]


def test_cached_tokens_are_told_and_a_flush_ends_them(target: EngineTarget) -> None:
    for expected in (0, 32, 32):
        if not expected:
            assert target.flush()
        _, chunks = ask(target, a_request())
        assert {chunk.num_cached_tokens for chunk in chunks} == {expected}
    _, chunks = ask(target, a_request(extra_body={"force_miss": True}))
    assert {chunk.num_cached_tokens for chunk in chunks} == {0}


def test_text_and_conversations_are_prompts_too(target: EngineTarget) -> None:
    _, text = ask(target, a_request(prompt_token_ids=None, prompt_text="the quick fox"))
    assert text[0].num_prompt_tokens and "".join(chunk.text for chunk in text)
    turns = ({"role": "user", "content": "the quick fox"},)
    _, chat = ask(target, a_request(prompt_token_ids=None, messages=turns))
    assert chat[0].num_prompt_tokens and chat[0].num_prompt_tokens > text[0].num_prompt_tokens


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_token_ids": as_token_ids([])}, "empty"),
        ({"prompt_token_ids": as_token_ids([10**6])}, "1000000 is not in the vocabulary"),
        ({"num_tokens": 10**6}, "exceed"),
        ({"extra_body": {"forse_miss": True}}, "forse_miss"),
        ({"extra_body": {"sampling_params": {"n": 2}}}, "one answer"),
        ({"prompt_token_ids": None}, "either text or input_ids"),
    ],
)
def test_what_cannot_run_is_a_target_error_that_says_why(
    target: EngineTarget, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(TargetError, match=said):
        ask(target, a_request(**changes))
    ask(target, a_request())  # and others still run


def test_streams_side_by_side_are_told_apart(target: EngineTarget) -> None:
    async def together() -> list[tuple[Sent, list[Chunk]]]:
        requests = [a_request(3 + i, 30 + i) for i in range(6)]
        requests = [
            TargetRequest(f"r{i}", r.max_new_tokens, r.prompt_token_ids) for i, r in enumerate(requests)
        ]
        return list(await asyncio.gather(*(stream(target, request) for request in requests)))

    for i, (_, chunks) in enumerate(asyncio.run(together())):
        assert (chunks[-1].num_output_tokens, chunks[-1].num_prompt_tokens) == (3 + i, 30 + i)


def test_a_stream_left_early_gives_its_id_and_its_pages_back(target: EngineTarget) -> None:
    async def leave() -> None:
        items = target.stream(a_request(1500, prompt_len=20))
        async for item in items:
            if isinstance(item, Chunk):
                break
        await items.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    ask(target, a_request(prompt_len=20))  # the same id
    assert target.flush()
    assert target.info()["tokens"]["free"] == 256 * PAGE_SIZE


def test_a_driver_may_run_again_and_again_over_one_target() -> None:
    clock = MonotonicClock()
    with simulated(clock, sim_speedup=100.0) as target:
        driver = StreamDriver(target, clock)
        for repeat in range(3):
            plan = [
                Planned(TargetRequest(f"{repeat}-{i}", 4, as_token_ids(random_tokens(64, i))), 64)
                for i in range(8)
            ]
            records = driver.run(plan, Load(open_loop=False, max_concurrency=3)).records
            assert [record.num_output_tokens for record in records] == [4] * 8
            assert {record.num_cached_tokens for record in records} == {48 if repeat else 0}
            assert all(record.arrival_counts == (1, 1, 1, 1) for record in records)


def test_times_are_the_engines_own_arithmetic() -> None:
    """On virtual time, so any stamp taken elsewhere than at the commit would be seen."""
    step_time = PROFILES[DEFAULT_PROFILE].step_time
    with simulated(VirtualClock()) as target:
        for num_cached in (0, 992):
            sent, chunks = ask(target, a_request(4, prompt_len=1000))
            shape = StepShape.of_prefill(1000 - num_cached, num_cached)
            expected = [step_time.duration_s(shape)]
            for context in (1001, 1002, 1003):
                decode = StepShape(num_decode_rows=1, num_decode_context_tokens=context)
                expected.append(expected[-1] + step_time.duration_s(decode))
            arrivals = [chunk.arrival_s - sent.sent_s for chunk in chunks if chunk.carries_tokens]
            assert arrivals == pytest.approx(expected)


def test_a_target_closed_takes_nothing_more() -> None:
    with simulated(VirtualClock()) as target:
        ask(target, a_request())
    with pytest.raises(TargetError, match="shutting down"):
        ask(target, a_request())
    with simulated(VirtualClock()):
        pass  # never asked: nothing to end


def test_flags_make_one_and_a_benchmarks_own_are_not_the_engines() -> None:
    flags = argparse.Namespace(model="sim", page_size=32, num_prompts=7, sim_step_ms=1.0, base_url="x")
    with in_process_target(flags, TargetConfig) as target:
        info = target.info()
        assert (info["model"], info["page_size"], info["sim_step_ms"]) == ("sim", 32, 1.0)
        assert info["sim_step_times"]["step_time"]["fixed_s"] == 0.001
        assert ask(target, a_request())[1][-1].num_output_tokens == 5
    with (
        pytest.raises(ConfigError, match="--dtype is for a real model"),
        in_process_target(argparse.Namespace(model="sim", dtype="float32")),
    ):
        pytest.fail("it must be refused")
