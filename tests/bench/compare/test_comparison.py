from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from prefixlab.bench.compare.comparison import MIXED, Comparison, compare, fails_more, levels
from prefixlab.bench.compare.figures import parse_figures
from prefixlab.bench.compare.report import as_json, show_comparison, verdict
from prefixlab.bench.compare.side import open_side
from prefixlab.core.errors import ConfigError
from tests.bench.compare.made import a_table, save

DATA = Path(__file__).parent / "data"
N = 3000


def compared(a: Path, b: Path, *words: str, **options: Any) -> Comparison:
    figures = [figure for word in words for figure in parse_figures(word)]
    chosen = {"margin": 0.02, "confidence": 0.95, "seed": 0} | options
    return compare(open_side(str(a)), open_side(str(b)), figures=figures, **chosen)


def shown(comparison: Comparison) -> str:
    text = io.StringIO()
    show_comparison(Console(file=text, width=140), comparison)
    return text.getvalue()


def test_the_same_setting_twice_is_no_difference(tmp_path: Path) -> None:
    a, b = (save(tmp_path / str(seed), a_table(N, seed=seed)) for seed in (1, 2))
    found = compared(a, b)
    assert found.finding == "no difference"
    assert verdict(found).startswith("no difference beyond ±2%")


def test_five_percent_slower_is_worse_and_said_with_its_interval(tmp_path: Path) -> None:
    a = save(tmp_path / "a", a_table(N, seed=1))
    b = save(tmp_path / "b", a_table(N, seed=2, slower=1.05))
    found = compared(a, b)
    assert found.finding == "worse"
    assert verdict(found).startswith("B is worse: mean TTFT +") and "more" in verdict(found)
    assert compared(b, a).finding == "better"


def test_too_few_requests_are_undecided_and_it_is_said_what_would_tell(tmp_path: Path) -> None:
    a, b = (save(tmp_path / str(seed), a_table(40, seed=seed, spread=0.4)) for seed in (3, 4))
    found = compared(a, b)
    assert found.finding == "undecided" and "longer runs" in verdict(found)


def test_better_here_and_worse_there_is_mixed(tmp_path: Path) -> None:
    for side, factors in (("a", (1.0, 1.0)), ("b", (1.2, 0.8))):
        for rate, factor in zip((1, 2), factors, strict=True):
            table = a_table(500, seed=rate, slower=factor)
            save(tmp_path / side / str(rate), table, swept={"request-rate": rate})
    found = compared(tmp_path / "a", tmp_path / "b", "mean_ttft")
    assert found.finding == MIXED and len(found.points) == 2
    assert "better in mean TTFT at request-rate=2" in verdict(found)


def test_points_of_one_side_only_are_named(tmp_path: Path) -> None:
    for side, rates in (("a", (1, 2)), ("b", (2, 3))):
        for rate in rates:
            save(tmp_path / side / str(rate), a_table(40), swept={"request-rate": rate})
    found = compared(tmp_path / "a", tmp_path / "b")
    assert [point.name for point in found.points] == ["request-rate=2"]
    assert len(found.unmatched) == 2 and "request-rate=3" in shown(found)


def test_sweeps_with_no_point_in_common_are_refused(tmp_path: Path) -> None:
    for side, rates in (("a", (1, 2)), ("b", (3, 4))):
        for rate in rates:
            save(tmp_path / side / str(rate), a_table(40), swept={"request-rate": rate})
    with pytest.raises(ConfigError, match="no point in common"):
        compared(tmp_path / "a", tmp_path / "b")


def test_another_question_is_a_loud_warning_and_circumstances_are_listed(tmp_path: Path) -> None:
    a = save(tmp_path / "a", a_table(40), version="1")
    b = save(tmp_path / "b", a_table(40), version="2", config={"dataset": {"random_input_len": 128}})
    found = compared(a, b)
    assert not found.same_question
    text = shown(found)
    assert "WARNING: not the same question: random-input-len: A 64, B 128" in text
    assert "server version: A 1, B 2" in text


@pytest.mark.parametrize("cause", ["warm contamination", "lying reset", "foreign traffic"])
def test_a_cache_that_others_had_filled_is_another_question_and_told_before_the_verdict(
    tmp_path: Path, cause: str
) -> None:
    a = save(tmp_path / "a", a_table(200))
    b = save(tmp_path / "b", a_table(200, slower=0.5), cause=cause, grade="C")
    found = compared(a, b)
    assert not found.same_question
    text = shown(found)
    assert text.startswith("WARNING: not the same question: what else the cache had seen: A nothing")
    assert text.index(cause) < text.index("B is better")
    assert "note: b is of trust C: prefixlab doctor" in text


