"""step(): what runs next. Continuous batching, chunked prefill, mixed batches, admission, head of line."""

from __future__ import annotations

import numpy as np
import pytest

from prefixlab.core.errors import ConfigError, ContextLengthError, InvalidRequestError, QueueFullError
from prefixlab.core.request import FinishReason, RequestStatus
from prefixlab.scheduler.config import POLICIES, SchedulerConfig
from tests.scheduler.harness import World, assert_tokens_are_right, ids_of, make_request, rows_of


def test_nothing_to_do_is_none() -> None:
    world = World()
    assert world.scheduler.step() is None
    assert world.scheduler.is_idle


def test_a_request_goes_from_waiting_to_finished_with_the_oracles_tokens() -> None:
    world = World()
    request = make_request("a", 6, 3)
    world.add(request)
    assert (request.status, world.scheduler.num_waiting) == (RequestStatus.WAITING, 1)
    world.step()
    assert (request.status, world.scheduler.num_running) == (RequestStatus.RUNNING, 1)
    world.run()
    assert (request.status, request.finish_reason) == (RequestStatus.FINISHED, FinishReason.LENGTH)
    assert world.ended == [request]
    assert_tokens_are_right(request)
    world.assert_all_pages_back()


def test_prefill_and_decode_are_one_shape_and_a_batch_says_what_the_runner_needs() -> None:
    world = World(enable_mixed_chunk=True)
    first, second = make_request("a", 6, 3), make_request("b", 5, 3)
    world.add(first)
    world.step()
    world.add(second)
    batch = world.scheduler.step()
    assert batch is not None
    assert rows_of(batch) == [("b", 0, 5), ("a", 6, 1)]
    assert (batch.num_prefill_rows, batch.num_prefill_tokens, batch.num_tokens) == (1, 5, 6)
    assert batch.samples.tolist() == [True, True]
    assert batch.input_ids.tolist() == [*second.prompt_token_ids, first.output_token_ids[0]]
    assert batch.rows.tolist() == [second.row, first.row]
    for array in (batch.rows, batch.starts, batch.lengths, batch.input_ids, batch.page_table):
        assert array.dtype == np.int32
    assert batch.page_table is world.cache.page_table


def test_batching_is_continuous_a_request_joins_while_others_run_and_leaves_alone() -> None:
    world = World()
    world.add(make_request("a", 4, 5))
    world.step()
    world.add(make_request("b", 4, 2))
    assert rows_of(world.step()) == [("b", 0, 4)]
    assert rows_of(world.step()) == [("a", 4, 1), ("b", 4, 1)]
    assert ids_of(world.ended) == ["b"]
    assert rows_of(world.step()) == [("a", 5, 1)]


def test_prefill_goes_before_decode() -> None:
    world = World()
    world.add(make_request("a", 4, 5))
    world.step()
    world.add(make_request("b", 4, 5))
    batch = world.step()
    assert rows_of(batch) == [("b", 0, 4)]


def test_mixed_batches_decode_beside_a_prefill() -> None:
    world = World(enable_mixed_chunk=True, chunked_prefill_size=8)
    world.add(make_request("a", 4, 9))
    world.step()
    world.add(make_request("b", 20, 2))
    assert rows_of(world.step()) == [("b", 0, 8), ("a", 4, 1)]
    assert rows_of(world.step()) == [("b", 8, 8), ("a", 5, 1)]
    assert rows_of(world.step()) == [("b", 16, 4), ("a", 6, 1)]
    assert rows_of(world.step()) == [("a", 7, 1), ("b", 20, 1)]


# Chunks. -----------------------------------------------------------------------------------------------


def test_a_long_prompt_is_computed_in_pieces_that_end_on_pages_but_for_the_last() -> None:
    world = World(page_size=4, chunked_prefill_size=11)
    request = make_request("a", 21, 2)
    world.add(request)
    batches = world.run()
    assert [rows_of(batch)[0] for batch in batches] == [("a", 0, 8), ("a", 8, 8), ("a", 16, 5), ("a", 21, 1)]
    assert [batch.samples.tolist() for batch in batches] == [[False], [False], [True], [True]]
    assert_tokens_are_right(request)


