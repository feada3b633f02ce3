"""Every way to end, once each: by a stop id, by length, by a stop string, aborted, timed out, failed."""

from __future__ import annotations

import numpy as np
import pytest

from prefixlab.core.batch import Batch, StepResult
from prefixlab.core.errors import EngineError, RequestTimeoutError
from prefixlab.core.request import FinishReason, RequestStatus
from tests.fakes import oracle_tokens
from tests.scheduler.harness import VOCAB_SIZE, World, ids_of, make_request, rows_of

PROMPT = [5, 4, 3, 2, 1]


def tokens_of(max_new_tokens: int = 8) -> list[int]:
    return oracle_tokens(PROMPT, max_new_tokens, vocab_size=VOCAB_SIZE)


# Stops. ------------------------------------------------------------------------------------------------


def test_a_stop_id_ends_it_and_counts_as_output() -> None:
    world = World()
    request = make_request("a", PROMPT, 8, stop_token_ids=[tokens_of()[3], 1001, 1002])
    world.add(request)
    world.run()
    assert request.output_token_ids == tokens_of()[:4]
    assert (request.finish_reason, request.matched_stop) == (FinishReason.STOP, tokens_of()[3])


@pytest.mark.parametrize(("min_new_tokens", "num_output"), [(0, 3), (3, 3), (4, 6)])
def test_a_stop_id_before_min_new_tokens_does_not_end_it(min_new_tokens: int, num_output: int) -> None:
    world = World()
    stop_ids = {tokens_of()[2], tokens_of()[5]}
    request = make_request("a", PROMPT, 8, stop_token_ids=stop_ids, min_new_tokens=min_new_tokens)
    world.add(request)
    world.run()
    assert request.output_token_ids == tokens_of()[:num_output]


def test_a_stop_id_as_the_very_last_token_counts_as_stopped() -> None:
    world = World()
    request = make_request("a", PROMPT, 4, stop_token_ids=[tokens_of()[3]])
    world.add(request)
    world.run()
    assert request.finish_reason is FinishReason.STOP


def test_requests_with_few_and_many_stop_ids_run_side_by_side() -> None:
    world = World()
    few = make_request("a", PROMPT, 8, stop_token_ids=[tokens_of()[4]])
    none = make_request("b", [*PROMPT, 1], 8)
    many = make_request("c", PROMPT, 8, stop_token_ids=[2000 + i for i in range(50)] + [tokens_of()[1]])
    world.add(few, none, many)
    world.run()
    assert [request.num_output_tokens for request in (few, none, many)] == [5, 8, 2]


def test_max_new_tokens_ends_it_also_at_the_first_token() -> None:
    world = World()
    request = make_request("a", PROMPT, 1)
    world.add(request)
    world.step()
    assert (request.finish_reason, request.output_token_ids) == (FinishReason.LENGTH, tokens_of(1))
    assert request.matched_stop is None


def test_output_may_fill_the_context_to_the_last_token() -> None:
    world = World(page_size=4, max_model_len=16, num_pages=4)
    request = make_request("a", PROMPT, 11)
    world.add(request)
    world.run()
    assert request.num_tokens == 16


def test_commit_says_who_got_a_token_in_batch_order() -> None:
    world = World(enable_mixed_chunk=True, chunked_prefill_size=8, page_size=4)
    world.add(make_request("a", 4, 2), make_request("b", 4, 5))
    first = world.scheduler.step()
    assert first is not None
    assert ids_of(world.scheduler.commit(first, world.runner.run(first))) == ["a", "b"]
    world.add(make_request("c", 20, 2))
    batch = world.scheduler.step()
    assert batch is not None
    advanced = world.scheduler.commit(batch, world.runner.run(batch))
    assert ids_of(batch.requests) == ["c", "a", "b"]
    assert ids_of(advanced) == ["a", "b"]  # c has pieces left
    assert advanced[0].finish_reason is FinishReason.LENGTH


def test_a_stop_string_found_by_the_edge_ends_it() -> None:
    world = World()
    request = make_request("a", PROMPT, 8, stop=("xyz",))
    world.add(request)
    world.step()
    world.step()
    world.scheduler.finish(request, "xyz")
    world.check()
    assert (request.finish_reason, request.matched_stop) == (FinishReason.STOP, "xyz")
    world.run()
    assert world.ended == [request]
    world.assert_all_pages_back()


def test_a_stop_string_completed_by_the_last_token_counts_as_stopped() -> None:
    world = World()
    request = make_request("a", PROMPT, 1, stop=("xyz",))
    world.add(request)
    world.step()
    assert request.finish_reason is FinishReason.LENGTH
    world.scheduler.finish(request, "xyz")
    assert (request.finish_reason, request.matched_stop) == (FinishReason.STOP, "xyz")
    assert ids_of(world.ended) == ["a"]


