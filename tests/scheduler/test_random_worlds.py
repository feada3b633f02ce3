"""Whatever comes, in whatever order and however tight the memory: right tokens, one end each, all pages back.

Hypothesis draws the settings, the requests and what happens between and during the steps. After every step
the scheduler and the cache check themselves; the runner's tokens depend on every page it reads.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from prefixlab.core.block_hash import PUBLIC, Namespace
from prefixlab.core.errors import EngineError
from prefixlab.core.request import FinishReason, Request, RequestStatus
from prefixlab.scheduler.config import POLICIES
from tests.scheduler.harness import World, assert_tokens_are_right, make_request

MAX_MODEL_LEN = 96
SOME_STOP_IDS = frozenset(range(0, 1000, 9))


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Prompts of a few families that share long beginnings and part at any place."""
    family = draw(st.integers(0, 2))
    num_shared = draw(st.sampled_from([0, 3, 16, 31, 40, 48]))
    num_own = draw(st.integers(1, 20))
    own = draw(st.integers(0, 3))
    return [family] * num_shared + [10 + own] * num_own


@st.composite
def request_fields(draw: st.DrawFn) -> dict[str, Any]:
    max_new_tokens = draw(st.sampled_from([24, 1, 2, 9, 17]))
    kind = draw(st.sampled_from(["open", "certain", "stops"]))
    return {
        "prompt": draw(prompts()),
        "max_new_tokens": max_new_tokens,
        "may_stop": kind == "open",
        "stop_token_ids": SOME_STOP_IDS if kind == "stops" else (),
        "min_new_tokens": draw(st.integers(0, max_new_tokens)),
        "priority": draw(st.sampled_from([0, 0, 5, 20])),
        "namespace": draw(st.sampled_from([PUBLIC, PUBLIC, PUBLIC, Namespace("x")])),
        "force_miss": draw(st.sampled_from([False, False, False, True])),
    }


@st.composite
def worlds(draw: st.DrawFn) -> World:
    page_size = draw(st.sampled_from([1, 2, 4, 16]))
    cache = draw(st.sampled_from(["radix", "radix", "none"]))
    policy = draw(st.sampled_from(POLICIES))
    num_pages_of_longest = -(-MAX_MODEL_LEN // page_size)
    return World(
        page_size=page_size,
        num_pages=num_pages_of_longest + draw(st.integers(0, num_pages_of_longest)),
        cache=cache,
        force_miss=cache == "radix" and draw(st.booleans()),
        max_model_len=MAX_MODEL_LEN,
        schedule_policy=policy,
        max_running_requests=draw(st.sampled_from([1, 3, 8, 8])),
        chunked_prefill_size=draw(st.sampled_from([-1, page_size, 20, 64])),
        max_prefill_tokens=draw(st.sampled_from([16, 48, 1000])),
        enable_mixed_chunk=draw(st.booleans()),
        in_batch_deferral_threshold=draw(st.sampled_from([-1, 0, 8, 32])),
        schedule_conservativeness=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        running_timeout_s=draw(st.sampled_from([None, None, None, 60.0])),
        queue_timeout_s=draw(st.sampled_from([None, None, None, 30.0])),
    )


ACTIONS = ("add",) * 6 + ("step",) * 8 + ("abort", "abort_in_flight", "fail", "finish")
"""`abort` and `finish` between steps, `abort_in_flight` and `fail` while a batch is out."""


random_worlds = given(
    world=worlds(),
    fields=st.lists(request_fields(), min_size=3, max_size=12),
    actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 11)), max_size=60),
)
as_they_come = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@random_worlds
@settings(as_they_come, max_examples=120)
def test_tokens_are_right_everybody_ends_once_and_all_pages_come_back(
    world: World, fields: list[dict[str, Any]], actions: list[tuple[str, int]]
) -> None:
    play(world, fields, actions)


@pytest.mark.slow
@random_worlds
@settings(as_they_come, max_examples=3000)
def test_in_many_more_worlds_tokens_are_right_and_all_pages_come_back(
    world: World, fields: list[dict[str, Any]], actions: list[tuple[str, int]]
) -> None:
    play(world, fields, actions)