def test_only_one_prompt_is_computed_in_part_and_it_is_resumed_first() -> None:
    world = World(page_size=4, chunked_prefill_size=8, max_prefill_tokens=100)
    world.add(make_request("a", 20, 2), make_request("b", 20, 2), make_request("c", 5, 2))
    # b would have to be split as well, so it waits, and c behind it.
    assert [rows_of(world.step()) for _ in range(3)] == [
        [("a", 0, 8)],
        [("a", 8, 8)],
        [("a", 16, 4), ("b", 0, 8), ("c", 0, 5)],
    ]
    assert rows_of(world.step()) == [("b", 8, 8)]


def test_short_prompts_run_beside_a_prompt_in_progress() -> None:
    world = World(page_size=4, chunked_prefill_size=8, max_prefill_tokens=100)
    world.add(make_request("a", 20, 2), make_request("b", 6, 2), make_request("c", 8, 2))
    assert rows_of(world.step()) == [("a", 0, 8), ("b", 0, 6), ("c", 0, 8)]


def test_a_step_computes_no_more_prompt_tokens_than_max_prefill_tokens() -> None:
    world = World(page_size=4, chunked_prefill_size=8, max_prefill_tokens=14)
    world.add(*(make_request(letter, 6, 2) for letter in "abc"))
    assert rows_of(world.step()) == [("a", 0, 6), ("b", 0, 6)]  # two tokens are left: less than a page
    assert rows_of(world.step()) == [("c", 0, 6)]


def test_without_chunks_a_prompt_larger_than_max_prefill_tokens_runs_alone() -> None:
    world = World(chunked_prefill_size=-1, max_prefill_tokens=10)
    world.add(make_request("a", 4, 2), make_request("b", 20, 2), make_request("c", 4, 2))
    assert [rows_of(world.step()) for _ in range(3)] == [[("a", 0, 4)], [("b", 0, 20)], [("c", 0, 4)]]


def test_what_a_chunk_computed_is_in_the_cache_before_the_prompt_is_done() -> None:
    world = World(page_size=4, chunked_prefill_size=8)
    request = make_request("a", 20, 2)
    world.add(request)
    world.step()
    assert world.cache.cache.peek(request.prompt_token_ids, request.namespace) == 8
    assert request.num_cached_tokens == 0


@pytest.mark.parametrize("field", ["chunked_prefill_size", "max_prefill_tokens"])
def test_a_piece_smaller_than_a_page_is_refused_at_start_by_the_name_of_its_flag(field: str) -> None:
    with pytest.raises(ConfigError, match="--" + field.replace("_", "-")):
        World(page_size=16, **{field: 15})
    World(page_size=16, chunked_prefill_size=-1, max_prefill_tokens=15)


# What the cache gives. ---------------------------------------------------------------------------------


def test_a_cached_prefix_is_not_computed_again_and_one_token_always_is() -> None:
    world = World(page_size=4)
    world.add(make_request("a", 12, 2))
    world.run()
    again = make_request("x", make_request("a", 12).prompt_token_ids.tolist(), 2)
    world.add(again)
    assert rows_of(world.step()) == [("x", 8, 4)]
    assert again.num_cached_tokens == 8
    assert again.num_cached_tokens_by_tier == {"device": 8}
    world.run()
    assert_tokens_are_right(again)


def test_a_conversation_finds_the_answer_it_was_given() -> None:
    world = World(page_size=4)
    first = make_request("a", 8, 5)
    world.add(first)
    world.run()
    # Tokens whose KV exists: prompt and output but the last, 12 = three pages.
    turn = make_request("b", [*first.prompt_token_ids.tolist(), *first.output_token_ids, 1, 2, 3], 2)
    world.add(turn)
    world.run()
    assert turn.num_cached_tokens == 12
    assert_tokens_are_right(turn)


# Admission. --------------------------------------------------------------------------------------------


def test_a_request_comes_in_when_its_tokens_and_its_share_of_output_fit() -> None:
    # 8 + 9 tokens, of which the last needs no place: four pages each when the length is certain.
    world = World(page_size=4, num_pages=11)
    world.add(*(make_request(letter, 8, 9) for letter in "abc"))
    assert ids_of(world.step().requests) == ["a", "b"]  # type: ignore[union-attr]
    world.run()
    assert [request.num_retractions for request in world.ended] == [0, 0, 0]


