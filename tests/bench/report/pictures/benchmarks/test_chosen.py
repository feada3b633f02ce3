from __future__ import annotations

from pathlib import Path

import pytest

from prefixlab.bench.report.pictures.benchmarks.benchmark import TOKENS_PER_USER
from prefixlab.bench.report.pictures.benchmarks.chosen import choose
from prefixlab.core.errors import ConfigError
from tests.bench.report.pictures.benchmarks.folders import (
    GAP_S,
    NUM_TOKENS,
    TTFT_S,
    save_aiperf,
    save_point,
    save_sweep,
)


def names(path: Path, *chosen: str) -> list[str]:
    return [benchmark.name for benchmark in choose(path, chosen).benchmarks]


def levels(path: Path) -> dict[str, list[int]]:
    return {benchmark.name: benchmark.levels for benchmark in choose(path).benchmarks}


# What is one benchmark. -----------------------------------------------------------------------------------


def test_a_sweep_is_a_benchmark_by_its_label_else_by_its_folder(tmp_path: Path) -> None:
    save_sweep(tmp_path / "sweep-1", label="vLLM-FP8")
    save_sweep(tmp_path / "sweep-2", (2,))
    assert levels(tmp_path) == {"sweep-2": [2], "vLLM-FP8": [1, 4]}


def test_the_folder_of_the_sweep_itself_can_be_named(tmp_path: Path) -> None:
    save_sweep(tmp_path / "mine")
    assert levels(tmp_path / "mine") == {"mine": [1, 4]}


def test_every_server_of_a_sweep_is_a_benchmark(tmp_path: Path) -> None:
    for target in ("east", "west"):
        save_point(tmp_path / "s" / target, 4, swept={"target": target, "max-concurrency": 4})
    (tmp_path / "s" / "config.json").write_text('{"verb": "bench sweep"}')
    assert names(tmp_path) == ["east", "west"]


def test_what_else_was_swept_tells_benchmarks_apart(tmp_path: Path) -> None:
    for number, length in enumerate((100, 1000)):
        swept = {"max-concurrency": 4, "random-input-len": length}
        save_point(tmp_path / "s" / f"{number}", 4, label="A", swept=swept)
    (tmp_path / "s" / "config.json").write_text('{"verb": "bench sweep"}')
    assert names(tmp_path) == ["A random-input-len=100", "A random-input-len=1000"]


def test_two_sweeps_of_one_label_are_not_mixed(tmp_path: Path) -> None:
    for folder in ("monday", "tuesday"):
        save_sweep(tmp_path / folder, label="A")
    assert names(tmp_path) == ["A (monday)", "A (tuesday)"]


def test_runs_of_one_label_that_no_sweep_made_are_one_benchmark(tmp_path: Path) -> None:
    for level in (1, 4, 16):
        save_point(tmp_path / f"run-{level}", level, label="by hand")
    save_point(tmp_path / "alone", 2)
    assert levels(tmp_path) == {"alone": [2], "by hand": [1, 4, 16]}


def test_what_was_measured_again_is_a_benchmark_of_its_own(tmp_path: Path) -> None:
    for folder, level in (("a", 4), ("b", 4), ("c", 16)):
        save_point(tmp_path / folder, level, label="base")
    assert levels(tmp_path) == {"base": [4, 16], "base #2": [4]}


def test_what_a_search_began_with_is_no_benchmark(tmp_path: Path) -> None:
    save_sweep(tmp_path / "s", (1,))
    save_point(tmp_path / "search" / "000-capacity", 64)
    (tmp_path / "search" / "config.json").write_text('{"verb": "bench saturate"}')
    chosen = choose(tmp_path)
    assert [benchmark.name for benchmark in chosen.benchmarks] == ["s"]
    said = "search/000-capacity: it only told a search for saturation where to begin"
    assert chosen.left_out == (said,)


