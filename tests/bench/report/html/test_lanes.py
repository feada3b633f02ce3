from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.metrics.windows import peak_concurrency
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.html.lanes import (
    in_ticks,
    lanes_of,
    num_token_slices,
    slices_of,
    spans_of,
    tick_for,
)
from tests.bench.helpers import ok_record
from tests.bench.report.html.runs import many_requests

SPANS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 5), st.integers(1, 9), st.integers(0, 9)), min_size=1
)


def table_of(spans: list[tuple[int, int, int, int]]) -> RecordTable:
    """(intended, queued, prefill, decode) of each, in seconds."""
    return RecordTable.of(
        ok_record(
            f"r{number}",
            intended_s=float(start),
            sent_s=float(start + queued),
            arrivals_s=[float(start + queued + prefill), float(start + queued + prefill + decode)],
        )
        for number, (start, queued, prefill, decode) in enumerate(spans)
    )


@settings(deadline=None)
@given(SPANS)
def test_requests_in_one_lane_never_overlap_and_no_lane_is_wasted(
    spans: list[tuple[int, int, int, int]],
) -> None:
    table = table_of(spans)
    where = spans_of(table)
    lanes = lanes_of(table, where, 1000, 1000)
    for lane in range(lanes.num_lanes):
        mine = lanes.index[lanes.lane == lane]
        assert (where.start_s[mine][1:] >= where.end_s[mine][:-1]).all()
    at_once = max(int(((where.start_s <= at) & (at < where.end_s)).sum()) for at in where.start_s)
    assert lanes.num_lanes == at_once
    assert not lanes.num_left_out


@settings(deadline=None)
@given(SPANS, st.integers(1, 7))
def test_slices_hold_exactly_the_time_requests_spent(
    spans: list[tuple[int, int, int, int]], num: int
) -> None:
    table = table_of(spans)
    where = spans_of(table)
    slices = slices_of(table, where, num)
    width_s = where.duration_s / num
    for column, index in ((slices.queued, 1), (slices.prefill, 2), (slices.decode, 3)):
        assert column.sum() * width_s == pytest.approx(sum(span[index] for span in spans))
    assert slices.tokens_per_s.sum() * width_s == pytest.approx(2 * len(spans))


def test_as_many_lanes_as_requests_were_under_way_at_once() -> None:
    table = many_requests(2000, num_slots=16)
    lanes = lanes_of(table, spans_of(table), 5000, 10**6)
    assert abs(lanes.num_lanes - peak_concurrency(table)) <= 1
    assert len(lanes.token_s) == len(table.arrivals_s)


def test_too_many_requests_are_drawn_by_whole_lanes_and_it_is_told_how_many_are_not() -> None:
    table = many_requests(2000, num_slots=16)
    lanes = lanes_of(table, spans_of(table), 500, 4000)
    assert lanes.every == 4
    assert lanes.num_left_out == 2000 - len(lanes.index)
    assert 400 < len(lanes.index) < 700
    assert lanes.num_lanes == 5 or lanes.num_lanes == 4
    assert lanes.tokens_every > 1
    assert len(lanes.token_s) <= 8000


def test_one_lane_alone_is_cut_where_it_is_too_long() -> None:
    table = table_of([(10 * number, 0, 1, 1) for number in range(100)])
    lanes = lanes_of(table, spans_of(table), 10, 1000)
    assert len(lanes.index) == 10
    assert lanes.num_left_out == 90


def test_tokens_go_with_their_requests() -> None:
    table = table_of([(0, 0, 1, 2), (1, 1, 1, 1)])
    lanes = lanes_of(table, spans_of(table), 10, 10)
    found = [lanes.token_s[a:b].tolist() for a, b in pairwise(lanes.token_start)]
    assert found == [[1.0, 3.0], [3.0, 4.0]]


def test_stretches_of_a_run_come_one_after_another() -> None:
    table = RecordTable.of(
        [
            ok_record("a", intended_s=5.0, arrivals_s=(6.0, 7.0), segment=0),
            ok_record("b", intended_s=5.0, arrivals_s=(6.0, 8.0), segment=1),
        ]
    )
    where = spans_of(table)
    assert where.start_s.tolist() == [0.0, 2.0]
    assert where.end_s.tolist() == [2.0, 5.0]
    assert where.shift_of == {0: -5.0, 1: -3.0}


def test_what_was_never_sent_is_not_drawn_and_a_failure_ends_where_it_failed() -> None:
    failed = Record(
        request_id="f",
        outcome=Outcome.FAILED,
        intended_s=0.0,
        sent_s=1.0,
        last_s=3.0,
        failure=Failure.RESET,
        error="x",
    )
    table = RecordTable.of([failed, Record(request_id="u", outcome=Outcome.UNSENT, intended_s=2.0)])
    where = spans_of(table)
    assert where.row.tolist() == [0]
    assert (where.first_s.tolist(), where.end_s.tolist()) == ([3.0], [3.0])


@pytest.mark.parametrize("duration_s", [1.0, 3600.0, 10 * 86_400.0])
def test_ticks_are_finer_than_the_eye_however_long_the_run(duration_s: float) -> None:
    seconds = np.array([0.0, 1e-4, duration_s])
    tick_s = tick_for(duration_s)
    assert np.abs(in_ticks(seconds, tick_s) * tick_s - seconds).max() <= tick_s
    assert tick_s <= max(1e-5, duration_s / 1e6)


def test_a_request_that_begins_as_another_ends_takes_its_lane_however_clocks_were_rounded() -> None:
    table = RecordTable.of(
        ok_record(f"r{number}", intended_s=start, sent_s=start, arrivals_s=[start + 0.5, start + 1 + 1e-8])
        for number, start in enumerate([0.0, 1.0, 2.0])
    )
    assert lanes_of(table, spans_of(table), 100, 100).num_lanes == 1


def test_tokens_per_second_is_of_stretches_of_several_steps() -> None:
    """All slots in step: slices shorter than a step would be either empty or full."""
    table = RecordTable.of(
        ok_record(f"r{slot}", intended_s=0.0, sent_s=0.0, arrivals_s=[0.05 * step for step in range(1, 201)])
        for slot in range(4)
    )
    spans = spans_of(table)
    rate = slices_of(table, spans, num_token_slices(table, spans)).tokens_per_s
    assert spans.duration_s / len(rate) >= 10 * 0.05
    assert rate == pytest.approx(np.full(len(rate), 80.0), rel=0.15)
