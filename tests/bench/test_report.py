from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from prefixlab.bench.ledger.check import check_cache
from prefixlab.bench.metrics.summary import summarise
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.report.console import NOT_MEASURED, WIDTH, result_block
from prefixlab.bench.report.jsonl import append_line, measured_keys
from prefixlab.bench.report.sweep import (
    PooledPoint,
    cache_table,
    latency_table,
    pool_points,
    throughput_table,
)
from prefixlab.bench.runs.warm_cache import PointRun
from prefixlab.bench.targets.cold_start import Coldness, ColdStart
from prefixlab.bench.workloads.warm_cache import shape_point
from prefixlab.core.errors import ConfigError
from tests.bench.helpers import ok_record


def a_run(
    pct: int, *, repeat: int = 0, ttft_s: float = 1.0, cached: int | None = None, failed: bool = False
) -> PointRun:
    shape = shape_point(pct, 200)
    expected = shape.expected_cached_tokens(16)
    records: list[Record] = [
        ok_record(
            f"pct{pct}-{repeat}-{i}",
            arrivals_s=[ttft_s, ttft_s + 0.5],
            planned_prompt_tokens=200,
            num_expected_cached_tokens=expected,
            num_cached_tokens=expected if cached is None else cached,
        )
        for i in range(4)
    ]
    if failed:
        records.append(
            Record(f"pct{pct}-{repeat}-f", Outcome.FAILED, 0.0, sent_s=0.0, last_s=0.1, error="HTTP 503")
        )
    return PointRun(
        shape=shape,
        repeat=repeat,
        cold_start=ColdStart(Coldness.PROVEN, "a probe missed"),
        salt=0,
        warm_up_cached_tokens=0,
        records=tuple(records),
        metrics=summarise(records, len(records)),
        check=check_cache(records),
        notes=("a note",),
    )


def points() -> list[PooledPoint]:
    runs = [a_run(pct, repeat=r, ttft_s=1.0 - pct / 100 + 0.1 * r) for r in range(3) for pct in (90, 0, 50)]
    return pool_points(runs)


def shown(table: object) -> str:
    console = Console(width=140, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_block_has_the_layout_that_readers_of_bench_serving_know() -> None:
    run = a_run(50)
    lines = result_block([("Backend:", "sglang"), ("Rate:", None)], run.metrics, run.check).splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[-1] == "=" * WIDTH
    assert "---------------Time to First Token----------------" in lines
    assert "Successful requests:                     4" in lines
    assert "Mean TTFT (ms):                          1000.00" in lines
    assert "P99 E2E Latency (ms):                    1500.00" in lines
    assert "Measured cached tokens:                  384" in lines
    assert f"Rate:                                    {NOT_MEASURED}" in lines
    assert all(len(line) <= WIDTH + 4 for line in lines)


def test_notes_stand_below_the_block() -> None:
    run = a_run(50)
    assert result_block([], run.metrics, run.check, notes=["late"]).endswith("=\nnote: late")


def test_repeats_are_pooled_by_percent_and_their_spread_is_kept() -> None:
    pooled = points()
    assert [point.shape.pct for point in pooled] == [0, 50, 90]
    first = pooled[0]
    assert first.metrics.planned == 12
    assert first.metrics.duration_s == pytest.approx(1.5 + 1.6 + 1.7)
    assert first.metrics.ttft_s.median == pytest.approx(1.1)
    assert first.spread(lambda m: m.ttft_s.median) == pytest.approx((1.0, 1.2))
    assert first.notes == ["a note"]


def test_the_tables_show_intended_expected_measured_and_the_spread() -> None:
    cache, latency = shown(cache_table(points())), shown(latency_table(points()))
    row = next(line for line in cache.splitlines() if line.strip().startswith("90"))
    assert row.split() == ["90", "180", "176", "2,112", "2,112", "88.00", "consistent", "proven"]
    assert "1,100 [1,000-1,200]" in latency
    assert "[smallest-largest]" in latency


def test_what_was_not_reported_is_not_shown_as_zero() -> None:
    run = a_run(50)
    silent = tuple(replace(record, num_cached_tokens=None) for record in run.records)
    table = shown(cache_table(pool_points([replace(run, records=silent, check=check_cache(silent))])))
    assert "n/a" in table
    assert "not reported" in table


def test_failures_have_a_column() -> None:
    assert shown(throughput_table(pool_points([a_run(0, failed=True)]))).rstrip().endswith("1")


def test_lines_are_valid_json_even_where_nothing_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    nothing = [Record("a", Outcome.UNSENT, intended_s=0.0)]
    append_line(path, measured_keys(summarise(nothing, 1), check_cache(nothing)))
    append_line(path, {"request_rate": float("inf")})
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert rows[0]["mean_ttft_ms"] is None
    assert rows[0]["verdict"] == "nothing finished"
    assert rows[1]["request_rate"] is None


def test_an_output_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--output-file"):
        append_line(tmp_path, {})