def test_nine_comes_before_ten(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        save_sweep(tmp_path / f"b{number}", (1,))
    assert names(tmp_path) == ["b1", "b9", "b10"]


def test_both_layouts_may_lie_in_one_folder(tmp_path: Path) -> None:
    save_sweep(tmp_path / "same")
    save_aiperf(tmp_path / "same" / "c4")
    save_aiperf(tmp_path / "other" / "c4" / "deeper")
    assert names(tmp_path) == ["other", "same", "same (aiperf)"]


# Figures. -------------------------------------------------------------------------------------------------


def test_tokens_per_user_is_the_mean_over_requests_of_tokens_by_end_to_end_time(tmp_path: Path) -> None:
    (result,) = save_sweep(tmp_path / "s", (4,))
    fast, slow = (NUM_TOKENS / (TTFT_S + factor * GAP_S * (NUM_TOKENS - 1)) for factor in (1, 2))
    (benchmark,) = choose(tmp_path).benchmarks
    per_user = benchmark.points[0].figures[TOKENS_PER_USER]
    assert per_user == pytest.approx((3 * fast + slow) / 4)
    throughput = result.metrics.request_throughput or 0
    assert per_user > 2 * throughput * NUM_TOKENS / 4, "slots stood idle: throughput / concurrency is not it"


def test_of_three_repeats_the_interval_is_over_the_repeats(tmp_path: Path) -> None:
    save_sweep(tmp_path / "s", (4,), repeats=3)
    (benchmark,) = choose(tmp_path).benchmarks
    (point,) = benchmark.points
    means = []
    for repeat in range(3):
        times = [TTFT_S + factor * GAP_S * (1 + 0.1 * repeat) * (NUM_TOKENS - 1) for factor in (1, 1, 1, 2)]
        means.append(sum(NUM_TOKENS / time for time in times) / 4)
    spread = 4.302652729911275 * (sum((m - sum(means) / 3) ** 2 for m in means) / 2) ** 0.5 / 3**0.5
    low, high = point.ends[TOKENS_PER_USER]
    assert len(point.runs) == 3
    assert (low, high) == pytest.approx((sum(means) / 3 - spread, sum(means) / 3 + spread))


def test_aiperf_figures_are_those_of_its_file(tmp_path: Path) -> None:
    data = save_aiperf(tmp_path / "A" / "c4")
    (benchmark,) = choose(tmp_path).benchmarks
    figures = benchmark.points[0].figures
    assert figures["median_tpot_ms"] == data["inter_token_latency"]["p50"]
    assert figures["mean_tpot_ms"] == data["inter_token_latency"]["avg"]
    assert figures["request_throughput"] == data["request_throughput"]["avg"]
    assert figures["mean_ttft_ms"] == data["time_to_first_token"]["avg"]
    assert benchmark.points[0].ends.keys() >= {"mean_ttft_ms", "mean_tpot_ms", TOKENS_PER_USER}


def test_without_records_of_aiperf_users_get_what_its_averages_say_and_a_note(tmp_path: Path) -> None:
    data = save_aiperf(tmp_path / "A" / "c4", records=False)
    (benchmark,) = choose(tmp_path).benchmarks
    tokens = data["output_token_throughput"]["avg"] * data["benchmark_duration"]["avg"]
    users_s = data["request_latency"]["sum"] / 1e3
    assert benchmark.points[0].figures[TOKENS_PER_USER] == pytest.approx(tokens / users_s, rel=5e-3)
    assert benchmark.notes == ("no profile_export.jsonl: tok/s/user is Σ output tokens ÷ Σ end-to-end time, "
                               "no interval",)  # fmt: skip


# Folders that are no concurrency. -------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["c10foo", "c", "c0", "c-4", "c1.5", "concurrency4", "xc4", "c٤"])
def test_what_is_no_concurrency_is_not_taken_for_one_and_named(tmp_path: Path, folder: str) -> None:
    save_aiperf(tmp_path / "A" / "c4")
    save_aiperf(tmp_path / "A" / folder)
    chosen = choose(tmp_path)
    assert [benchmark.levels for benchmark in chosen.benchmarks] == [[4]]
    assert chosen.left_out == (
        f"A/{folder}/profile_export_aiperf.json: none of its folders is a concurrency, as c16",
    )


def test_a_folder_that_says_another_concurrency_than_its_file_is_drawn_as_measured(tmp_path: Path) -> None:
    save_aiperf(tmp_path / "A" / "c10", 4)
    (benchmark,) = choose(tmp_path).benchmarks
    assert benchmark.levels == [4]
    assert benchmark.notes == ("A/c10 was measured at concurrency 4, and is drawn there",)


def test_pictures_of_before_are_no_benchmark(tmp_path: Path) -> None:
    save_aiperf(tmp_path / "A" / "c4")
    save_aiperf(tmp_path / "plots" / "c4")
    assert names(tmp_path) == ["A"]


def test_runs_that_cannot_be_drawn_are_left_out_with_the_reason(tmp_path: Path) -> None:
    save_sweep(tmp_path / "s", (1,))
    save_point(tmp_path / "cut", finished=False)
    save_point(tmp_path / "rate", 4, loop="open")
    save_point(tmp_path / "free", None)
    save_point(tmp_path / "dead", 4, completed=0)
    assert set(choose(tmp_path).left_out) == {
        "cut: it is unfinished",
        "rate: it was asked at a rate, not with a concurrency",
        "free: no concurrency was set",
        "dead: no request succeeded",
    }


# Choice. --------------------------------------------------------------------------------------------------


def test_only_those_named_are_drawn_in_the_order_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save_sweep(tmp_path / name, (1,))
    assert names(tmp_path, "c", "a", "c") == ["c", "a"]
    assert choose(tmp_path, ["a"]).left_out == ("not named by --benchmark-name: b, c",)


def test_a_name_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    save_sweep(tmp_path / "agg", (1,))
    with pytest.raises(ConfigError, match=r"--benchmark-name ag: there is agg.*agg"):
        choose(tmp_path, ["ag"])


def test_more_than_twelve_are_refused(tmp_path: Path) -> None:
    for number in range(13):
        save_aiperf(tmp_path / f"b{number}" / "c4", records=False)
    with pytest.raises(ConfigError, match=r"13 benchmarks are more than the 12 .* --benchmark-name among b0"):
        choose(tmp_path)
    assert len(names(tmp_path, *(f"b{number}" for number in range(12)))) == 12


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is nothing to plot"):
        choose(tmp_path)
    with pytest.raises(ConfigError, match="there is no such folder"):
        choose(tmp_path / "nowhere")


def test_where_nothing_is_left_the_refusal_says_what_was_left_out(tmp_path: Path) -> None:
    save_point(tmp_path / "rate", 4, loop="open")
    with pytest.raises(ConfigError, match=r"nothing to plot.*\n  rate: it was asked at a rate"):
        choose(tmp_path)


# Devices. -------------------------------------------------------------------------------------------------


def devices(path: Path, *words: str) -> list[tuple[int | None, str]]:
    return [(of.num_devices, of.devices_from) for of in choose(path, (), words).benchmarks]


def test_devices_are_those_told_else_those_recorded_else_not_known(tmp_path: Path) -> None:
    save_sweep(tmp_path / "a", (1,), num_devices="4")
    save_sweep(tmp_path / "b", (1,), server={"num_devices": 8})
    save_sweep(tmp_path / "c", (1,))
    recorded = "as it was measured"
    assert devices(tmp_path) == [(4, recorded), (8, recorded), (None, "")]
    assert devices(tmp_path, "2") == [(2, "--num-devices")] * 3
    assert devices(tmp_path, "c=6") == [(4, recorded), (8, recorded), (6, "--num-devices")]
    assert devices(tmp_path, "2", "a=1") == [(1, "--num-devices"), (2, "--num-devices"), (2, "--num-devices")]


def test_devices_that_differ_between_points_are_not_known(tmp_path: Path) -> None:
    for level in (1, 2):
        save_point(tmp_path / f"r{level}", level, label="A", num_devices=str(level))
    assert devices(tmp_path) == [(None, "")]


@pytest.mark.parametrize("word", ["0", "-1", "two", "1.5", "a=", "a=0"])
def test_a_number_of_devices_that_is_none_is_refused(tmp_path: Path, word: str) -> None:
    save_sweep(tmp_path / "a", (1,))
    with pytest.raises(ConfigError, match="--num-devices takes N or NAME=N"):
        devices(tmp_path, word)


def test_devices_of_nobody_or_told_twice_are_refused(tmp_path: Path) -> None:
    save_sweep(tmp_path / "a", (1,))
    with pytest.raises(ConfigError, match="--num-devices b=2: 'b' is none of a"):
        devices(tmp_path, "b=2")
    with pytest.raises(ConfigError, match="--num-devices is given twice for a"):
        devices(tmp_path, "a=2", "a=2")
