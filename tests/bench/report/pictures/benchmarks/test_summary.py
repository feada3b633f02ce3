from __future__ import annotations

from pathlib import Path

import pytest

from prefixlab.bench.report.pictures.benchmarks.chosen import choose
from prefixlab.bench.report.pictures.benchmarks.summary import summary_text
from prefixlab.bench.report.pictures.provenance import Provenance
from tests.bench.report.pictures.benchmarks.folders import save_aiperf, save_point, save_sweep

SOURCE = Provenance("20260131-140500", "here", "prefixlab 0.1.0", "", "prefixlab plot data")


def summary(path: Path, *num_devices: str) -> list[str]:
    chosen = choose(path, (), num_devices)
    return summary_text(chosen, Path("data"), Path("data/plots"), SOURCE).splitlines()


def below(lines: list[str], heading: str) -> list[str]:
    """The lines of one paragraph."""
    start = next(number for number, line in enumerate(lines) if line.startswith(heading)) + 1
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    return lines[start:end]


def test_it_begins_with_dynamos_lines(tmp_path: Path) -> None:
    save_sweep(tmp_path / "agg", (1, 4, 16))
    save_aiperf(tmp_path / "vLLM-FP8" / "c4")
    assert summary(tmp_path)[:17] == [
        "Benchmark Results Summary",
        "==============================",
        "",
        "Results directory: data",
        "Plots generated: data/plots",
        "",
        "Deployment Types Found:",
        "  agg: 3 concurrency levels (1-16)",
        "  vLLM-FP8: 1 concurrency levels (4-4)",
        "",
        "Generated Plots:",
        "  - p50_inter_token_latency_vs_concurrency.png",
        "  - avg_inter_token_latency_vs_concurrency.png",
        "  - request_throughput_vs_concurrency.png",
        "  - avg_time_to_first_token_vs_concurrency.png",
        "  - efficiency_tok_s_gpu_vs_user.png",
        "",
    ]


def test_every_point_has_its_figures_failures_repeats_and_intervals(tmp_path: Path) -> None:
    (result,) = save_sweep(tmp_path / "agg", (4,), repeats=3, failed=2, goodput="ttft:500")
    lines = below(summary(tmp_path, "2"), "Points")
    metrics, ttft = result.metrics, result.intervals["ttft_s", "mean"].scaled(1e3)
    assert lines[0] == "  agg: 2 devices (--num-devices)"
    heads = ["concurrency", "requests", "failed", "repeats", "req/s", "output tok/s", "mean TTFT", "p99 TTFT"]
    heads += ["p50 ITL", "mean ITL", "tok/s/user", "tok/s/gpu"]
    assert [word.strip() for word in lines[1].split("  ") if word.strip()] == heads
    cells = [word.strip() for word in lines[2].split("  ") if word.strip()]
    assert cells[:4] == ["4", "126", "6", "3"]
    assert cells[4].startswith(f"{metrics.request_throughput:.2f} [")
    mean_ms = 1e3 * (metrics.ttft_s.mean or 0)
    assert cells[6] == f"{mean_ms:.1f} [{ttft.low:.1f}-{ttft.high:.1f}]"
    assert cells[7].startswith(f"{1e3 * (metrics.ttft_s.p99 or 0):.1f}")
    assert cells[-1] == f"{(metrics.output_throughput or 0) / 2:,.1f}"
    assert "    failed at concurrency 4: 6 HTTP 503" in lines
    assert any(line.startswith("    goodput at concurrency 4: ") and "ttft:500" in line for line in lines)


def test_without_a_number_of_devices_it_says_so(tmp_path: Path) -> None:
    save_sweep(tmp_path / "agg", (4,))
    lines = summary(tmp_path)
    points = below(lines, "Points")
    assert points[0] == "  agg: number of devices not known"
    assert points[1].endswith("tok/s/server")
    assert "  tok/s/user: output tokens of a request / its end-to-end time, mean over requests" in lines


def test_benchmarks_are_compared_with_the_first_at_every_concurrency(tmp_path: Path) -> None:
    save_sweep(tmp_path / "a", (1, 4), repeats=3)
    save_sweep(tmp_path / "b", (4, 16), repeats=3, tokens=21)
    save_sweep(tmp_path / "c", (64,))
    lines = below(summary(tmp_path), "Compared with a")
    assert lines[0] == "  b"
    assert lines[1].startswith("    concurrency 4: output_throughput +") and "mean_ttft_ms +0.0 %" in lines[1]
    assert "they were not asked the same: output-tokens 11.0 and 21.0" in lines[2]
    assert lines[3:] == ["  c", "    no concurrency in common"]


def test_a_real_difference_has_an_interval_and_a_finding(tmp_path: Path) -> None:
    save_sweep(tmp_path / "a", (4,), repeats=3)
    save_sweep(tmp_path / "b", (4,), repeats=3, slower=2.0)
    (line,) = [line for line in below(summary(tmp_path), "Compared with a") if "mean_itl_ms" in line]
    _, _, told = line.partition("mean_itl_ms ")
    assert told.startswith("+100.0 % [") and told.endswith("] worse")


def test_one_benchmark_is_compared_with_nothing(tmp_path: Path) -> None:
    save_sweep(tmp_path / "a")
    assert not any(line.startswith("Compared") for line in summary(tmp_path))


def test_it_says_where_everything_comes_from(tmp_path: Path) -> None:
    save_sweep(tmp_path / "agg", (4,))
    assert below(summary(tmp_path), "Provenance:") == [
        "  agg",
        "    measured: 2026-01-31 14:05 · a machine · prefixlab 0.1.0 at 0123456789",
        "    command: prefixlab …",
        "    server: backend sglang, version 0.9, at http://here",
        "    seed: 7",
        f"    read from: {tmp_path / 'agg' / '000'}",
        "  plotted: 2026-01-31 14:05 · here · prefixlab 0.1.0 · prefixlab plot data",
    ]


def test_of_aiperf_it_says_what_was_measured_with_what(tmp_path: Path) -> None:
    save_aiperf(tmp_path / "A" / "c4")
    lines = below(summary(tmp_path), "Provenance:")
    assert lines[1:3] == [
        "    measured: aiperf 0.13.0",
        "    server: vmodel, completions, http://127.0.0.1:8312",
    ]


@pytest.mark.parametrize("counted", [True, False])
def test_tokens_that_aiperf_made_of_the_text_again_are_marked(tmp_path: Path, counted: bool) -> None:
    config = save_aiperf(tmp_path / "x" / "c4")["input_config"]
    config["endpoint"]["use_server_token_count"] = counted
    save_aiperf(tmp_path / "y" / "A" / "c4", input_config=config)
    note = "    note: aiperf made tokens of the text again: counts are not the server's"
    assert (note in summary(tmp_path / "y")) is not counted


def test_what_is_not_drawn_is_named(tmp_path: Path) -> None:
    save_sweep(tmp_path / "agg", (4,))
    save_point(tmp_path / "rate", 4, loop="open")
    assert below(summary(tmp_path), "Left out:") == ["  rate: it was asked at a rate, not with a concurrency"]
