from __future__ import annotations

from dataclasses import replace

import pytest

from prefixlab.bench.calibrate.compare import compare, peak_streams
from prefixlab.bench.calibrate.metronome import Stream
from prefixlab.bench.records.record import Failure, Outcome
from tests.bench.calibrate.helpers import drive, record, stream

MS = 1_000_000
HOURS = 3_600_000 * MS
"""The two sides' clocks need not agree: the log's stamps lie hours from the records'."""


def written(*times_ms: float, arrived_ms: float = 0.0, name: str = "a") -> Stream:
    times = [HOURS + round(time * MS) for time in times_ms]
    return stream(name, arrived_ns=HOURS + round(arrived_ms * MS), written_ns=times)


def test_a_client_that_sees_what_was_written_has_no_error() -> None:
    got = compare(
        drive(record("a", sent_s=0.0, arrivals_s=[0.1, 0.11, 0.12])), [written(100, 110, 120)], 10 * MS
    )
    assert got.num_compared == 1 and got.num_not_comparable == 0
    assert got.ttft.max_s == pytest.approx(0, abs=1e-9)
    assert got.itl.max_s == pytest.approx(0, abs=1e-9)
    assert got.itl.count == 2
    assert got.true_ttft_s[0] == pytest.approx(0.1)


def test_what_the_client_saw_late_is_its_error_not_the_servers() -> None:
    late = record("a", sent_s=0.0, arrivals_s=[0.103, 0.110, 0.122])
    got = compare(drive(late), [written(100, 110, 120)], 10 * MS)
    assert got.ttft.bias_s == pytest.approx(0.003)
    assert got.itl.bias_s == pytest.approx((-0.003 + 0.002) / 2)
    assert got.itl.max_s == pytest.approx(0.003)


def test_a_server_that_wavers_is_no_error_of_the_client() -> None:
    wavering = [written(107, 109, 131)]
    got = compare(drive(record("a", sent_s=0.0, arrivals_s=[0.107, 0.109, 0.131])), wavering, 10 * MS)
    assert got.itl.max_s == pytest.approx(0, abs=1e-9)
    assert got.ttft.max_s == pytest.approx(0, abs=1e-9)


def test_tokens_that_came_under_one_stamp_share_the_gap_before_it() -> None:
    merged = record("a", sent_s=0.0, arrivals_s=[0.1, 0.12, 0.13], counts=[1, 2, 1])
    got = compare(drive(merged), [written(100, 112, 120, 130)], 10 * MS)
    assert got.num_compared == 1
    assert got.merged_share == 1 / 4
    assert got.itl.count == 3
    assert got.itl.max_s == pytest.approx(0.002)


def test_tokens_that_came_with_the_first_have_no_gap_to_compare() -> None:
    merged = record("a", sent_s=0.0, arrivals_s=[0.1, 0.12], counts=[2, 1])
    got = compare(drive(merged), [written(95, 100, 120)], 10 * MS)
    assert got.ttft.bias_s == pytest.approx(0.005)
    assert got.itl.count == 1
    assert got.itl.max_s == pytest.approx(0, abs=1e-9)


def test_requests_are_matched_by_name_whatever_their_order() -> None:
    records = drive(
        record("a", sent_s=0.0, arrivals_s=[0.1, 0.11]), record("b", sent_s=0.0, arrivals_s=[0.2, 0.23])
    )
    got = compare(records, [written(200, 230, name="b"), written(100, 110, name="a")], 10 * MS)
    assert got.num_compared == 2
    assert got.itl.max_s == pytest.approx(0, abs=1e-9)


def test_a_failed_an_unknown_and_a_short_request_are_lost_not_left_out() -> None:
    good = record("a", sent_s=0.0, arrivals_s=[0.1, 0.11])
    failed = replace(
        record("b", sent_s=0.0, arrivals_s=[0.1]), outcome=Outcome.FAILED, error="x", failure=Failure.RESET
    )
    unknown = record("c", sent_s=0.0, arrivals_s=[0.1, 0.11])
    short = record("d", sent_s=0.0, arrivals_s=[0.1])
    got = compare(
        drive(good, failed, unknown, short),
        [written(100, 110, name=name) for name in "abd"],
        10 * MS,
    )
    assert (got.num_compared, got.num_not_comparable) == (1, 3)


def test_lateness_is_against_the_servers_own_schedule() -> None:
    late = Stream("a", 0, 100 * MS, [100 * MS, 112 * MS, 129 * MS])
    got = compare(drive(), [late], 10 * MS)
    assert got.late_p99_s == pytest.approx(0.009, rel=0.05)


def test_rate_and_streams_are_what_the_server_delivered() -> None:
    log = [written(0, 500, 1000, name="a"), written(500, 1000, arrived_ms=400, name="b")]
    got = compare(drive(), log, 500 * MS)
    assert got.tokens_per_s == pytest.approx(5.0)
    assert got.streams == 2


def test_streams_that_follow_one_another_are_one_at_once() -> None:
    log = [written(10, 20, arrived_ms=0), written(30, 40, arrived_ms=20), written(60, arrived_ms=50)]
    assert peak_streams(log) == 1


def test_nothing_at_all_compares_to_nothing() -> None:
    got = compare(drive(), [], 10 * MS)
    assert got.itl.count == got.ttft.count == got.streams == 0
    assert got.tokens_per_s == 0
