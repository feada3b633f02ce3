"""The forced miss: nothing is found and all else is as ever, wherever the scheduler looks anybody up."""

from __future__ import annotations

from typing import Any

import pytest

from prefixlab.core.errors import ConfigError
from prefixlab.core.request import Request
from prefixlab.scheduler.config import POLICIES
from tests.fakes import tree_contents
from tests.scheduler.harness import World, assert_tokens_are_right, ids_of, make_request, rows_of

PREFIX = [7] * 24


def family(num_requests: int = 6, max_new_tokens: int | None = None) -> list[Request]:
    """Siblings, some of whom share more than the others, in no particular order."""
    return [
        make_request(
            f"r{i}",
            [*PREFIX[: 24 - 8 * (i % 2)], *([i % 3] * 9), 100 + i],
            6 + i if max_new_tokens is None else max_new_tokens,
            may_stop=True,
            priority=20 * (i % 3),
        )
        for i in range(num_requests)
    ]


def run(requests: list[Request], *, force_miss: bool, num_pages: int = 400, **settings: Any) -> World:
    world = World(page_size=4, num_pages=num_pages, force_miss=force_miss, **settings)
    world.add(make_request("w", [*PREFIX, 1], 2))
    world.run()
    half = len(requests) // 2
    world.add(*requests[:half])
    for _ in range(3):
        world.step()
    world.add(*requests[half:])
    world.run()
    return world


def structure(world: World) -> set[Any]:
    return set(tree_contents(world.cache.cache))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("chunked_prefill_size", [-1, 8])
@pytest.mark.parametrize("mixed", [False, True])
def test_no_token_is_cached_and_tokens_and_tree_are_those_of_the_normal_run(
    policy: str, chunked_prefill_size: int, mixed: bool
) -> None:
    settings = {
        "schedule_policy": policy,
        "chunked_prefill_size": chunked_prefill_size,
        "enable_mixed_chunk": mixed,
        "max_running_requests": 3,
    }
    normal, forced = family(), family()
    normal_world = run(normal, force_miss=False, **settings)
    forced_world = run(forced, force_miss=True, **settings)
    assert sum(request.num_cached_tokens or 0 for request in normal) > 0
    assert [request.num_cached_tokens for request in forced] == [0] * len(forced)
    assert [stats.num_cached_tokens for stats in forced_world.stats] == [0] * len(forced_world.stats)
    assert [r.output_token_ids for r in forced] == [r.output_token_ids for r in normal]
    for request in forced:
        assert_tokens_are_right(request)
    assert structure(forced_world) == structure(normal_world)
    assert forced_world.runner.num_computed_tokens > normal_world.runner.num_computed_tokens
    forced_world.assert_all_pages_back()


@pytest.mark.parametrize("policy", POLICIES)
def test_retraction_under_forced_miss_computes_all_again_and_ends_with_the_same_tree(policy: str) -> None:
    settings = {
        "schedule_policy": policy,
        "schedule_conservativeness": 0.0,
        "chunked_prefill_size": 16,
        "in_batch_deferral_threshold": -1,
    }
    normal, forced = family(max_new_tokens=16), family(max_new_tokens=16)
    normal_world = run(normal, force_miss=False, **settings)
    # Enough for all that is cached in the end, too little for the last, unfinished pages of all at once.
    num_pages = len(structure(normal_world)) + 2
    forced_world = run(forced, force_miss=True, num_pages=num_pages, **settings)
    assert sum(request.num_retractions for request in forced) > 0
    assert [request.num_cached_tokens for request in forced] == [0] * len(forced)
    assert [r.output_token_ids for r in forced] == [r.output_token_ids for r in normal]
    assert structure(forced_world) == structure(normal_world)


# The lookup sites, one by one. -------------------------------------------------------------------------


def warm_world(**settings: Any) -> World:
    world = World(page_size=4, max_running_requests=1, **settings)
    world.add(make_request("w", [*PREFIX, 1], 1))
    world.run()
    return world


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight"])
def test_ordering_sees_nothing_under_forced_miss(policy: str) -> None:
    def order(force_miss: bool) -> list[str]:
        world = warm_world(schedule_policy=policy, force_miss=force_miss)
        world.add(make_request("a", 8, 1), make_request("b", [*PREFIX, 2], 1))
        world.run()
        return ids_of(world.ended)[1:]

    assert order(force_miss=False) == ["b", "a"]
    assert order(force_miss=True) == ["a", "b"]


def test_admission_finds_nothing_under_forced_miss() -> None:
    world = warm_world(force_miss=True)
    world.add(make_request("a", [*PREFIX, 2], 1))
    assert rows_of(world.step()) == [("a", 0, 25)]


@pytest.mark.parametrize("policy", POLICIES)
def test_deferral_sees_nothing_being_computed_under_forced_miss(policy: str) -> None:
    world = World(page_size=4, force_miss=True, schedule_policy=policy, in_batch_deferral_threshold=4)
    world.add(make_request("a", [*PREFIX, 1]), make_request("b", [*PREFIX, 2]))
    assert len(rows_of(world.step())) == 2


def test_readmission_after_a_retraction_finds_nothing_under_forced_miss() -> None:
    world = World(page_size=4, force_miss=True, schedule_policy="priority", max_running_requests=1)
    low = make_request("l", 20, 8)
    world.add(low)
    for _ in range(3):
        world.step()
    world.add(make_request("h", 4, 1, priority=50))
    world.step()
    assert rows_of(world.step()) == [("l", 0, 20 + 3)]


@pytest.mark.parametrize("force_miss", [False, True])
def test_preemption_counts_on_no_cached_prefix_under_forced_miss(force_miss: bool) -> None:
    """An urgent request whose prefix a running one holds needs two pages more: they are to spare. Where
    nothing is found it needs eight, and pushes the less urgent one out for them."""
    world = World(page_size=4, num_pages=18, schedule_policy="priority", force_miss=force_miss)
    holder = make_request("p", [*PREFIX, 1], 8, priority=50)
    low = make_request("l", 8, 8)
    for request in (holder, low):
        world.add(request)
        world.step()
    world.add(make_request("h", [*PREFIX, 2], 4, priority=50))
    assert rows_of(world.step()) == [("h", 0, 25) if force_miss else ("h", 24, 1)]
    assert low.num_retractions == force_miss
    world.run()
    for request in world.ended:
        assert_tokens_are_right(request)


def test_what_a_request_computed_in_an_earlier_piece_stays_its_own() -> None:
    world = World(page_size=4, force_miss=True, chunked_prefill_size=8)
    world.add(make_request("a", 20, 2))
    assert [rows_of(batch) for batch in world.run()] == [
        [("a", 0, 8)],
        [("a", 8, 8)],
        [("a", 16, 4)],
        [("a", 20, 1)],
    ]


def test_one_request_can_ask_for_a_miss_while_its_siblings_hit() -> None:
    world = World(page_size=4, in_batch_deferral_threshold=4)
    world.add(make_request("w", [*PREFIX, 1], 1))
    world.run()
    missing = make_request("a", [*PREFIX, 2], force_miss=True)
    hitting = make_request("b", [*PREFIX, 3])
    world.add(missing, hitting)
    world.run()
    assert (missing.num_cached_tokens, hitting.num_cached_tokens) == (0, 24)


def test_a_cache_that_shares_nothing_refuses_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"--force-miss.*--cache none"):
        World(cache="none", force_miss=True)
