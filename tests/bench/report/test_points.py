from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics.point import PointResult, evaluate
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.points.block import point_block
from prefixlab.bench.report.points.keys import result_keys
from prefixlab.bench.report.points.side_by_side import notes_of_points, passes, points_table, write_csv
from prefixlab.bench.report.points.styles import STYLES, show_point
from prefixlab.core.errors import ConfigError
from tests.bench.helpers import ok_record
from tests.bench.points import NUM_TOKENS, a_point, settings_of

# `vllm bench serve --save-result` of 0.32 writes these, given --percentile-metrics ttft,tpot,itl,e2el.
VLLM_KEYS = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts"),
    *("request_rate", "burstiness", "max_concurrency", "rtfx"),
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
    *("max_output_tokens_per_s", "max_concurrent_requests"),
    *(
        f"{statistic}_{metric}_ms"
        for statistic in ("mean", "median", "std", "p99")
        for metric in ("ttft", "tpot", "itl", "e2el")
    ),
}
VLLM_DETAILED_KEYS = {
    "input_lens",
    "output_lens",
    "start_times",
    "ttfts",
    "itls",
    "generated_texts",
    "errors",
}
SGLANG_KEYS = {
    *("backend", "dataset_name", "request_rate", "max_concurrency", "duration", "completed"),
    *("total_input_tokens", "total_output_tokens", "total_output_tokens_retokenized"),
    *("request_throughput", "input_throughput", "output_throughput", "total_throughput", "concurrency"),
    *(f"{statistic}_e2e_latency_ms" for statistic in ("mean", "median", "std", "p90", "p99")),
    *(f"{statistic}_itl_ms" for statistic in ("mean", "median", "std", "p95", "p99", "max")),
}


def labels(block: str) -> list[str]:
    return [line.split(":")[0] + ":" for line in block.splitlines() if ":" in line]


