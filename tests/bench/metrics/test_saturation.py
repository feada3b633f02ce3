from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prefixlab.bench.metrics.saturation import Saturation, judge, saturation
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
SERVICE_S = 0.1


def queue(
    load: float, num_requests: int, *, cap: int | None = None, seed: int = 0
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """M/D/1: Poisson arrivals at `load` times what one server carries; a cap holds requests back on the
    client's side. → intended, sent, ended."""
    rng = np.random.default_rng(seed)
    intended = np.cumsum(rng.exponential(SERVICE_S / load, num_requests))
    sent, ended = intended.copy(), np.empty(num_requests)
    free_at = 0.0
    for i in range(num_requests):
        if cap is not None and i >= cap:
            sent[i] = max(sent[i], ended[i - cap])
        free_at = ended[i] = max(sent[i], free_at) + SERVICE_S
    return intended, sent, ended


def verdict(load: float, num_requests: int, cap: int | None = None, seed: int = 0) -> Saturation:
    intended, _, ended = queue(load, num_requests, cap=cap, seed=seed)
    found = judge(intended, ended)
    assert found is not None
    return found


@pytest.mark.parametrize("cap", [None, 8])
@pytest.mark.parametrize("num_requests", [100, 1000])
@pytest.mark.parametrize(("load", "expected"), [(0.5, False), (0.9, False), (2.0, True)])
def test_a_queue_at_half_and_nine_tenths_keeps_up_and_at_twice_its_capacity_does_not(
    load: float, expected: bool, num_requests: int, cap: int | None
) -> None:
    verdicts = [verdict(load, num_requests, cap, seed).saturated for seed in range(20)]
    assert np.mean(verdicts) > 0.9 if expected else not any(verdicts)


def test_what_arrived_and_what_ended_are_told() -> None:
    found = verdict(2.0, 2000)
    assert found.offered_rate == pytest.approx(20, rel=0.1)
    assert found.completed_rate == pytest.approx(10, rel=0.05)
    assert found.late_e2e_s > found.early_e2e_s + 10
    assert str(found).startswith("saturated: ")


def test_long_answers_alone_are_not_saturation() -> None:
    intended = np.arange(60.0)
    found = judge(intended, intended + 45.0)
    assert found is not None
    assert not found.saturated


def test_at_twice_the_capacity_latency_from_intent_grows_and_from_send_does_not() -> None:
    intended, sent, ended = queue(2.0, 400, cap=4)
    from_intent, from_send = ended - intended, ended - sent
    assert from_intent[-40:].mean() > 5 * from_intent[:40].mean()
    assert from_send[-40:].mean() < 2 * from_send[:40].mean()


def test_a_handful_of_requests_tells_nothing_and_one_instant_gives_itself_as_the_reason() -> None:
    assert judge(np.arange(5.0), np.arange(5.0) + 1) is None
    found = judge(np.zeros(100), np.ones(100))
    assert found is not None and not found.saturated
    assert str(found) == "cannot tell: all come at once"


@pytest.mark.parametrize("answer_s", [2.0, 4.5, 45.0])
def test_a_run_too_short_for_its_answers_is_neither_saturated_nor_kept_up(answer_s: float) -> None:
    intended = np.linspace(0.0, 4.4, 60)
    found = judge(intended, intended + np.linspace(answer_s, 1.5 * answer_s, 60))
    assert found is not None and not found.saturated
    assert str(found).startswith("cannot tell: the run is shorter than three answers (")


def test_where_no_answer_ends_after_the_first_third_nothing_is_told() -> None:
    intended = np.linspace(0.0, 30.0, 300)
    found = judge(intended, np.where(intended < 9.0, intended + 0.1, np.nan))
    assert found is not None and not found.saturated
    assert str(found) == "cannot tell: no answer ended in the last two thirds of the arrivals"


def test_a_load_of_ten_times_the_capacity_is_told_however_long_its_answers_became() -> None:
    assert verdict(10.0, 300).saturated


def test_requests_that_were_given_up_have_not_ended() -> None:
    rows = [ok_record(f"r{i}", intended_s=i / 10, arrivals_s=[i / 10 + 0.05]) for i in range(100)]
    table = RecordTable.of(rows)
    kept = saturation(table)
    assert kept is not None
    assert not kept.saturated
    stuck = [
        row
        if i < 40
        else replace(row, outcome=Outcome.CANCELLED, last_s=12.0, arrivals_s=(), arrival_counts=())
        for i, row in enumerate(rows)
    ]
    found = saturation(RecordTable.of(stuck))
    assert found is not None
    assert found.saturated


def test_requests_whose_time_had_not_come_are_not_counted() -> None:
    rows: list[Record] = [
        ok_record(f"r{i}", intended_s=i / 10, arrivals_s=[i / 10 + 0.05]) for i in range(100)
    ]
    rows += [Record(f"u{i}", Outcome.UNSENT, intended_s=10 + i / 10) for i in range(1000)]
    found = saturation(RecordTable.of(rows))
    assert found is not None
    assert not found.saturated


def test_where_many_failed_otherwise_no_is_not_said() -> None:
    rows = [ok_record(f"r{i}", intended_s=i / 40, arrivals_s=[i / 40 + 0.05]) for i in range(200)]
    rows = [refused(i, Failure.CONNECT) if i > 150 else row for i, row in enumerate(rows)]
    assert str(saturation(RecordTable.of(rows))) == "cannot tell: 49 of 200 requests failed"


def test_a_stretch_that_tells_something_counts_for_more_than_a_longer_one_that_tells_nothing() -> None:
    rows = [ok_record(f"r{i}", intended_s=i / 40, arrivals_s=[i / 40 + 0.05]) for i in range(200)]
    at_once = [ok_record(f"s{i}", intended_s=0.0, arrivals_s=[9.0 + i / 40]) for i in range(200)]
    found = saturation(RecordTable.pool([RecordTable.of(rows), RecordTable.of(at_once)]))
    assert found is not None and not found.untold and not found.saturated


def refused(number: int, failure: Failure, http_status: int | None = None) -> Record:
    at_s = number / 40
    how = {"failure": failure, "http_status": http_status, "error": "no"}
    return Record(f"r{number}", Outcome.FAILED, at_s, sent_s=at_s, last_s=at_s + 0.001, **how)  # type: ignore[arg-type]


def test_a_server_that_turns_most_requests_away_is_saturated_although_nothing_waits() -> None:
    rows = [ok_record(f"r{i}", intended_s=i / 40, arrivals_s=[i / 40 + 0.05]) for i in range(200)]
    rows = [row if i % 4 == 0 else refused(i, Failure.HTTP_STATUS, 503) for i, row in enumerate(rows)]
    found = saturation(RecordTable.of(rows))
    assert found is not None
    assert found.saturated and not found.behind
    assert found.completed_rate == pytest.approx(10, rel=0.1)
    assert str(found).startswith("refusing: ")
    assert "of 200 arrivals 75% answered 503" in str(found)


@pytest.mark.parametrize(
    ("failure", "status", "expected"),
    [
        (Failure.HTTP_STATUS, 429, True),
        (Failure.STALLED, None, True),
        (Failure.CONNECT_TIMEOUT, None, True),
        (Failure.HTTP_STATUS, 400, False),
        (Failure.GARBAGE, None, False),
    ],
)
def test_only_what_a_busy_server_does_counts_as_refusing(
    failure: Failure, status: int | None, expected: bool
) -> None:
    rows = [ok_record(f"r{i}", intended_s=i / 40, arrivals_s=[i / 40 + 0.05]) for i in range(200)]
    rows = [row if i % 10 else refused(i, failure, status) for i, row in enumerate(rows)]
    found = saturation(RecordTable.of(rows))
    assert found is not None
    assert found.saturated is expected
