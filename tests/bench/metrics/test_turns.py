from __future__ import annotations

import numpy as np
import pytest

from prefixlab.bench.metrics.turns import by_turn, has_turns, num_behind_failures, of_sessions
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.turns import turn_keys, turn_lines
from tests.bench.helpers import ok_record


def turn(
    session: str | None, number: int | None, *, sent_s: float = 0.0, ttft_s: float = 0.1, **fields: int | None
) -> Record:
    return ok_record(
        f"{session}-{number}",
        intended_s=sent_s,
        arrivals_s=[sent_s + ttft_s, sent_s + 1.0],
        session_id=session,
        turn=number,
        **{"num_prompt_tokens": 100, "num_cached_tokens": 50, "num_expected_cached_tokens": 64, **fields},
    )


def long_sessions(num_turns: int) -> RecordTable:
    return RecordTable.of(turn(name, number) for name in "ab" for number in range(num_turns))


def test_percentiles_of_a_turn_are_of_all_its_requests_pooled() -> None:
    random = np.random.default_rng(0)
    ttfts = random.exponential(0.1, (50, 2))
    table = RecordTable.of(
        turn(f"s{session}", number, ttft_s=ttfts[session, number])
        for session in range(50)
        for number in range(2)
    )
    for number, figures in enumerate(by_turn(table)):
        assert figures.ttft_s.p99 == pytest.approx(np.percentile(ttfts[:, number], 99))
        assert figures.ttft_s.mean == pytest.approx(ttfts[:, number].mean())


def test_rates_are_of_tokens_not_means_of_rates() -> None:
    rows = [turn("a", 0, num_prompt_tokens=1000, num_cached_tokens=0), turn("b", 0, num_cached_tokens=100)]
    (figures,) = by_turn(RecordTable.of(rows))
    assert figures.hit_rate == 100 / 1100
    assert figures.expected_hit_rate == 128 / 1100


def test_what_was_not_reported_is_no_miss() -> None:
    rows = [turn("a", 0), turn("b", 0, num_cached_tokens=None, num_expected_cached_tokens=None)]
    (figures,) = by_turn(RecordTable.of(rows))
    assert (figures.hit_rate, figures.expected_hit_rate) == (0.5, 0.64)
    (silent,) = by_turn(RecordTable.of([turn("a", 0, num_cached_tokens=None)]))
    assert silent.hit_rate is None


def test_many_turns_are_shown_in_groups_of_which_each_request_is_in_one() -> None:
    table = long_sessions(100)
    groups = [(group.first, group.last) for group in by_turn(table, grouped=True)]
    assert groups == [*((turn, turn) for turn in range(8)), (8, 15), (16, 31), (32, 63), (64, 99)]
    assert sum(group.ok for group in by_turn(table, grouped=True)) == 200
    assert len(by_turn(table)) == 100
    assert len(by_turn(long_sessions(12), grouped=True)) == 12


def test_a_session_lasts_from_its_first_turn_to_its_last_answer() -> None:
    table = RecordTable.of(
        [turn("a", 1, sent_s=5.0), turn("a", 0, sent_s=1.0), turn("b", 0, sent_s=2.0), turn(None, None)]
    )
    figures = of_sessions(table)
    assert (figures.planned, figures.begun, figures.completed) == (2, 2, 2)
    assert figures.mean_turns == 1.5
    assert figures.duration_s.max == pytest.approx(5.0) and figures.duration_s.min == pytest.approx(1.0)


def test_turns_behind_one_that_failed_are_told_from_others_that_were_not_sent() -> None:
    failed = Record(
        "a-0", Outcome.FAILED, 0.0, sent_s=0.0, failure=Failure.RESET, error="x", session_id="a", turn=0
    )
    unsent = [Record(f"{s}-1", Outcome.UNSENT, 0.0, session_id=s, turn=1) for s in ("a", "b", None)]
    table = RecordTable.of([failed, *unsent, turn("b", 0)])
    assert num_behind_failures(table) == 1
    figures = of_sessions(table)
    assert (figures.planned, figures.begun, figures.completed, figures.mean_turns) == (2, 2, 0, 0.5)
    assert figures.duration_s.count == 0


def test_without_a_second_turn_there_is_nothing_to_show() -> None:
    table = RecordTable.of([turn("a", 0), turn(None, None)])
    assert not has_turns(table) and not turn_lines(table) and not turn_keys(table)
    assert not has_turns(RecordTable.of([]))


def test_the_table_on_paper_has_a_row_per_turn_and_says_na_of_what_is_not_known() -> None:
    table = RecordTable.of([turn("a", 0), turn("a", 1, num_cached_tokens=None)])
    *_, header, first, second = turn_lines(table)
    assert header.split() == ["turn", "ok", "prompt", "TTFT", "mean", "p50", "p99", "hit", "%", "expected"]
    assert first.split() == ["0", "1", "100", "100.0", "100.0", "100.0", "50.00", "64.00"]
    assert second.split()[-2:] == ["n/a", "64.00"]