def shown(result: PointResult, style: str, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show_point(console, result, style)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def stretched(table: RecordTable, factor: float) -> RecordTable:
    """All its times so many times as long."""
    columns = ("intended_s", "sent_s", "first_byte_s", "arrivals_s", "last_s")
    return replace(table, **{name: getattr(table, name) * factor for name in columns})


class TestKeys:
    def test_vllms_and_sglangs_keys_are_all_there(self) -> None:
        keys = result_keys(a_point(), detailed=True)
        assert keys.keys() >= VLLM_KEYS | VLLM_DETAILED_KEYS | SGLANG_KEYS
        assert not result_keys(a_point()).keys() & VLLM_DETAILED_KEYS

    def test_an_infinite_rate_is_written_as_vllm_writes_it(self) -> None:
        assert result_keys(a_point())["request_rate"] == "inf"
        assert result_keys(a_point(open_loop=True))["request_rate"] == 50.0

    def test_it_is_valid_json_also_where_nothing_was_measured(self) -> None:
        nothing = RecordTable.of([Record("u", Outcome.UNSENT, 0.0)])
        for table in (nothing, RecordTable.of([])):
            text = shown(evaluate(settings_of(), [table], ClientHealth()), "json")
            keys = json.loads(text, parse_constant=pytest.fail)
            assert keys["completed"] == 0
            assert keys["mean_ttft_ms"] is None
            assert keys["request_throughput"] is None

    def test_percentiles_asked_for_have_vllms_names(self) -> None:
        keys = result_keys(a_point(percentiles=(25.0, 99.9)))
        assert keys["p25_ttft_ms"] < keys["median_ttft_ms"] < keys["p99.9_ttft_ms"]

    def test_intervals_stand_under_the_key_of_their_figure(self) -> None:
        keys = result_keys(a_point())
        low, high, method = keys["intervals_95"]["mean_ttft_ms"]
        assert low < keys["mean_ttft_ms"] < high
        assert method == "batch means, 30"
        assert keys["intervals_95"].keys() <= keys.keys()

    def test_details_are_one_entry_per_request_in_seconds_and_texts_are_not_kept(self) -> None:
        keys = result_keys(a_point(failed=1), detailed=True)
        assert {len(keys[name]) for name in VLLM_DETAILED_KEYS if keys[name] is not None} == {201}
        assert keys["generated_texts"] is None
        assert keys["ttfts"][-1] is None
        assert keys["errors"][-1] == "HTTP 503: full"
        assert keys["itls"][0] == pytest.approx([0.02] * (NUM_TOKENS - 1), abs=0.2)
        assert keys["start_times"][0] == 0.0

    def test_a_ramp_has_vllms_keys_and_without_one_there_are_none(self) -> None:
        load = LoadConfig(ramp_up_strategy="linear", ramp_up_start_rps=1, ramp_up_end_rps=9)
        ramped = replace(a_point(), settings=replace(settings_of(), ramp=load.ramp()))
        keys = result_keys(ramped)
        names = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")
        assert [keys[name] for name in names] == ["linear", 1, 9]
        assert not LoadConfig().ramp() and not {*names} & set(result_keys(a_point()))

    def test_the_users_metadata_is_carried(self) -> None:
        result = a_point()
        noted = replace(result, settings=replace(result.settings, metadata={"gpu": "H200"}))
        assert result_keys(noted)["gpu"] == "H200"

    def test_metadata_never_takes_the_place_of_a_figure(self) -> None:
        named = replace(a_point(), settings=replace(settings_of(), metadata={"num_prompts": "9", "run": "x"}))
        keys = result_keys(named)
        assert (keys["num_prompts"], keys["metadata_num_prompts"], keys["run"]) == (200, "9", "x")

    def test_a_queue_is_told_only_where_a_cap_can_make_one(self) -> None:
        assert result_keys(a_point())["max_queued_requests"] is None
        assert result_keys(a_point(open_loop=True))["max_queued_requests"] is not None

    def test_the_clients_health_and_what_became_of_every_request_are_there(self) -> None:
        health = ClientHealth(stamps="kernel", num_reads=100, num_merged_reads=3, num_reused=7, num_workers=2)
        health.read_lag_s.record(0.002)
        keys = result_keys(a_point(failed=2, health=health))
        assert keys["planned"] == 202
        assert (keys["completed"], keys["failed"], keys["cancelled"], keys["unsent"]) == (200, 2, 0, 0)
        assert keys["failures"] == {"http_status": 2}
        assert keys["client"]["read_lag_p99_ms"] == pytest.approx(2.0, rel=0.01)
        assert (keys["client"]["merged_reads"], keys["client"]["connections_reused"]) == (3, 7)


class TestBlock:
    def test_labels_that_vllms_users_grep_for_come_first_in_vllms_order(self) -> None:
        block = point_block(a_point(open_loop=True, goodput="ttft:500"))
        assert block.splitlines()[0] == "============ Serving Benchmark Result ============"
        assert labels(block)[:13] == [
            "Successful requests:",
            "Failed requests:",
            "Maximum request concurrency:",
            "Request rate configured (RPS):",
            "Benchmark duration (s):",
            "Total input tokens:",
            "Total generated tokens:",
            "Request throughput (req/s):",
            "Request goodput (req/s):",
            "Output token throughput (tok/s):",
            "Peak output token throughput (tok/s):",
            "Peak concurrent requests:",
            "Total token throughput (tok/s):",
        ]

    def test_sections_are_vllms_with_the_percentiles_asked_for(self) -> None:
        lines = point_block(a_point(percentiles=(25.0, 99.9))).splitlines()
        at = lines.index("---------------Time to First Token----------------")
        assert [line.split(":")[0] for line in lines[at + 1 : at + 6]] == [
            "Mean TTFT (ms)",
            "Mean TTFT 95% interval (ms)",
            "Median TTFT (ms)",
            "P25 TTFT (ms)",
            "P99.9 TTFT (ms)",
        ]
        assert "-----Time per Output Token (excl. 1st token)------" in lines
        assert "---------------Inter-token Latency----------------" in lines

    def test_end_to_end_latency_is_shown_on_request(self) -> None:
        result = a_point()
        assert "End-to-end Latency" not in point_block(result)
        asked = replace(result, settings=replace(result.settings, selected=("e2el",)))
        assert "----------------End-to-end Latency----------------" in point_block(asked)
        assert "Mean E2EL (ms):" in point_block(asked)
        assert "Mean TTFT" not in point_block(asked)

    def test_in_open_loop_latency_from_the_schedule_comes_first_and_saturation_is_said(self) -> None:
        block = point_block(a_point(open_loop=True))
        assert block.index("Time to First Token from Schedule") < block.index("-Time to First Token-")
        assert "Pacing:                                  open loop, Poisson" in block
        assert "Saturated:                               yes" in block
        assert "note: saturated: " in block

    def test_in_closed_loop_there_is_no_schedule(self) -> None:
        block = point_block(a_point())
        assert "from Schedule" not in block
        assert "Saturated" not in block
        assert "Pacing:                                  closed loop" in block

    def test_failures_are_counted_by_kind(self) -> None:
        assert "Failed, http status:                     3" in point_block(a_point(failed=3))

    def test_what_was_not_measured_is_not_shown_as_zero(self) -> None:
        nothing = evaluate(
            settings_of(), [RecordTable.of([Record("u", Outcome.UNSENT, 0.0)])], ClientHealth()
        )
        block = point_block(nothing)
        assert "Mean TTFT (ms):                          n/a" in block
        assert "Request throughput (req/s):              n/a" in block
        assert "Unsent requests:                         1" in block

    def test_reasoning_has_a_section_where_there_is_some(self) -> None:
        thinking = ok_record("a", arrivals_s=[1.0, 2.0], first_content_s=2.0, num_reasoning_tokens=1)
        block = point_block(evaluate(settings_of(), [RecordTable.of([thinking])], ClientHealth()))
        assert "Time to First Content" in block
        assert "Total reasoning tokens:                  1" in block
        assert "Content" not in point_block(a_point())

    def test_the_client_tells_how_far_it_is_to_be_believed(self) -> None:
        health = ClientHealth(
            stamps="kernel", num_reads=1000, num_merged_reads=3, num_connects=4, num_reused=6
        )
        block = point_block(a_point(health=health))
        for row in ("Arrival stamps:                          kernel", "3 of 1000", "4 / 6", "Clock steps:"):
            assert row in block


class TestStyles:
    def test_every_style_shows_the_same_figure(self) -> None:
        result = a_point(goodput="ttft:500")
        mean_ms = f"{(result.metrics.ttft_s.mean or 0) * 1e3:.2f}"
        assert set(STYLES) == {"vllm", "table", "json"}
        assert mean_ms in shown(result, "vllm")
        assert mean_ms in shown(result, "table")
        assert f"{json.loads(shown(result, 'json'))['mean_ttft_ms']:.2f}" == mean_ms

    def test_the_table_accounts_for_every_request(self) -> None:
        text = shown(a_point(failed=2), "table")
        assert "202 planned = 200 ok + 2 failed (2 http_status) + 0 cancelled + 0 unsent" in text

    def test_the_table_has_an_interval_beside_each_mean_and_the_schedule_first_in_open_loop(self) -> None:
        text = shown(a_point(open_loop=True), "table")
        assert "± 95%" in text
        header = next(line for line in text.splitlines() if line.strip().startswith("ms "))
        assert header.split() == ["ms", "schedule", "schedule", "TTFT", "TPOT", "ITL"]
        assert "saturated: yes" in text

    @pytest.mark.parametrize("width", [80, 100])
    def test_the_table_fits_and_cuts_no_figure_however_large(self, width: int) -> None:
        result = a_point(
            open_loop=True, percentiles=(25.0, 75.0, 99.0, 99.9, 99.99), goodput="ttft:500 tpot:50"
        )
        hour = evaluate(
            replace(result.settings, selected=("ttft", "tpot", "itl", "e2el")),
            [stretched(result.table, 600.0)],
            result.health,
        )
        text = shown(hour, "table", width)
        assert f"{(hour.metrics.e2e_from_intent_s.max or 0) * 1e3:,.0f}" in text
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width

    def test_the_table_says_the_hit_rate_and_the_verdict(self) -> None:
        hits = [
            ok_record(f"r{n}", num_prompt_tokens=64, num_cached_tokens=16, num_expected_cached_tokens=16)
            for n in range(3)
        ]
        text = shown(evaluate(settings_of(), [RecordTable.of(hits)], ClientHealth()), "table")
        assert "cache hit rate: 25.00%, verdict: consistent" in text


def test_overload_comes_first_among_the_notes_of_every_style() -> None:
    result = a_point(open_loop=True)
    note = "saturated: 28.1 requests/s came and "
    assert shown(result, "vllm").split("note: ")[1].startswith(note)
    assert " ".join(shown(result, "table").split("note: ")[1].split()).startswith(note)
    assert json.loads(shown(result, "json"))["notes"][0].startswith(note)


def test_a_missing_interval_is_explained_where_a_trend_is_the_reason() -> None:
    block = point_block(a_point(open_loop=True))
    assert "Mean TTFT 95% interval (ms):             n/a (trend)" in block
    assert "note: n/a (trend): latencies drift" in block
    assert "trend" not in point_block(a_point())


def test_a_queue_is_shown_only_where_a_cap_can_make_one() -> None:
    assert "Peak queued requests:                    106" in point_block(a_point(open_loop=True))
    assert "queued" not in point_block(a_point()) + shown(a_point(), "table")


def test_hits_that_cannot_be_checked_say_what_would_help() -> None:
    hits = [ok_record(f"r{n}", num_cached_tokens=16, num_expected_cached_tokens=None) for n in range(3)]
    result = evaluate(settings_of(), [RecordTable.of(hits)], ClientHealth())
    for style in ("vllm", "table"):
        assert "give --page-size to check the hits" in " ".join(shown(result, style).split())


class TestSideBySide:
    def test_a_row_per_point_with_what_was_swept_first_and_the_mark_last(self) -> None:
        results = [a_point(concurrency=c, goodput="ttft:120") for c in (1, 2, 8)]
        console = Console(file=io.StringIO(), width=120, highlight=False)
        console.print(points_table(results))
        assert isinstance(console.file, io.StringIO)
        rows = [line.split() for line in console.file.getvalue().splitlines()]
        rows = [row for row in rows if row and row[0] in {"1", "2", "8"}]
        assert [row[0] for row in rows] == ["1", "2", "8"]
        assert all(row[-1] == "fail" for row in rows)
        assert not any("…" in cell for row in rows for cell in row), "the table fits a terminal"

    def test_a_point_passes_when_nearly_every_request_meets_the_objectives(self) -> None:
        assert passes(a_point(goodput="ttft:10000")) is True
        assert passes(a_point(goodput="ttft:10000", failed=1)) is True
        assert passes(a_point(goodput="ttft:10000", failed=5)) is False
        assert passes(a_point()) is None

    def test_open_loop_points_say_whether_they_kept_up(self) -> None:
        console = Console(file=io.StringIO(), width=140, highlight=False)
        console.print(points_table([a_point(open_loop=True)]))
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert "in open loop from the schedule" in text
        assert "yes" in text

    def test_where_hits_are_reported_they_stand_beside_what_was_expected_and_the_verdict(self) -> None:
        def with_hits(concurrency: int, cached: int, expected: int | None) -> PointResult:
            point = a_point(concurrency=concurrency, open_loop=True, goodput="ttft:120")
            table = RecordTable.of(
                replace(
                    record,
                    num_prompt_tokens=64,
                    num_cached_tokens=cached,
                    num_expected_cached_tokens=expected if number else 16,
                )
                for number, record in enumerate(point.table.to_records())
            )
            return evaluate(point.settings, [table], point.health)

        def lines(results: list[PointResult], width: int) -> list[str]:
            console = Console(file=io.StringIO(), width=width, highlight=False)
            console.print(points_table(results))
            assert isinstance(console.file, io.StringIO)
            return console.file.getvalue().splitlines()

        results = [with_hits(1, 16, 16), with_hits(2, 0, 16), with_hits(8, 16, None)]
        wide = [" ".join(line.split()) for line in lines(results, 160)]
        assert any(" 25.0 25.0 consistent " in line for line in wide)
        assert any(" 0.0 25.0 less " in line for line in wide)
        assert any(" 25.0 25.0 consistent (1 of 200) " in line for line in wide)
        assert not any("…" in line for width in (120, 160) for line in lines(results, width))
        assert not any("verdict" in line for line in lines([a_point()], 120))

    def test_notes_say_which_points_they_are_about(self) -> None:
        fine, failing = a_point(concurrency=1), a_point(concurrency=2)
        results = [replace(fine, notes=("both",)), replace(failing, notes=("one", "both"), interrupted=True)]
        assert notes_of_points(results) == ["both", "max-concurrency 2: one"]
        console = Console(file=io.StringIO(), width=120, highlight=False)
        console.print(points_table(results))
        assert isinstance(console.file, io.StringIO)
        assert console.file.getvalue().count("early") == 1

    def test_the_csv_has_a_row_per_point_and_only_single_values(self, tmp_path: Path) -> None:
        write_csv(tmp_path / "sweep.csv", [a_point(concurrency=c) for c in (1, 2)])
        with (tmp_path / "sweep.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["--max-concurrency"] for row in rows] == ["1", "2"]
        assert float(rows[0]["mean_ttft_ms"]) > 100
        assert rows[0]["request_goodput"] == ""
        assert not any(value.startswith(("[", "{")) for value in rows[0].values())

    def test_a_file_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="nowhere"):
            write_csv(tmp_path / "nowhere" / "sweep.csv", [a_point()])
