from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.bench.metrics.distribution import Distribution
from prefixlab.bench.metrics.latencies import itl_s
from prefixlab.bench.metrics.summary import as_result_keys, summarise
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record


def failed(request_id: str) -> Record:
    return Record(
        request_id,
        Outcome.FAILED,
        intended_s=0.0,
        sent_s=0.0,
        last_s=0.5,
        error="HTTP 503",
        failure=Failure.HTTP_STATUS,
    )


def test_the_formulas_on_two_requests_worked_out_by_hand() -> None:
    records = [
        ok_record("a", intended_s=10.0, sent_s=10.1, arrivals_s=[10.6, 10.8, 11.1], num_prompt_tokens=100),
        ok_record("b", intended_s=10.0, sent_s=10.4, arrivals_s=[10.7], last_s=12.0, num_prompt_tokens=50),
    ]
    metrics = summarise(records, planned=2)
    assert metrics.duration_s == pytest.approx(2.0)
    assert metrics.request_throughput == pytest.approx(1.0)
    assert metrics.input_throughput == pytest.approx(75.0)
    assert metrics.output_throughput == pytest.approx(2.0)
    assert metrics.total_throughput == pytest.approx(77.0)
    assert metrics.ttft_s.mean == pytest.approx((0.5 + 0.3) / 2)
    assert metrics.ttft_from_intent_s.mean == pytest.approx((0.6 + 0.7) / 2)
    assert metrics.tpot_s.mean == pytest.approx(0.25), "one request has a single token, and no TPOT"
    assert metrics.itl_s.mean == pytest.approx(0.25)
    assert metrics.e2e_s.mean == pytest.approx((1.0 + 0.3) / 2)
    assert metrics.concurrency == pytest.approx(1.3 / 2.0)
    assert metrics.send_lag_s.mean == pytest.approx(0.25)


def test_itl_divides_a_gap_among_the_tokens_it_brought() -> None:
    record = ok_record(arrivals_s=[1.0, 1.3, 1.4], counts=[2, 3, 1])
    table = RecordTable.of([record])
    assert itl_s(table, table.ok) == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert summarise([record], 1).tpot_s.mean == pytest.approx(0.4 / 5)


def test_planned_is_ok_and_failed_and_cancelled_and_unsent() -> None:
    records = [
        ok_record("a"),
        failed("b"),
        Record("c", Outcome.CANCELLED, intended_s=0.0),
        Record("d", Outcome.UNSENT, intended_s=0.0),
    ]
    metrics = summarise(records, planned=4)
    assert (metrics.ok, metrics.failed, metrics.cancelled, metrics.unsent) == (1, 1, 1, 1)
    with pytest.raises(AssertionError):
        summarise(records, planned=5)


def test_failed_requests_bring_no_latency_and_no_tokens() -> None:
    alone = summarise([ok_record("a", planned_prompt_tokens=5)], 1)
    joined = summarise([ok_record("a", planned_prompt_tokens=5), failed("b")], 2)
    assert joined.ttft_s == alone.ttft_s
    assert joined.num_input_tokens == alone.num_input_tokens == 5


def test_nothing_measured_is_none_and_never_zero() -> None:
    metrics = summarise([Record("a", Outcome.UNSENT, intended_s=0.0)], 1)
    assert metrics.request_throughput is None
    assert metrics.ttft_s.mean is None
    assert as_result_keys(metrics)["mean_ttft_ms"] is None


def test_pooled_repeats_are_rated_over_the_time_that_was_measured() -> None:
    records = [ok_record("a", arrivals_s=[1.0]), ok_record("b", intended_s=100.0, arrivals_s=[101.0])]
    assert summarise(records, 2, duration_s=2.0).request_throughput == pytest.approx(1.0)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=200))
def test_percentiles_are_numpys_linear_ones_as_vllm_and_sglang_take_them(values: list[float]) -> None:
    summary = Distribution.of(values)
    assert summary.median == pytest.approx(float(np.median(values)))
    assert summary.p99 == pytest.approx(float(np.percentile(values, 99)))
    assert summary.std == pytest.approx(float(np.std(values)))


def test_result_keys_are_those_vllm_and_sglang_readers_know() -> None:
    keys = as_result_keys(summarise([ok_record(arrivals_s=[0.25, 0.5])], 1))
    assert keys["mean_ttft_ms"] == pytest.approx(250.0)
    assert keys["median_itl_ms"] == keys["p99_itl_ms"] == pytest.approx(250.0)
    for vllm in ("duration", "completed", "total_input_tokens", "total_token_throughput", "p99_e2el_ms"):
        assert vllm in keys
    for sglang in (
        "benchmark_duration",
        "total_input",
        "total_throughput",
        "p90_e2e_latency_ms",
        "concurrency",
    ):
        assert sglang in keys