def test_the_less_is_reserved_the_more_come_in() -> None:
    def num_admitted(conservativeness: float) -> int:
        world = World(page_size=4, num_pages=20, schedule_conservativeness=conservativeness)
        world.add(*(make_request(letter, 8, 40, may_stop=True) for letter in "abcdefghi"))
        return world.step().num_rows  # type: ignore[union-attr]

    assert [num_admitted(c) for c in (0.0, 0.3, 1.0, 2.0)] == [9, 5, 2, 1]


def test_pages_of_a_prefix_that_others_lock_anyway_do_not_count_against_a_newcomer() -> None:
    # The shared prefix fills 10 of 16 pages. Each request needs two more of its own.
    prefix = list(range(40))
    world = World(page_size=4, num_pages=16, in_batch_deferral_threshold=-1)
    world.add(make_request("a", prefix, 1))
    world.run()
    world.add(*(make_request(letter, [*prefix, 100 + i], 6) for i, letter in enumerate("bcd")))
    assert ids_of(world.step().requests) == ["b", "c", "d"]  # type: ignore[union-attr]
    world.run()
    assert all(request.num_retractions == 0 for request in world.ended)


def test_pages_that_only_the_newcomers_own_prefix_keeps_are_not_counted_as_free() -> None:
    prefix = list(range(40))
    world = World(page_size=4, num_pages=16)
    world.add(make_request("a", prefix, 1))
    world.run()
    # b locks ten evictable pages; what is left for c are six, of which b needs two and c five.
    world.add(make_request("b", [*prefix, 100], 6), make_request("c", 12, 9))
    assert ids_of(world.step().requests) == ["b"]  # type: ignore[union-attr]
    world.run()
    assert all(request.num_retractions == 0 for request in world.ended)


def test_the_first_in_order_that_does_not_fit_holds_up_the_others() -> None:
    world = World(page_size=4, num_pages=16)
    world.add(make_request("a", 30, 10), make_request("b", 30, 10), make_request("c", 4, 2))
    batches = world.run()
    started = [request_id for batch in batches for request_id, start, _ in rows_of(batch) if start == 0]
    assert started == ["a", "b", "c"]


def test_nobody_comes_in_without_a_row() -> None:
    world = World(max_running_requests=2)
    world.add(*(make_request(letter, 4, 3) for letter in "abc"))
    world.run()
    assert max(stats.num_running for stats in world.stats) == 2
    assert ids_of(world.ended) == ["a", "b", "c"]


def test_who_was_refused_comes_in_once_pages_are_back() -> None:
    world = World(page_size=4, num_pages=10)
    world.add(make_request("a", 20, 5), make_request("b", 20, 5))
    assert ids_of(world.run()[-1].requests) == ["b"]
    assert ids_of(world.ended) == ["a", "b"]


def test_who_was_refused_comes_in_as_the_reserve_sinks_although_nobody_ends() -> None:
    # Of its 500 tokens 350 are kept for the first, and fewer than it uses up as the ratio sinks.
    world = World(page_size=4, num_pages=150, max_model_len=600, checked=False)
    first, second = make_request("a", 8, 500, may_stop=True), make_request("b", 240, 7)
    world.add(first)
    world.step()
    world.add(second)
    world.step()
    assert second.status is RequestStatus.WAITING
    world.run(until=lambda: second.status is not RequestStatus.WAITING)
    assert first.status is RequestStatus.RUNNING


def test_a_newcomer_is_looked_at_although_somebody_was_refused() -> None:
    world = World(page_size=4, num_pages=16, schedule_policy="lof")
    large, small = make_request("b", 40, 8), make_request("c", 4, 9)
    world.add(make_request("a", 20, 20))
    world.step()
    world.add(large)
    world.step()
    world.add(small)
    world.step()
    assert (large.status, small.status) == (RequestStatus.WAITING, RequestStatus.RUNNING)


def test_when_the_one_that_held_up_others_is_aborted_they_come_in() -> None:
    world = World(page_size=4, num_pages=16)
    small = make_request("c", 4, 9)
    world.add(make_request("a", 20, 20), make_request("b", 40, 8), small)
    for _ in range(2):
        world.step()
    assert small.status is RequestStatus.WAITING
    world.scheduler.abort("b")
    world.step()
    assert small.status is RequestStatus.RUNNING


