"""In-batch prefix deferral: the same prefix is not computed twice at once, and nobody waits for ever."""

from __future__ import annotations

import pytest

from prefixlab.core.block_hash import Namespace
from prefixlab.core.request import FinishReason, Request, RequestStatus
from prefixlab.scheduler.config import POLICIES
from prefixlab.scheduler.prefill import MAX_DEFERRED_PER_STEP
from tests.scheduler.harness import World, assert_tokens_are_right, ids_of, make_request, rows_of

PREFIX = [7] * 40


def sibling(
    request_id: str, prefix: list[int] = PREFIX, max_new_tokens: int = 2, **fields: object
) -> Request:
    own = int.from_bytes(request_id.encode()[-3:], "big")
    return make_request(request_id, [*prefix, own, own], max_new_tokens, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mixed", [False, True])
def test_under_every_policy_siblings_wait_for_the_first_and_find_its_prefix(policy: str, mixed: bool) -> None:
    world = World(page_size=4, schedule_policy=policy, enable_mixed_chunk=mixed)
    siblings = [sibling(letter) for letter in "abc"]
    world.add(*siblings)
    first, second = world.step(), world.step()
    assert first is not None and second is not None
    assert (first.num_prefill_rows, first.num_prefill_tokens) == (1, 42)
    assert (second.num_prefill_rows, second.num_prefill_tokens) == (2, 4)
    world.run()
    assert sorted(request.num_cached_tokens or 0 for request in siblings) == [0, 40, 40]
    for request in siblings:
        assert_tokens_are_right(request)


@pytest.mark.parametrize("policy", POLICIES)
def test_under_every_policy_others_pass_those_that_wait(policy: str) -> None:
    world = World(page_size=4, schedule_policy=policy)
    world.add(sibling("a"), sibling("b"), make_request("x", 6))
    assert len(rows_of(world.step())) == 2
    assert len(rows_of(world.step())) == 1


def test_siblings_wait_for_a_prompt_in_progress_only_until_what_they_share_is_computed() -> None:
    world = World(page_size=4, chunked_prefill_size=24)
    long = make_request("a", PREFIX + [1] * 60)
    world.add(long, sibling("b"))
    assert rows_of(world.step()) == [("a", 0, 24)]
    # 24 of the 40 tokens are there: what is still to be gained is less than the threshold of 32.
    assert rows_of(world.step()) == [("a", 24, 24), ("b", 24, 18)]


@pytest.mark.parametrize(("threshold", "waits"), [(-1, False), (0, True), (1, True), (40, True), (41, False)])
def test_they_wait_when_they_share_the_threshold_or_more(threshold: int, waits: bool) -> None:
    world = World(page_size=4, in_batch_deferral_threshold=threshold)
    world.add(sibling("a"), sibling("b"))
    assert len(rows_of(world.step())) == (1 if waits else 2)


def test_a_threshold_of_nothing_holds_up_nobody_who_shares_nothing() -> None:
    world = World(page_size=4, in_batch_deferral_threshold=0)
    world.add(make_request("a", 20), make_request("b", 20))
    assert len(rows_of(world.step())) == 2


def test_what_is_cached_already_is_not_waited_for() -> None:
    world = World(page_size=4)
    world.add(sibling("a"))
    world.run()
    world.add(sibling("b"), sibling("c"))
    assert rows_of(world.step()) == [("b", 40, 2), ("c", 40, 2)]


def test_nobody_waits_for_another_namespace_nor_for_a_cache_that_shares_nothing() -> None:
    world = World(page_size=4)
    world.add(sibling("a"), sibling("b", namespace=Namespace("x")))
    assert len(rows_of(world.step())) == 2
    world = World(page_size=4, cache="none")
    world.add(sibling("a"), sibling("b"))
    assert len(rows_of(world.step())) == 2


def test_the_second_of_two_siblings_is_not_overtaken_by_a_third() -> None:
    world = World(page_size=4, chunked_prefill_size=12, max_prefill_tokens=100, max_running_requests=2)
    world.add(sibling("a"), sibling("b"), sibling("c"))
    world.run()
    assert ids_of(world.ended) == ["a", "b", "c"]


@pytest.mark.parametrize("chunked_prefill_size", [-1, 8, 1000])
def test_nobody_starves_while_siblings_keep_coming(chunked_prefill_size: int) -> None:
    world = World(
        page_size=4,
        num_pages=64,
        chunked_prefill_size=chunked_prefill_size,
        max_running_requests=4,
    )
    waiting = sibling("w", PREFIX + [8] * 20)
    world.add(sibling("0"), waiting)
    for i in range(1, 60):
        # Some share all of it, some a part, some none; one arrives in every step.
        world.add(sibling(str(i), [PREFIX + [8] * 20, PREFIX, [i]][i % 3]))
        world.step()
    assert waiting.status is RequestStatus.FINISHED
    assert waiting.scheduled_s is not None and waiting.scheduled_s <= 12
    world.run()
    assert len(world.ended) == 61


@pytest.mark.parametrize("in_flight", [False, True])
def test_when_the_one_they_wait_for_is_aborted_the_next_computes(in_flight: bool) -> None:
    world = World(page_size=4, chunked_prefill_size=8)
    world.add(sibling("a"), sibling("b"), sibling("c"))
    world.step()
    if in_flight:
        batch = world.scheduler.step()
        assert batch is not None
        world.scheduler.abort("a")
        world.scheduler.commit(batch, world.runner.run(batch))
    else:
        world.scheduler.abort("a")
    assert rows_of(world.step())[0][0] == "b"
    world.run()
    assert ids_of(world.ended) == ["a", "b", "c"]
    assert [request.finish_reason for request in world.ended[1:]] == [FinishReason.LENGTH] * 2


def test_when_the_one_they_wait_for_is_preempted_nobody_is_stuck() -> None:
    world = World(page_size=4, chunked_prefill_size=8, schedule_policy="priority", max_running_requests=1)
    world.add(sibling("a"), sibling("b"))
    world.step()
    world.add(make_request("z", 6, priority=50))
    assert rows_of(world.step()) == [("z", 0, 6)]
    world.run()
    assert ids_of(world.ended) == ["z", "a", "b"]
    for request in world.ended:
        assert_tokens_are_right(request)


def test_a_step_looks_no_further_than_so_many_that_wait() -> None:
    world = World(page_size=4, num_pages=200, max_running_requests=200, checked=False)
    world.add(sibling("a"))
    world.add(*(sibling(str(i)) for i in range(MAX_DEFERRED_PER_STEP)))
    world.add(make_request("x", 6))
    assert len(rows_of(world.step())) == 1
    world.run()
    assert len(world.ended) == MAX_DEFERRED_PER_STEP + 2