def test_times_tell_the_story_in_order() -> None:
    world = World(max_running_requests=1, step_s=1.0)
    first = make_request("a", 4, 3)
    second = make_request("b", 4, 3, arrival_s=0.0)
    world.add(first, second)
    world.run()
    story = [
        (
            request.arrival_s,
            request.scheduled_s,
            request.first_token_s,
            request.last_token_s,
            request.finished_s,
        )
        for request in (first, second)
    ]
    assert story == [(0.0, 0.0, 1.0, 3.0, 3.0), (0.0, 3.0, 4.0, 6.0, 6.0)]


# Abort. ------------------------------------------------------------------------------------------------


def step_only(world: World) -> Batch:
    batch = world.scheduler.step()
    assert batch is not None
    return batch


def abort_while_waiting(world: World) -> None:
    world.scheduler.abort("a")


def abort_between_pieces(world: World) -> None:
    world.step()
    world.scheduler.abort("a")


def abort_while_decoding(world: World) -> None:
    for _ in range(5):
        world.step()
    world.scheduler.abort("a")


def abort_while_the_batch_is_out(world: World, num_steps: int) -> None:
    for _ in range(num_steps):
        world.step()
    batch = step_only(world)
    num_output_tokens = batch.requests[0].num_output_tokens
    assert world.scheduler.abort("a")
    world.check()
    assert batch.requests[0].row >= 0, "the row is given up at the commit"
    advanced = world.scheduler.commit(batch, world.runner.run(batch))
    assert "a" not in ids_of(advanced)
    assert batch.requests[0].num_output_tokens == num_output_tokens


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    "abort",
    [
        abort_while_waiting,
        abort_between_pieces,
        abort_while_decoding,
        lambda world: abort_while_the_batch_is_out(world, 0),
        lambda world: abort_while_the_batch_is_out(world, 2),
        lambda world: abort_while_the_batch_is_out(world, 5),
    ],
    ids=["waiting", "between pieces", "decoding", "first piece out", "last piece out", "decode out"],
)
def test_an_abort_at_any_moment_frees_every_page(abort: object, mixed: bool) -> None:
    world = World(page_size=4, chunked_prefill_size=8, enable_mixed_chunk=mixed)
    request = make_request("a", 20, 8)
    world.add(request)
    abort(world)  # type: ignore[operator]
    world.check()
    assert (request.status, request.finish_reason) == (RequestStatus.FINISHED, FinishReason.ABORT)
    assert (request.row, request.lease, request.error) == (-1, None, None)
    assert world.scheduler.is_idle
    world.assert_all_pages_back()
    world.run()
    assert world.ended == [request]


def test_an_abort_carries_the_error_it_was_given() -> None:
    world = World()
    request = make_request("a", 4)
    error = EngineError("gone")
    world.add(request)
    assert world.scheduler.abort("a", error)
    assert request.error is error


def test_aborting_a_stranger_twice_or_after_the_end_is_false_and_changes_nothing() -> None:
    world = World()
    world.add(make_request("a", 4, 1))
    assert not world.scheduler.abort("b")
    world.run()
    assert not world.scheduler.abort("a")
    world.add(make_request("c", 4, 4))
    batch = step_only(world)
    assert world.scheduler.abort("c", EngineError("first"))
    assert world.scheduler.abort("c", EngineError("second"))
    world.scheduler.commit(batch, world.runner.run(batch))
    (ended,) = world.scheduler.take_ended()
    assert str(ended.error) == "first"


def test_what_an_aborted_request_computed_is_there_for_others() -> None:
    world = World(page_size=4, chunked_prefill_size=8)
    request = make_request("a", 20, 8)
    world.add(request)
    abort_while_the_batch_is_out(world, 1)
    assert world.cache.cache.peek(request.prompt_token_ids, request.namespace) == 16


# Failure. ----------------------------------------------------------------------------------------------


def test_a_failed_batch_ends_its_requests_with_the_error_and_others_go_on() -> None:
    world = World(max_running_requests=2)
    world.add(make_request("a", 4), make_request("b", 4), make_request("c", 4))
    batch = step_only(world)
    error = EngineError("out of memory")
    world.scheduler.fail(batch, error)
    world.check()
    failed = world.scheduler.take_ended()
    assert [(request.request_id, request.finish_reason) for request in failed] == [
        ("a", FinishReason.ERROR),
        ("b", FinishReason.ERROR),
    ]
    assert all(request.error is error and not request.output_token_ids for request in failed)
    world.assert_all_pages_back()
    world.run()
    assert ids_of(world.ended) == ["c"]


