"""The priority policy: urgent requests push others out of rows, of pages and of the queue."""

from __future__ import annotations

import pytest

from prefixlab.core.errors import QueueFullError
from prefixlab.core.request import FinishReason, Request, RequestStatus
from tests.scheduler.harness import World, assert_tokens_are_right, ids_of, make_request, rows_of


def priority_world(**settings: object) -> World:
    fields: dict[str, object] = {"page_size": 4, "schedule_policy": "priority"}
    return World(**(fields | settings))  # type: ignore[arg-type]


def request(request_id: str, priority: int, num_prompt: int = 8, max_new_tokens: int = 8) -> Request:
    return make_request(request_id, num_prompt, max_new_tokens, priority=priority)


@pytest.mark.parametrize(("priority", "preempts"), [(5, False), (10, False), (11, True), (100, True)])
def test_preemption_needs_a_difference_of_more_than_the_threshold(priority: int, preempts: bool) -> None:
    world = priority_world(max_running_requests=1)
    low, high = request("l", 0), request("h", priority)
    world.add(low)
    world.step()
    world.add(high)
    world.run()
    assert ids_of(world.ended) == (["h", "l"] if preempts else ["l", "h"])
    assert low.num_retractions == preempts
    for ended in world.ended:
        assert_tokens_are_right(ended)


def test_with_lower_values_first_the_lower_value_preempts() -> None:
    world = priority_world(max_running_requests=1, schedule_low_priority_values_first=True)
    world.add(request("l", 50))
    world.step()
    world.add(request("h", 0), request("x", 60))
    world.run()
    assert ids_of(world.ended) == ["h", "l", "x"]


def test_a_preempted_request_is_retracted_and_loses_no_token() -> None:
    world = priority_world(max_running_requests=1)
    low = request("l", 0)
    world.add(low)
    for _ in range(3):
        world.step()
    kept = list(low.output_token_ids)
    world.add(request("h", 50))
    world.step()
    assert (low.status, low.num_retractions, low.output_token_ids) == (RequestStatus.WAITING, 1, kept)
    world.run()
    assert_tokens_are_right(low)
    assert low.num_cached_tokens == 0  # of its first admission


def test_preemption_makes_room_in_pages_too_and_takes_the_least_urgent_first() -> None:
    world = priority_world(num_pages=12)
    requests = [request("a", 5), request("b", 0), request("c", 5)]
    world.add(*requests)
    world.step()
    world.add(request("h", 50))
    assert rows_of(world.step()) == [("h", 0, 8)]
    assert [low.num_retractions for low in requests] == [0, 1, 0]


def test_nobody_is_pushed_out_when_even_that_would_not_be_enough() -> None:
    world = priority_world(num_pages=16)
    low, equal = request("l", 0), request("e", 45, 20, 20)
    world.add(low, equal)
    world.step()
    # l holds or will need four pages; with e's ten and h's ten they do not fit.
    high = request("h", 50, 20, 20)
    world.add(high)
    world.step()
    assert (low.num_retractions, high.status) == (0, RequestStatus.WAITING)
    world.run()
    for ended in world.ended:
        assert_tokens_are_right(ended)


def test_nobody_is_pushed_out_for_one_who_fits_anyway() -> None:
    world = priority_world(num_pages=64)
    low = request("l", 0)
    world.add(low)
    world.step()
    world.add(request("h", 50))
    world.run()
    assert low.num_retractions == 0


def test_nobody_is_pushed_out_for_one_who_would_wait_for_a_sibling() -> None:
    world = priority_world(max_running_requests=1, chunked_prefill_size=8)
    prompt = [7] * 60
    low, high = make_request("l", [*prompt, 1], 2), make_request("h", [*prompt, 2], 2, priority=50)
    world.add(low)
    world.step()
    world.add(high)
    world.step()
    assert low.num_retractions == 0
    world.run()
    assert high.num_cached_tokens and high.num_cached_tokens >= 8
    assert_tokens_are_right(high)


def test_a_prompt_in_progress_can_be_preempted() -> None:
    world = priority_world(max_running_requests=1, chunked_prefill_size=8)
    low = request("l", 0, num_prompt=40)
    world.add(low)
    world.step()
    world.add(request("h", 50))
    assert rows_of(world.step()) == [("h", 0, 8)]
    world.run()
    assert_tokens_are_right(low)


def test_other_policies_do_not_preempt() -> None:
    world = World(page_size=4, max_running_requests=1, schedule_policy="fcfs")
    world.add(request("l", 0))
    world.step()
    world.add(request("h", 1000))
    world.run()
    assert ids_of(world.ended) == ["l", "h"]


def test_in_a_full_queue_a_more_urgent_newcomer_takes_the_place_of_the_least_urgent() -> None:
    world = priority_world(max_queued_requests=2)
    world.add(request("a", 3), request("b", 1))
    world.add(request("c", 2))
    (displaced,) = world.scheduler.take_ended()
    assert (displaced.request_id, displaced.finish_reason) == ("b", FinishReason.ERROR)
    assert isinstance(displaced.error, QueueFullError)
    with pytest.raises(QueueFullError):
        world.add(request("d", 2))  # equals do not displace each other
    world.run()
    assert sorted(ids_of(world.ended)) == ["a", "c"]


def test_of_the_least_urgent_the_youngest_is_displaced_and_never_one_that_has_run() -> None:
    world = priority_world(max_queued_requests=2, max_running_requests=1)
    ran = request("r", 0)
    world.add(ran)
    world.step()
    world.add(request("h", 50))
    world.step()
    assert ran.status is RequestStatus.WAITING
    world.add(request("x", 20))
    world.add(request("y", 30))
    assert ids_of(world.scheduler.take_ended()) == ["x"]
    assert ran.status is RequestStatus.WAITING


def test_under_other_policies_a_full_queue_displaces_nobody() -> None:
    world = World(max_queued_requests=1)
    world.add(request("a", 0))
    with pytest.raises(QueueFullError):
        world.add(request("b", 1000))
