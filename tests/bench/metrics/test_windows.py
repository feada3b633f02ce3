from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from prefixlab.bench.metrics import windows
from prefixlab.bench.metrics.summary import summarise
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record
from tests.bench.records.strategies import record_lists


def closed_loop(concurrency: int, num_requests: int, *, segment: int = 0, seed: int = 0) -> list[Record]:
    """Each slot sends its next request when its last one ends; 10 tokens each, 0.1 s apart or so."""
    rng = np.random.default_rng(seed)
    free_at = [0.0] * concurrency
    records = []
    for number in range(num_requests):
        slot = int(np.argmin(free_at))
        start_s = free_at[slot]
        arrivals = (start_s + np.cumsum(rng.uniform(0.05, 0.15, 10))).tolist()
        records.append(
            ok_record(f"{segment}-{number}", intended_s=start_s, arrivals_s=arrivals, segment=segment)
        )
        free_at[slot] = arrivals[-1]
    return records


def test_in_closed_loop_the_steady_window_leaves_out_the_drain() -> None:
    records = closed_loop(10, 200)
    steady = summarise(records, 200).steady
    assert steady is not None
    (window,) = steady.windows
    end_s = max(record.last_s or 0.0 for record in records)
    assert window.start_s == 0.0
    assert end_s - 1.5 < window.end_s < end_s
    # 10 slots, a token every 0.1 s each
    assert steady.output_throughput == pytest.approx(100, rel=0.03)
    assert summarise(records, 200).output_throughput == pytest.approx(100, rel=0.05)


def test_a_ramp_is_not_steady() -> None:
    start = [ok_record(f"s{i}", intended_s=float(i), arrivals_s=[i + 5.0], last_s=20.0) for i in range(10)]
    full = [
        replace(
            record, request_id=f"f{i}", intended_s=record.intended_s + 20, sent_s=(record.sent_s or 0) + 20
        )
        for i, record in enumerate(closed_loop(10, 100))
    ]
    shifted = [
        replace(
            r, arrivals_s=tuple(t + 20 for t in r.arrivals_s), first_byte_s=None, last_s=(r.last_s or 0) + 20
        )
        for r in full
    ]
    steady = summarise([*start, *shifted], 110).steady
    assert steady is not None
    assert steady.windows[0].start_s == pytest.approx(8.0)


def test_where_everything_is_sent_at_once_nothing_is_steady() -> None:
    assert summarise(closed_loop(10, 10), 10).steady is None
    assert summarise([], 0).steady is None


def test_in_open_loop_the_window_is_the_last_two_thirds_of_the_arrivals() -> None:
    records = [ok_record(f"r{i}", intended_s=2.0 + i, arrivals_s=[3.0 + i, 5.0 + i]) for i in range(13)]
    steady = summarise(records, 13, open_loop=True).steady
    assert steady is not None
    assert (steady.windows[0].start_s, steady.windows[0].end_s) == (6.0, 14.0)
    # One request of two tokens a second: those sent before the window give it what those at its end take.
    assert steady.output_throughput == pytest.approx(2.0)
    assert steady.request_throughput == pytest.approx(1.0)
    assert summarise(records[:1], 1, open_loop=True).steady is None


@pytest.mark.parametrize(("slots", "count"), [(1, 10), (10, 30), (10, 95), (50, 150)])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.3])
def test_steady_rates_are_the_servers_however_few_waves_there_are(
    slots: int, count: int, spread: float
) -> None:
    """A server that serves so many at once, each in about a second, ten tokens and half of it prefill."""
    draw = np.random.default_rng(1)
    free = [0.0] * slots
    records = []
    for number in range(count):
        begun_s = free.pop(free.index(min(free)))
        long_s = 1.0 + spread * float(draw.uniform(-1, 1))
        arrivals = [begun_s + long_s * (0.5 + 0.5 * token / 9) for token in range(10)]
        records.append(
            ok_record(f"{number}", intended_s=begun_s, arrivals_s=arrivals, planned_prompt_tokens=50)
        )
        free.append(arrivals[-1])
    steady = summarise(records, count).steady
    assert steady is not None
    assert steady.request_throughput == pytest.approx(slots, rel=0.06)
    assert steady.output_throughput == pytest.approx(10 * slots, rel=0.06)
    assert steady.input_throughput == pytest.approx(50 * slots, rel=0.06)


def test_segments_of_a_resumed_run_are_added_and_never_compared() -> None:
    parts = [closed_loop(5, 60, segment=0), closed_loop(5, 60, segment=1, seed=1)]
    alone = [summarise(part, 60) for part in parts]
    both = summarise([*parts[0], *parts[1]], 120)
    assert both.num_segments == 2
    assert both.duration_s == pytest.approx(sum(metrics.duration_s for metrics in alone))
    assert both.peak_concurrency == 5
    assert both.steady is not None
    assert both.steady.duration_s == pytest.approx(sum(m.steady.duration_s for m in alone if m.steady))
    assert both.ttft_s.max == max(metrics.ttft_s.max or 0.0 for metrics in alone)


def test_the_peak_is_of_requests_sent_and_not_yet_ended() -> None:
    records = [
        ok_record("a", arrivals_s=[4.0]),
        ok_record("b", intended_s=1.0, arrivals_s=[2.0]),
        ok_record("c", intended_s=2.0, arrivals_s=[3.0]),  # takes b's place
        Record("d", Outcome.UNSENT, intended_s=1.0),
    ]
    metrics = summarise(records, 4)
    assert metrics.peak_concurrency == 2
    assert metrics.peak_queued == 1


def test_requests_waiting_for_a_slot_are_queued() -> None:
    records = [ok_record(f"r{i}", intended_s=0.0, sent_s=float(i), arrivals_s=[i + 1.0]) for i in range(5)]
    assert summarise(records, 5).peak_queued == 4


def test_the_busiest_second_is_counted_from_the_first_request() -> None:
    records = [ok_record("a", intended_s=0.5, arrivals_s=[1.0, 1.4, 1.6, 2.5], counts=[1, 4, 2, 1])]
    assert summarise(records, 1).peak_output_throughput == 5.0
    short = [ok_record("a", intended_s=0.5, arrivals_s=[1.0, 1.4, 1.6], counts=[1, 4, 2])]
    assert summarise(short, 1).peak_output_throughput is None, "no second is over that could be a peak"
    assert summarise([Record("u", Outcome.UNSENT, 0.0)], 1).peak_output_throughput is None


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = RecordTable.of(closed_loop(3, 40))
    window = windows.Window(0, 0.5, 7.5)
    whole = windows.tokens_by_slice(table, table.ok, window, 20)
    monkeypatch.setattr(windows, "_BLOCK", 7)
    assert windows.tokens_by_slice(table, table.ok, window, 20).tolist() == whole.tolist()
    inside = (table.arrivals_s >= 0.5) & (table.arrivals_s < 7.5)
    assert whole.sum() == inside.sum()


@given(record_lists)
@settings(deadline=None, max_examples=50)
def test_whatever_the_records_counts_and_peaks_add_up(records: list[Record]) -> None:
    table = RecordTable.of([replace(r, request_id=str(i)) for i, r in enumerate(records)])
    for open_loop in (False, True):
        metrics = summarise(table, len(records), open_loop=open_loop)
        assert metrics.ok + metrics.failed + metrics.cancelled + metrics.unsent == len(records)
        assert sum(metrics.failures.values()) == metrics.failed
        assert 0 <= metrics.peak_concurrency <= len(records)
        assert 0 <= metrics.peak_queued <= len(records)