def test_a_cache_that_only_evicted_asks_the_same(tmp_path: Path) -> None:
    a, b = (save(tmp_path / name, a_table(40), cause=of) for name, of in (("a", None), ("b", "evicted")))
    assert compared(a, b).same_question


def test_seeds_are_circumstances(tmp_path: Path) -> None:
    a, b = (save(tmp_path / str(seed), a_table(40), config={"dataset": {"seed": seed}}) for seed in (1, 2))
    assert compared(a, b).same_question


def test_the_same_requests_are_compared_in_pairs(tmp_path: Path) -> None:
    a, b = (save(tmp_path / str(seed), a_table(200, seed=seed, prompts_seed=0)) for seed in (1, 2))
    (difference,) = compared(a, b, "mean_ttft").points[0].differences
    assert "pairs" in difference.method


def test_three_folders_on_each_side_are_repeats(tmp_path: Path) -> None:
    for side in "ab":
        for number in range(3):
            save(tmp_path / side / str(number), a_table(50, seed=number))
    (difference,) = compared(tmp_path / "a", tmp_path / "b", "mean_ttft").points[0].differences
    assert difference.num_values == (3, 3) and "repeats" in difference.method


def test_other_quantities_are_refused_with_both_definitions(tmp_path: Path) -> None:
    found = compared(DATA / "vllm-detailed.json", DATA / "vllm.json")
    refused = found.points[0].refused
    assert "not the same quantity" in refused["p99_itl_ms"] and "gap between events" in refused["p99_itl_ms"]
    assert "mean_ttft_ms" in {of.figure for of in found.points[0].differences}
    assert "p99_itl_ms: not the same quantity" in shown(found)


def test_a_figure_only_one_client_has_is_refused(tmp_path: Path) -> None:
    found = compared(save(tmp_path / "a", a_table(40)), DATA / "guidellm.json")
    assert found.points[0].refused["mean_itl_ms"].startswith("B (guidellm 0.8.1) has no itl")


def test_nothing_to_compare_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no figure that can be compared.*has no itl"):
        compared(DATA / "guidellm.json", DATA / "guidellm.json", "itl")


def test_clients_are_compared_with_each_other_where_they_mean_the_same() -> None:
    found = compared(DATA / "guidellm.json", DATA / "profile_export_aiperf.json")
    figures = {of.figure for of in found.points[0].differences}
    assert {"mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "output_throughput"} <= figures


def test_intervals_are_corrected_for_all_figures_of_all_points(tmp_path: Path) -> None:
    a = save(tmp_path / "a", a_table(40))
    found = compared(a, a, "ttft", "throughput")
    told = {of.figure: 1 - of.level for of in found.points[0].differences}
    assert told["mean_ttft_ms"] == told["output_throughput"] == pytest.approx(0.8 * 0.05 / 2)
    assert told["median_ttft_ms"] == told["p99_ttft_ms"] == pytest.approx(0.2 * 0.05 / 2)
    assert "headlines at 98.00%, other figures at 99.50%, so that all 4 hold at 95%" in shown(found)


@pytest.mark.parametrize("figures", [["mean_ttft_ms", "output_throughput"], ["p99_ttft_ms", "p99_itl_ms"]])
def test_figures_of_one_kind_share_the_whole_error_allowed(figures: list[str]) -> None:
    assert list(levels(figures, 0.9).values()) == pytest.approx([0.95, 0.95])


def test_failed_requests_are_noted(tmp_path: Path) -> None:
    from dataclasses import replace

    table = a_table(100)
    failed = replace(table, outcome=np.where(np.arange(100) < 20, 1, table.outcome).astype(np.uint8))
    found = compared(save(tmp_path / "a", table), save(tmp_path / "b", failed))
    assert "requests that failed: A 0 of 100, B 20 of 100" in shown(found)


@pytest.mark.parametrize(
    ("a", "b", "more"),
    [
        ((0, 100), (20, 100), True),
        ((0, 100), (1, 100), False),
        ((20, 100), (0, 100), False),
        ((10, 1000), (15, 1000), False),
        (None, (5, 10), False),
    ],
)
def test_more_failures_are_more_than_chance_and_a_hundredth(
    a: tuple[int, int] | None, b: tuple[int, int] | None, more: bool
) -> None:
    assert fails_more(a, b) is more


def test_the_json_holds_what_is_shown(tmp_path: Path) -> None:
    a, b = (save(tmp_path / str(seed), a_table(200, seed=seed)) for seed in (1, 2))
    data = json.loads(as_json(compared(a, b)))
    assert data["finding"] and data["verdict"] and data["a"]["runs"][0]["client"] == "prefixlab 0.1.0"
    assert {"figure", "a", "b", "change", "low", "high", "method"} <= data["points"][0]["differences"][
        0
    ].keys()
    assert data["points"][0]["definitions"]["ttft"]
