from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.bench.records.builder import RecordBuilder, spread
from prefixlab.bench.records.record import Outcome, Record, check_complete
from prefixlab.core.target import Chunk, Sent
from tests.bench.helpers import ok_record


def build(*chunks: Chunk, outcome: Outcome = Outcome.OK) -> Record:
    builder = RecordBuilder(Record("r", Outcome.UNSENT, intended_s=1.0, planned_prompt_tokens=9))
    builder.sent(Sent(2.0, connect_started_s=1.2, connected_s=1.5))
    for chunk in chunks:
        builder.add(chunk)
    return builder.finish(outcome, now_s=99.0, error="broke" if outcome is Outcome.FAILED else None)


def test_a_stream_becomes_a_record_of_every_tokens_arrival() -> None:
    record = build(
        Chunk(3.0),
        Chunk(4.0, carries_tokens=True, num_output_tokens=1, num_prompt_tokens=9, num_cached_tokens=0),
        Chunk(6.0, carries_tokens=True, num_output_tokens=4, finish_reason="length"),
    )
    assert (record.intended_s, record.connected_s, record.sent_s, record.first_byte_s) == (1.0, 1.5, 2.0, 3.0)
    assert record.arrivals_s == (4.0, 6.0)
    assert record.arrival_counts == (1, 3)
    assert record.num_output_tokens == 4
    assert record.num_cached_tokens == 0
    assert record.last_s == 99.0
    assert record.finish_reason == "length"
    assert not record.counts_estimated


def test_not_reported_is_not_zero() -> None:
    assert build(Chunk(3.0, carries_tokens=True)).num_cached_tokens is None


def test_a_role_or_usage_chunk_is_not_a_token() -> None:
    record = build(Chunk(3.0), Chunk(4.0, carries_tokens=True), Chunk(5.0, num_output_tokens=1))
    assert record.arrivals_s == (4.0,)
    assert record.num_output_tokens == 1


def test_chunks_without_counts_count_as_one_token_each_and_say_so() -> None:
    record = build(Chunk(3.0, carries_tokens=True), Chunk(4.0, carries_tokens=True))
    assert record.arrival_counts == (1, 1)
    assert record.counts_estimated


def test_a_total_that_agrees_makes_guessed_counts_certain() -> None:
    chunks = [
        Chunk(3.0, carries_tokens=True),
        Chunk(4.0, carries_tokens=True),
        Chunk(5.0, num_output_tokens=2),
    ]
    assert not build(*chunks).counts_estimated


def test_a_total_that_disagrees_wins_and_is_spread_over_the_chunks() -> None:
    chunks = [
        Chunk(3.0, carries_tokens=True),
        Chunk(4.0, carries_tokens=True),
        Chunk(5.0, num_output_tokens=5),
    ]
    record = build(*chunks)
    assert record.arrival_counts == (1, 4), "a prompt yields one token: the rest came after"
    assert record.counts_estimated


def test_tokens_nobody_could_see_are_counted_at_the_last_chunk() -> None:
    record = build(Chunk(3.0), Chunk(4.0, num_output_tokens=7))
    assert record.arrivals_s == (4.0,)
    assert record.num_output_tokens == 7


def test_chunks_of_one_stamp_are_one_arrival() -> None:
    chunks = [Chunk(t, carries_tokens=True, num_output_tokens=i) for i, t in enumerate((3.0, 3.0, 4.0), 1)]
    record = build(*chunks)
    assert record.arrivals_s == (3.0, 4.0)
    assert record.arrival_counts == (2, 1)
    assert not record.counts_estimated


def test_reasoning_is_output_that_is_counted_apart() -> None:
    record = build(
        Chunk(3.0, carries_tokens=True, num_output_tokens=2, is_reasoning=True),
        Chunk(4.0, carries_tokens=True, num_output_tokens=3, is_reasoning=True),
        Chunk(5.0, carries_tokens=True, num_output_tokens=4),
    )
    assert record.arrivals_s[0] == 3.0
    assert record.first_content_s == 5.0
    assert (record.num_output_tokens, record.num_reasoning_tokens) == (4, 3)


@pytest.mark.parametrize(
    ("marks", "num_reasoning", "first_content"),
    [
        ([True, None, True, False], 3, 3),
        ([True, None, None], 3, None),
        ([None, True, None, False, None], 3, 3),
        ([None, False, None], None, 0),
        ([None, None], None, 0),
        ([True, False, None, True, None], 3, 1),
    ],
)
def test_half_a_character_belongs_to_what_is_being_said(
    marks: list[bool | None], num_reasoning: int | None, first_content: int | None
) -> None:
    chunks = [
        Chunk(3.0 + place, carries_tokens=True, num_output_tokens=place + 1, is_reasoning=mark)
        for place, mark in enumerate(marks)
    ]
    record = build(*chunks)
    assert record.num_output_tokens == len(marks)
    assert record.num_reasoning_tokens == num_reasoning
    assert record.first_content_s == (None if first_content is None else 3.0 + first_content)


def test_a_servers_count_of_reasoning_wins_and_without_any_word_nobody_knows() -> None:
    thought = Chunk(3.0, carries_tokens=True, is_reasoning=True)
    said = build(thought, Chunk(4.0, num_output_tokens=9, num_reasoning_tokens=8))
    assert (said.num_reasoning_tokens, said.first_content_s) == (8, None)
    assert build(Chunk(3.0, carries_tokens=True)).num_reasoning_tokens is None


def test_a_request_that_was_never_sent_keeps_its_intent_only() -> None:
    builder = RecordBuilder(Record("r", Outcome.UNSENT, intended_s=1.0))
    record = builder.finish(Outcome.FAILED, now_s=2.0, error="could not connect")
    assert (record.sent_s, record.first_byte_s, record.last_s) == (None, None, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sent_s": -1.0},
        {"first_byte_s": 0.5},
        {"arrivals_s": (3.0, 2.5), "arrival_counts": (1, 1)},
        {"last_s": 1.5},
        {"arrival_counts": (0,)},
        {"arrival_counts": (1, 1)},
        {"error": "but ok"},
        {"last_s": None},
    ],
)
def test_a_record_whose_times_run_backwards_or_parts_disagree_is_a_bug(wrong: dict[str, object]) -> None:
    good = ok_record(intended_s=0.0, sent_s=1.0, arrivals_s=[2.0], last_s=3.0)
    with pytest.raises(AssertionError):
        replace(good, **wrong).check()  # type: ignore[arg-type]


def test_every_planned_request_is_accounted_for_once() -> None:
    records = [ok_record("a"), ok_record("b")]
    check_complete(records, 2)
    with pytest.raises(AssertionError, match="3 requests planned, 2 recorded"):
        check_complete(records, 3)
    with pytest.raises(AssertionError, match="twice"):
        check_complete([records[0], records[0]], 2)


@given(total=st.integers(0, 500), parts=st.integers(1, 50))
def test_spreading_loses_no_token_and_is_even_but_for_the_first(total: int, parts: int) -> None:
    counts = spread(total, parts)
    assert len(counts) == parts
    assert sum(counts) == total
    assert counts[0] == (total if parts == 1 else min(total, 1))
    if rest := counts[1:]:
        assert max(rest) - min(rest) <= 1
        assert total <= parts or rest[0] == max(rest)