def play(world: World, fields: list[dict[str, Any]], actions: list[tuple[str, int]]) -> None:
    scheduler = world.scheduler
    requests = [make_request(f"r{i}", **request) for i, request in enumerate(fields)]
    to_add = list(requests)
    added: list[Request] = []

    for action, number in actions:
        live = [request for request in added if request.status is not RequestStatus.FINISHED]
        chosen = live[number % len(live)] if live else None
        if action == "add" and to_add:
            request = to_add.pop(0)
            request.arrival_s = world.clock.now()
            world.add(request)
            added.append(request)
        elif action == "step":
            world.step()
        elif action == "abort" and chosen:
            assert scheduler.abort(chosen.request_id)
            assert chosen.row == -1
        elif action == "finish" and chosen and chosen.output_token_ids:
            scheduler.finish(chosen, "stop here")
        elif action in ("abort_in_flight", "fail"):
            batch = scheduler.step()
            if chosen and chosen.status is not RequestStatus.FINISHED:
                assert scheduler.abort(chosen.request_id)
            if batch is not None:
                result = world.runner.run(batch)
                if action == "fail":
                    scheduler.fail(batch, EngineError("out of luck"))
                else:
                    scheduler.commit(batch, result)
            assert chosen is None or chosen.status is RequestStatus.FINISHED
        world.check()

    for request in to_add:
        request.arrival_s = world.clock.now()
    added += to_add
    world.add(*to_add)
    world.run()

    assert Counter(request.request_id for request in world.ended) == Counter(
        request.request_id for request in added
    )
    for request in added:
        assert request.finish_reason is not None
        assert_tokens_are_right(request)
        if request.force_miss or request.num_cached_tokens is None:
            assert not request.num_cached_tokens
        if request.finish_reason is FinishReason.TIMEOUT:
            assert request.error is not None
    world.assert_all_pages_back()
    event(f"retractions: {any(request.num_retractions for request in added)}")
    event(f"hits: {any(request.num_cached_tokens for request in added)}")
    event(f"two at once: {any(stats.num_running > 1 for stats in world.stats)}")


@pytest.mark.parametrize(
    "seed", [*range(15), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(15, 200))]
)
def test_long_busy_runs_under_pressure_end_well(seed: int) -> None:
    """Wider than hypothesis likes to go: many requests at once, few pages, everything at the same time."""
    rng = random.Random(seed)
    page_size = rng.choice([1, 2, 4, 16])
    cache = rng.choice(["radix", "radix", "none"])
    world = World(
        page_size=page_size,
        num_pages=-(-MAX_MODEL_LEN // page_size) + rng.randrange(200 // page_size),
        cache=cache,
        force_miss=cache == "radix" and rng.random() < 0.3,
        max_model_len=MAX_MODEL_LEN,
        schedule_policy=rng.choice(POLICIES),
        schedule_seed=seed,
        max_running_requests=rng.choice([4, 16]),
        chunked_prefill_size=rng.choice([-1, page_size, 16, 40]),
        enable_mixed_chunk=rng.random() < 0.5,
        in_batch_deferral_threshold=rng.choice([-1, 0, 8, 32]),
        schedule_conservativeness=rng.choice([0.0, 0.1, 1.0]),
    )
    requests = []
    for i in range(40):
        prompt = [rng.randrange(3)] * rng.choice([0, 16, 31, 48]) + [10 + rng.randrange(4)] * rng.randint(
            1, 20
        )
        max_new_tokens = rng.randint(1, MAX_MODEL_LEN - len(prompt))
        request = make_request(
            f"r{i}",
            prompt,
            max_new_tokens,
            may_stop=rng.random() < 0.6,
            stop_token_ids=SOME_STOP_IDS if rng.random() < 0.3 else (),
            min_new_tokens=rng.randint(0, max_new_tokens),
            priority=rng.choice([0, 5, 20]),
            arrival_s=world.clock.now(),
            force_miss=rng.random() < 0.1,
        )
        requests.append(request)
        world.add(request)
        for _ in range(rng.choice([0, 0, 1, 5])):
            world.step()
        if rng.random() < 0.1:
            world.scheduler.abort(rng.choice(requests).request_id)
    world.run()
    assert sorted(request.request_id for request in world.ended) == sorted(r.request_id for r in requests)
    for request in requests:
        assert_tokens_are_right(request)
    world.assert_all_pages_back()
