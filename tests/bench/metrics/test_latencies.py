"""The columns against their slow twins: the formulas of docs/measuring.md, record by record."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings

from prefixlab.bench.metrics import latencies
from prefixlab.bench.metrics.summary import summarise
from prefixlab.bench.records.record import Record
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record
from tests.bench.records.strategies import record_lists


def difference(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else later - earlier


def first(record: Record) -> float | None:
    return record.arrivals_s[0] if record.arrivals_s else None


def last(record: Record) -> float | None:
    return record.arrivals_s[-1] if record.arrivals_s else None


def tpot(record: Record) -> float | None:
    if record.num_output_tokens < 2 or len(record.arrivals_s) < 2:
        return None
    return (record.arrivals_s[-1] - record.arrivals_s[0]) / (record.num_output_tokens - 1)


def itl(record: Record) -> list[float]:
    gaps = [later - earlier for earlier, later in pairwise(record.arrivals_s)]
    return [
        gap / count for gap, count in zip(gaps, record.arrival_counts[1:], strict=False) for _ in range(count)
    ]


TWINS: dict[Callable[[RecordTable], latencies.FloatArray], Callable[[Record], float | None]] = {
    latencies.ttft_s: lambda r: difference(first(r), r.sent_s),
    latencies.e2e_s: lambda r: difference(last(r), r.sent_s),
    latencies.ttft_from_intent_s: lambda r: difference(first(r), r.intended_s),
    latencies.e2e_from_intent_s: lambda r: difference(last(r), r.intended_s),
    latencies.content_ttft_s: lambda r: difference(r.first_content_s, r.sent_s),
    latencies.connect_s: lambda r: difference(r.connected_s, r.connect_started_s),
    latencies.send_lag_s: lambda r: difference(r.sent_s, r.intended_s),
    latencies.tpot_s: tpot,
}


@given(record_lists)
@settings(deadline=None, max_examples=60)
def test_every_column_agrees_with_its_slow_twin(records: list[Record]) -> None:
    table = RecordTable.of(records)
    for column, twin in TWINS.items():
        got = [None if np.isnan(value) else value for value in column(table).tolist()]
        assert got == pytest.approx([twin(record) for record in records])


@given(record_lists)
@settings(deadline=None, max_examples=60)
def test_itl_agrees_with_its_slow_twin(records: list[Record]) -> None:
    table = RecordTable.of(records)
    expected = [value for record in records if record.outcome.value == "ok" for value in itl(record)]
    assert latencies.itl_s(table, table.ok).tolist() == pytest.approx(expected)


def test_opening_a_connection_is_told_apart_and_never_inside_ttft() -> None:
    record = ok_record("a", connect_started_s=0.1, connected_s=0.4, sent_s=0.5, arrivals_s=[1.0])
    metrics = summarise([record, ok_record("b", arrivals_s=[0.5])], 2)
    assert metrics.ttft_s.mean == pytest.approx(0.5)
    assert (metrics.connect_s.count, metrics.connect_s.mean) == (1, pytest.approx(0.3))


def test_reasoning_counts_as_output_and_is_told_apart() -> None:
    thinking = ok_record("a", arrivals_s=[1.0, 2.0, 3.0], first_content_s=3.0, num_reasoning_tokens=2)
    metrics = summarise([thinking, ok_record("b")], 2)
    assert metrics.num_output_tokens == 4
    assert metrics.num_reasoning_tokens == 2
    assert metrics.ttft_s.mean == pytest.approx(1.0)
    assert metrics.content_ttft_s.mean == pytest.approx(3.0)
    assert summarise([ok_record("b")], 1).num_reasoning_tokens is None