def test_a_request_alone_always_fits_however_much_is_cached_or_reserved() -> None:
    world = World(page_size=4, num_pages=10, schedule_conservativeness=5.0)
    for letter in "abc":
        world.add(make_request(letter, 30, 10, may_stop=True))
        world.run()
    assert [request.finish_reason for request in world.ended] == [FinishReason.LENGTH] * 3


# What add refuses. -------------------------------------------------------------------------------------


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    world = World(page_size=4, num_pages=8, max_model_len=40)
    with pytest.raises(ContextLengthError, match="40"):
        world.add(make_request("a", 30, 11))
    with pytest.raises(ContextLengthError, match="32"):
        world.add(make_request("a", 30, 3))
    world.add(make_request("a", 30, 2))
    world.run()
    assert ids_of(world.ended) == ["a"]


def test_an_empty_prompt_and_a_live_id_are_refused() -> None:
    world = World()
    with pytest.raises(InvalidRequestError, match="empty"):
        world.add(make_request("a", []))
    world.add(make_request("a", 4))
    with pytest.raises(InvalidRequestError, match="'a'"):
        world.add(make_request("a", 4))
    world.run()
    world.add(make_request("a", 4))  # its namesake has ended


def test_a_full_queue_refuses_and_keeps_those_it_has() -> None:
    world = World(max_queued_requests=2, max_running_requests=1)
    world.add(make_request("a", 4), make_request("b", 4))
    with pytest.raises(QueueFullError, match="2"):
        world.add(make_request("c", 4))
    world.step()  # a runs, and leaves its place
    world.add(make_request("d", 4))
    world.run()
    assert ids_of(world.ended) == ["a", "b", "d"]


# Order. ------------------------------------------------------------------------------------------------


def started_order(world: World) -> str:
    order = ""
    for batch in world.run():
        for request in batch.requests[: batch.num_prefill_rows]:
            order += "" if request.request_id in order else request.request_id
    return order


@pytest.mark.parametrize(
    ("policy", "expected"), [("fcfs", "bcde"), ("lof", "cdbe"), ("lpm", "debc"), ("priority", "bdce")]
)
def test_the_policy_orders_the_queue(policy: str, expected: str) -> None:
    world = World(schedule_policy=policy, max_running_requests=1, in_batch_deferral_threshold=-1)
    world.add(make_request("a", [7] * 12, 1))
    world.run()
    world.add(
        make_request("b", 9, 3, priority=5),
        make_request("c", 9, 8),
        make_request("d", [7] * 12, 6, priority=3),
        make_request("e", [7] * 5, 2),
    )
    assert started_order(world) == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_batches(policy: str) -> None:
    def batches(seed: int) -> list[list[tuple[str, int, int]]]:
        world = World(
            schedule_policy=policy,
            schedule_seed=seed,
            num_pages=40,
            max_running_requests=4,
            chunked_prefill_size=8,
            schedule_conservativeness=0.1,
        )
        for i in range(12):
            prompt = [i % 3] * (4 + i) + [i]
            world.add(make_request(f"r{i}", prompt, 5 + i, may_stop=True, priority=20 * (i % 4)))
        return [rows_of(batch) for batch in world.run()]

    assert batches(1) == batches(1)
    if policy == "random":
        assert batches(1) != batches(2)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"schedule_policy": "fifo"}, "--schedule-policy"),
        ({"schedule_low_priority_values_first": True}, "--schedule-low-priority-values-first"),
        ({"priority_preemption_threshold": -1}, "--priority-preemption-threshold"),
        ({"max_running_requests": 0}, "--max-running-requests"),
        ({"chunked_prefill_size": 0}, "--chunked-prefill-size"),
        ({"schedule_conservativeness": -0.1}, "--schedule-conservativeness"),
        ({"in_batch_deferral_threshold": -2}, "--in-batch-deferral-threshold"),
        ({"queue_timeout_s": -1.0}, "--queue-timeout-s"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_its_flag(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SchedulerConfig(**fields)  # type: ignore[arg-type]
