from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure

from prefixlab.bench.ledger.check import check_cache
from prefixlab.bench.metrics import intervals
from prefixlab.bench.metrics.summary import summarise
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.report.pictures.provenance import Provenance
from prefixlab.bench.report.pictures.warm_cache import warm_cache_figure, write_warm_cache_plot
from prefixlab.bench.report.sweep import PooledPoint, pool_points
from prefixlab.bench.runs.warm_cache import PointRun
from prefixlab.bench.targets.cold_start import Coldness, ColdStart
from prefixlab.bench.workloads.warm_cache import shape_point
from prefixlab.core.errors import ConfigError
from tests.bench.helpers import ok_record


def a_run(
    pct: int,
    *,
    repeat: int = 0,
    requests: int = 8,
    slower_s: float = 0.0,
    cached: int | None = None,
    failed: bool = False,
) -> PointRun:
    """TTFT of request i: 0.1 s × (i + 1) and `slower_s`."""
    shape = shape_point(pct, 200)
    expected = shape.expected_cached_tokens(16)
    records: list[Record] = [
        ok_record(
            f"pct{pct}-{repeat}-{i}",
            arrivals_s=[0.1 * (i + 1) + slower_s, 2.0 + slower_s],
            planned_prompt_tokens=200,
            num_expected_cached_tokens=expected,
            num_cached_tokens=expected if cached is None else cached,
        )
        for i in range(requests)
    ]
    if failed:
        records.append(Record(f"pct{pct}-f", Outcome.FAILED, 0.0, sent_s=0.0, last_s=0.1, error="HTTP 503"))
    return PointRun(
        shape=shape,
        repeat=repeat,
        cold_start=ColdStart(Coldness.PROVEN, "a probe missed"),
        salt=0,
        warm_up_cached_tokens=0,
        records=tuple(records),
        metrics=summarise(records, len(records)),
        check=check_cache(records),
        notes=(),
    )


def points(repeats: int = 3, requests: int = 8) -> list[PooledPoint]:
    runs = [
        a_run(pct, repeat=repeat, requests=requests, slower_s=0.1 * repeat)
        for repeat in range(repeats)
        for pct in (0, 50, 90)
    ]
    return pool_points(runs)


def drawn(pooled: list[PooledPoint]) -> Figure:
    return warm_cache_figure(pooled, title="tiny on a machine", setting="4 prompts")


def lines(axes: Axes) -> list[list[float]]:
    """Heights of those of more than a point."""
    found = [np.asarray(line.get_ydata(), dtype=float).tolist() for line in axes.lines]
    return [heights for heights in found if len(heights) > 1]


def band(axes: Axes, at: float) -> tuple[float, float] | None:
    for collection in axes.collections:
        if isinstance(collection, PolyCollection) and not isinstance(collection, PathCollection):
            corners = collection.get_paths()[0].vertices
            heights = [float(y) for x, y in corners if abs(float(x) - at) < 1e-6]
            return min(heights), max(heights)
    return None


def words(figure: Figure) -> str:
    legends = [text.get_text() for axes in figure.axes for text in (axes.get_legend().get_texts())]
    labels = [label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel())]
    return "\n".join([*(text.get_text() for text in figure.texts), *legends, *labels])


def test_the_lines_are_the_figures_of_the_tables_over_the_measured_hit_rate() -> None:
    pooled = points()
    throughput, ttft = drawn(pooled).axes
    assert lines(throughput) == [[point.metrics.total_throughput for point in pooled]]
    assert lines(ttft) == [pytest.approx([1e3 * (point.metrics.ttft_s.median or 0) for point in pooled])]
    rates = [100 * (point.check.hit_rate or 0) for point in pooled]
    assert np.asarray(ttft.lines[-1].get_xdata()).tolist() == rates


def test_the_band_of_ttft_is_the_middle_half_of_all_requests() -> None:
    values = [100 * (i + 1) + 100 * repeat for repeat in range(3) for i in range(8)]
    _, ttft = drawn(points()).axes
    assert band(ttft, 0.0) == pytest.approx(np.percentile(values, [25, 75]).tolist())