def test_nothing_of_a_failed_batch_enters_the_cache_but_what_was_computed_before_does() -> None:
    world = World(page_size=4, chunked_prefill_size=8)
    request = make_request("a", 20)
    world.add(request)
    world.step()
    world.scheduler.fail(step_only(world), EngineError("no"))
    assert world.cache.cache.peek(request.prompt_token_ids, request.namespace) == 8


def test_who_was_aborted_while_a_failing_batch_was_out_counts_as_aborted() -> None:
    world = World()
    world.add(make_request("a", 4), make_request("b", 4))
    batch = step_only(world)
    world.scheduler.abort("a")
    world.scheduler.fail(batch, EngineError("no"))
    reasons = {request.request_id: request.finish_reason for request in world.scheduler.take_ended()}
    assert reasons == {"a": FinishReason.ABORT, "b": FinishReason.ERROR}


def test_a_batch_comes_back_once_and_before_the_next_step() -> None:
    world = World()
    world.add(make_request("a", 4))
    batch = step_only(world)
    with pytest.raises(AssertionError):
        world.scheduler.step()
    result = StepResult(np.array([1], dtype=np.int32), 0.0)
    world.scheduler.commit(batch, result)
    with pytest.raises(AssertionError):
        world.scheduler.commit(batch, result)


# Time-outs. --------------------------------------------------------------------------------------------


def test_a_request_that_waits_too_long_ends_with_a_time_out() -> None:
    world = World(max_running_requests=1, queue_timeout_s=3.0)
    first, second = make_request("a", 4, 20), make_request("b", 4, 20)
    world.add(first, second)
    world.run(until=lambda: second.status is RequestStatus.FINISHED)
    assert second.finish_reason is FinishReason.TIMEOUT
    assert isinstance(second.error, RequestTimeoutError)
    assert "--queue-timeout-s 3" in str(second.error)
    assert world.clock.now() == 5.0  # the first step that began after more than three seconds
    world.run()
    assert first.finish_reason is FinishReason.LENGTH


def test_a_request_that_runs_too_long_ends_with_a_time_out_and_gives_its_pages_back() -> None:
    world = World(running_timeout_s=5.0)
    request = make_request("a", 4, 100)
    world.add(request)
    world.run()
    assert request.finish_reason is FinishReason.TIMEOUT
    assert "--running-timeout-s 5" in str(request.error)
    assert request.num_output_tokens == 6
    world.assert_all_pages_back()


def test_running_counts_from_the_first_admission_and_goes_on_while_it_waits_again() -> None:
    world = World(
        running_timeout_s=10.0, queue_timeout_s=2.0, schedule_policy="priority", max_running_requests=1
    )
    low = make_request("l", 4, 100)
    world.add(low)
    world.step()
    high = make_request("h", 4, 50, priority=50, arrival_s=1.0)
    world.add(high)
    world.run()
    assert "--running-timeout-s" in str(low.error)
    assert low.finished_s == 11.0


def test_time_outs_are_off_unless_asked_for() -> None:
    world = World(max_running_requests=1, step_s=1e6)
    world.add(make_request("a", 4, 5), make_request("b", 4, 5))
    world.run()
    assert [request.finish_reason for request in world.ended] == [FinishReason.LENGTH] * 2


# Listening. --------------------------------------------------------------------------------------------


def test_the_listener_hears_of_every_step() -> None:
    world = World(page_size=4, num_pages=20, chunked_prefill_size=8, enable_mixed_chunk=True, step_s=0.5)
    world.add(make_request("a", 8, 1))
    world.run()
    world.stats.clear()
    again = make_request("b", [*make_request("a", 8).prompt_token_ids.tolist(), 1, 2], 3)
    world.add(again, make_request("c", 20, 2), make_request("d", 20, 2))
    batch = world.step()
    assert rows_of(batch) == [("b", 8, 2), ("c", 0, 8)]
    (stats,) = world.stats
    assert (stats.now_s, stats.duration_s) == (world.clock.now(), 0.5)
    assert (stats.num_prefill_rows, stats.num_prefill_tokens, stats.num_decode_rows) == (2, 10, 0)
    assert stats.num_cached_tokens == 8
    assert (stats.num_waiting, stats.num_running, stats.num_retracted) == (1, 2, 0)
    pages = world.cache.stats()
    assert (stats.num_free_pages, stats.num_evictable_pages) == (
        pages.num_free_pages,
        pages.num_evictable_pages,
    )
    assert 0 < stats.new_token_ratio <= 0.7
    world.step()
    assert (world.stats[-1].num_cached_tokens, world.stats[-1].num_decode_rows) == (0, 1)
