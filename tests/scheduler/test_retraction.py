"""Page pressure: who decodes goes on, who gives way loses time and no token."""

from __future__ import annotations

import pytest

from prefixlab.core.request import Request, RequestStatus
from tests.fakes import oracle_tokens
from tests.scheduler.harness import VOCAB_SIZE, World, assert_tokens_are_right, ids_of, make_request, rows_of


def tight_world(**settings: object) -> World:
    """Lets in all that fit with their prompts, so that decode runs out of pages."""
    fields: dict[str, object] = {"page_size": 4, "num_pages": 12, "schedule_conservativeness": 0.0}
    return World(**(fields | settings))  # type: ignore[arg-type]


def open_requests(num_requests: int = 3, max_new_tokens: int = 20) -> list[Request]:
    return [
        make_request("abcdef"[i], 8, max_new_tokens, may_stop=True, arrival_s=float(i))
        for i in range(num_requests)
    ]


@pytest.mark.parametrize("cache", ["radix", "none"])
@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("mixed", [False, True])
def test_retraction_loses_no_token(cache: str, page_size: int, mixed: bool) -> None:
    world = tight_world(cache=cache, page_size=page_size, num_pages=48 // page_size, enable_mixed_chunk=mixed)
    requests = open_requests()
    world.add(*requests)
    world.run()
    assert sum(request.num_retractions for request in requests) > 0
    for request in requests:
        assert request.num_output_tokens == 20
        assert_tokens_are_right(request)
    world.assert_all_pages_back()


def test_a_retracted_request_keeps_its_tokens_and_is_computed_again_from_prompt_and_output() -> None:
    world = tight_world(cache="none")
    requests = open_requests()
    world.add(*requests)
    world.run(until=lambda: any(request.num_retractions for request in requests))
    retracted = next(request for request in requests if request.num_retractions)
    assert retracted.status is RequestStatus.WAITING
    assert (retracted.row, retracted.num_computed_tokens) == (-1, 0)
    kept = list(retracted.output_token_ids)
    assert kept
    batches = world.run(until=lambda: retracted.status is RequestStatus.RUNNING)
    assert rows_of(batches[-1])[0] == (retracted.request_id, 0, 8 + len(kept))
    assert retracted.output_token_ids[: len(kept)] == kept
    assert len(retracted.output_token_ids) == len(kept) + 1


def test_what_a_retracted_request_computed_is_found_again_while_nobody_needs_the_pages() -> None:
    world = World(page_size=4, schedule_policy="priority", max_running_requests=1)
    request = make_request("a", 8, 20)
    world.add(request)
    for _ in range(7):
        world.step()
    world.add(make_request("z", 4, 1, priority=50))
    world.step()
    assert (request.status, request.num_tokens) == (RequestStatus.WAITING, 15)
    assert rows_of(world.step()) == [("a", 12, 3)]


def test_the_first_admission_says_how_many_tokens_were_cached_and_when_it_was_scheduled() -> None:
    world = tight_world()
    requests = open_requests()
    world.add(*requests)
    world.run()
    for request in requests:
        assert request.num_cached_tokens == 0
        assert request.scheduled_s == 0.0
        assert request.first_token_s == 1.0


def test_the_last_to_decode_never_gives_way() -> None:
    world = tight_world(num_pages=10)
    requests = [make_request(letter, 8, 28, may_stop=True) for letter in "ab"]
    world.add(*requests)
    world.run()
    assert requests[0].num_retractions == 0 or requests[1].num_retractions == 0
    for request in requests:
        assert_tokens_are_right(request)


@pytest.mark.parametrize("num_pages", [10, 11, 12, 13, 14])
def test_a_prompt_in_progress_gives_way_to_those_who_decode(num_pages: int) -> None:
    world = tight_world(num_pages=num_pages, chunked_prefill_size=4, enable_mixed_chunk=True)
    first = make_request("a", 8, 30, may_stop=True)
    world.add(first)
    world.step()
    long = make_request("b", 32, 4)
    world.add(long)
    world.run()
    assert first.num_retractions == 0
    for request in (first, long):
        assert_tokens_are_right(request)


def test_the_last_to_decode_goes_on_though_a_prompt_in_progress_has_more_outputs() -> None:
    world = tight_world(
        num_pages=33,
        cache="none",
        chunked_prefill_size=4,
        enable_mixed_chunk=True,
        schedule_policy="priority",
    )
    old = make_request("o", 60, 65, may_stop=True)
    world.add(old)
    world.run(until=lambda: old.num_output_tokens == 60)
    young = make_request("y", 4, 60, may_stop=True)
    world.add(make_request("u", 40, 1, priority=50), young)
    # The urgent one pushes the old one out, which is then computed again, a page in each step, while the
    # young one decodes and takes the pages that would be needed for that.
    world.run()
    assert (old.num_retractions, young.num_retractions) == (2, 0)
    for request in (old, young):
        assert_tokens_are_right(request)


def test_after_a_retraction_more_is_reserved_and_then_less_and_less() -> None:
    world = tight_world(num_pages=13)
    world.add(*open_requests())
    world.run()
    ratios = [stats.new_token_ratio for stats in world.stats]
    retracted = next(i for i, stats in enumerate(world.stats) if stats.num_retracted)
    assert ratios[retracted - 1] == 0.0
    assert ratios[retracted] > 0.0
    calm = [
        (before, after)
        for before, after, stats in zip(ratios, ratios[1:], world.stats[1:], strict=False)
        if not stats.num_retracted
    ]
    assert all(after <= before for before, after in calm)


def test_an_idle_scheduler_forgets_what_it_reserved() -> None:
    world = World(page_size=4)
    for letter in "ab":
        world.add(make_request(letter, 8, 20, may_stop=True))
        world.run()
    ratios = [stats.new_token_ratio for stats in world.stats]
    assert ratios[: len(ratios) // 2] == ratios[len(ratios) // 2 :]
    assert ratios[-2] < 0.7
    assert ratios[-1] == pytest.approx(0.7)


def test_min_new_tokens_counts_from_the_first_output_also_after_a_retraction() -> None:
    world = World(page_size=4, schedule_policy="priority", max_running_requests=1)
    expected = oracle_tokens([1, 2, 3, 4], 12, vocab_size=VOCAB_SIZE)
    low = make_request("a", [1, 2, 3, 4], 12, stop_token_ids=[expected[7]], min_new_tokens=6)
    world.add(low)
    for _ in range(4):
        world.step()
    world.add(make_request("z", 4, 1, priority=50))
    world.run()
    assert low.num_retractions == 1
    assert low.output_token_ids == expected[:8]


def test_retracted_requests_go_before_those_that_never_ran() -> None:
    world = tight_world(max_running_requests=3)
    requests = open_requests(5)
    world.add(*requests)
    world.run(until=lambda: any(request.num_retractions for request in requests))
    retracted = next(request for request in requests if request.num_retractions)
    world.run(until=lambda: retracted.status is RequestStatus.RUNNING)
    assert [request.status for request in requests[3:]] == [RequestStatus.WAITING] * 2


def test_who_just_gave_way_does_not_come_straight_back() -> None:
    world = tight_world()
    requests = open_requests()
    world.add(*requests)
    batches = world.run()
    num_readmissions = sum(
        request.num_output_tokens > 0 and start + length > request.num_prompt_tokens
        for batch in batches
        for request, start, length in zip(
            batch.requests[: batch.num_prefill_rows],
            batch.starts.tolist(),
            batch.lengths.tolist(),
            strict=False,
        )
    )
    assert num_readmissions == sum(request.num_retractions for request in requests) <= 4


def test_a_length_that_is_certain_is_reserved_in_full_so_nobody_gives_way() -> None:
    world = tight_world()
    requests = [make_request(letter, 8, 20) for letter in "abc"]
    world.add(*requests)
    world.run()
    assert [request.num_retractions for request in requests] == [0, 0, 0]
    assert ids_of(world.ended) == ["a", "b", "c"]