def test_the_band_of_throughput_is_the_interval_over_the_repeats() -> None:
    pooled = points()
    found = intervals.of_repeats([run.metrics.total_throughput for run in pooled[0].runs])
    assert found is not None
    throughput, _ = drawn(pooled).axes
    assert band(throughput, 0.0) == pytest.approx((found.low, found.high))


def test_the_legend_says_what_line_band_and_marks_are() -> None:
    shown = words(drawn(points()))
    for words_of in (
        "all repeats together",
        "95 % interval over the repeats",
        "each repeat",
        "median of all requests",
        "middle half of all requests (p25 to p75)",
    ):
        assert words_of in shown, words_of


def test_there_is_no_band_of_too_few_requests_or_repeats() -> None:
    figure = drawn(points(repeats=1, requests=8))
    assert [band(axes, 0.0) for axes in figure.axes] == [None, None]
    assert "middle half" not in words(figure) and "95 %" not in words(figure)


def test_every_repeat_is_drawn() -> None:
    _, ttft = drawn(points()).axes
    marks = [one for one in ttft.collections if isinstance(one, PathCollection)]
    assert [len(np.asarray(one.get_offsets())) for one in marks] == [3, 3, 3]


def test_the_picture_says_what_is_on_its_axes_and_that_hits_were_checked() -> None:
    shown = words(drawn(points()))
    for text in ("measured hit rate", "tokens/s", "ms", "tiny on a machine", "3 of 3 points; 3 repeats"):
        assert text in shown, text


def test_a_sweep_without_a_hit_is_drawn_over_the_intended_share_and_says_so() -> None:
    shown = words(drawn(pool_points([a_run(pct, cached=0) for pct in (0, 50, 90)])))
    assert "intended share of a common prefix" in shown
    assert "nothing was served from cache" in shown
    assert "measured hit rate" not in shown


def test_the_picture_counts_requests_that_failed() -> None:
    shown = words(drawn(pool_points([a_run(0, failed=True), a_run(50)])))
    assert "2 of 2 points; 1 repeat.  1 of 9 requests FAILED at 0 % shared." in shown.replace("\n", " ")


def test_points_without_figures_leave_an_empty_picture() -> None:
    run = a_run(50)
    silent = tuple(replace(r, num_cached_tokens=None, num_expected_cached_tokens=None) for r in run.records)
    figure = drawn(pool_points([replace(run, records=silent, check=check_cache(silent))]))
    assert "0 of 1 points" in figure.texts[-1].get_text()
    assert [lines(axes) for axes in figure.axes] == [[], []]


def test_the_small_print_says_where_it_comes_from() -> None:
    source = Provenance(
        "20260131-140559", "a machine", "prefixlab 0.1.0", "0123456789abcdef+", "prefixlab bench …"
    )
    figure = warm_cache_figure(points(), title="t", setting="s", provenance=source)
    line = "2026-01-31 14:05 · a machine · prefixlab 0.1.0 at 0123456789+ · prefixlab bench …"
    assert figure.texts[-1].get_text() == line


def test_a_command_line_in_small_print_hides_secrets() -> None:
    now = Provenance.now(["prefixlab", "bench", "serve", "--api-key", "sesame"])
    assert now.line.endswith("prefixlab bench serve --api-key '***'")


def test_text_of_users_is_drawn_as_it_is(tmp_path: Path) -> None:
    title = "_a $x^2$ \\model{"
    figure = warm_cache_figure(points(), title=title, setting="$")
    write_warm_cache_plot(tmp_path / "p.svg", points(), title=title, setting="$")  # nor is it refused
    assert figure.texts[0].get_text() == title


@pytest.mark.parametrize(("name", "magic"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF")])
def test_the_ending_of_the_file_says_how_it_is_drawn(tmp_path: Path, name: str, magic: bytes) -> None:
    write_warm_cache_plot(tmp_path / name, points(), title="t", setting="s")
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--plot .*p\.xyz cannot be written"):
        write_warm_cache_plot(tmp_path / "p.xyz", points(), title="t", setting="s")
