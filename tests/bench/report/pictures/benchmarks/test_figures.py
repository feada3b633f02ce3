"""What is drawn, read back from the axes."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from prefixlab.bench.report.pictures.benchmarks.benchmark import TOKENS_PER_USER
from prefixlab.bench.report.pictures.benchmarks.chosen import choose
from prefixlab.bench.report.pictures.benchmarks.figures import EFFICIENCY, FILES, five_figures
from prefixlab.bench.report.pictures.provenance import Provenance
from prefixlab.bench.report.pictures.style import LOOKS
from tests.bench.report.pictures.benchmarks.folders import save_aiperf, save_sweep

SOURCE = Provenance("20260131-140500", "here", "prefixlab 0.1.0", "", "prefixlab plot")
P50_ITL, MEAN_ITL, REQUESTS, TTFT = FILES[:4]


def drawn(path: Path, *num_devices: str) -> dict[str, Figure]:
    return five_figures(choose(path, (), num_devices).benchmarks, SOURCE)


def lines(figure: Figure) -> list[tuple[list[float], list[float]]]:
    """(across, up) of every benchmark; error bars are lines without a marker."""
    (axes,) = figure.axes
    return [
        (np.asarray(line.get_xdata(), float).tolist(), np.asarray(line.get_ydata(), float).tolist())
        for line in axes.lines
        if line.get_marker() not in ("None", "|", "_", None)
    ]


def bars(axes: Axes) -> list[tuple[float, float, float, float]]:
    """(x, low, x, high) of every error bar."""
    found = []
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        for collection in container[2]:
            found += [(*path.vertices[0], *path.vertices[1]) for path in collection.get_paths()]
    return [tuple(map(float, bar)) for bar in found]


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


def legend(figure: Figure) -> list[str]:
    found = figure.axes[0].get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def test_the_files_are_those_of_dynamo() -> None:
    assert list(FILES) == [
        "p50_inter_token_latency_vs_concurrency.png",
        "avg_inter_token_latency_vs_concurrency.png",
        "request_throughput_vs_concurrency.png",
        "avg_time_to_first_token_vs_concurrency.png",
        "efficiency_tok_s_gpu_vs_user.png",
    ]


def test_every_picture_shows_what_was_measured_over_the_concurrency(tmp_path: Path) -> None:
    results = save_sweep(tmp_path / "s", (1, 4, 16))
    figures = drawn(tmp_path)
    levels = [1.0, 4.0, 16.0]
    metrics = [result.metrics for result in results]
    assert lines(figures[P50_ITL]) == [(levels, [1e3 * (of.itl_s.median or 0) for of in metrics])]
    assert lines(figures[MEAN_ITL]) == [(levels, [1e3 * (of.itl_s.mean or 0) for of in metrics])]
    assert lines(figures[REQUESTS]) == [(levels, [of.request_throughput for of in metrics])]
    assert lines(figures[TTFT]) == [(levels, [1e3 * (of.ttft_s.mean or 0) for of in metrics])]


def test_titles_and_axes_are_dynamos_with_units(tmp_path: Path) -> None:
    save_sweep(tmp_path / "s")
    figures = drawn(tmp_path)
    titles = {file: figure.texts[0].get_text() for file, figure in figures.items()}
    assert titles[P50_ITL] == "P50 Inter-Token Latency vs Concurrency"
    assert titles[MEAN_ITL] == "Average Inter-Token Latency vs Concurrency"
    assert titles[REQUESTS] == "Request Throughput vs Concurrency"
    assert titles[TTFT] == "Average Time to First Token vs Concurrency"
    assert [figures[file].axes[0].get_ylabel() for file in FILES[:4]] == [
        "P50 Inter-Token Latency (ms)",
        "Average Inter-Token Latency (ms)",
        "Request Throughput (req/s)",
        "Average Time to First Token (ms)",
    ]
    for file in FILES[:4]:
        assert figures[file].axes[0].get_xscale() == "log"
        assert [label.get_text() for label in figures[file].axes[0].get_xticklabels()] == ["1", "4"]


# The defects of Dynamo's plots. ---------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [11, 256])
def test_efficiency_is_made_of_the_tokens_that_came_not_of_200(tmp_path: Path, tokens: int) -> None:
    (result,) = save_sweep(tmp_path / "s", (4,), tokens=tokens)
    ((across, up),) = lines(drawn(tmp_path, "1")[EFFICIENCY])
    assert up == [result.metrics.output_throughput]
    assert up == [pytest.approx((result.metrics.request_throughput or 0) * tokens)]
    (benchmark,) = choose(tmp_path).benchmarks
    assert across == [benchmark.points[0].figures[TOKENS_PER_USER]]


def test_efficiency_is_per_gpu_by_the_number_there_was(tmp_path: Path) -> None:
    (result,) = save_sweep(tmp_path / "s", (4,), server={"num_devices": 8})
    figure = drawn(tmp_path)[EFFICIENCY]
    assert lines(figure)[0][1] == [(result.metrics.output_throughput or 0) / 8]
    assert figure.axes[0].get_ylabel() == "Tokens/sec per GPU"
    assert figure.texts[0].get_text() == "GPU Efficiency vs User Experience"


def test_without_a_number_of_devices_the_axis_says_per_server_and_nothing_is_divided(tmp_path: Path) -> None:
    (result,) = save_sweep(tmp_path / "s", (4,))
    figure = drawn(tmp_path)[EFFICIENCY]
    assert lines(figure)[0][1] == [result.metrics.output_throughput]
    assert figure.axes[0].get_ylabel() == "Tokens/sec per server"
    assert figure.texts[0].get_text() == "Server Efficiency vs User Experience"
    assert "The number of GPUs is not known (--num-devices)" in words(figure)


def test_where_one_number_is_not_known_all_are_per_server(tmp_path: Path) -> None:
    (a,) = save_sweep(tmp_path / "a", (4,), num_devices="8")
    (b,) = save_sweep(tmp_path / "b", (4,))
    figure = drawn(tmp_path)[EFFICIENCY]
    assert [up for _, up in lines(figure)] == [[a.metrics.output_throughput], [b.metrics.output_throughput]]
    assert figure.axes[0].get_ylabel() == "Tokens/sec per server"
    assert "The number of GPUs of b is not known" in words(figure)


def test_labels_are_drawn_as_they_are(tmp_path: Path) -> None:
    labels = ["vLLM-FP8", "_first", "a $x^2$ b", "x" * 60, "50% {agg}", r"back\slash"]
    for number, label in enumerate(labels):
        save_sweep(tmp_path / f"{number}", (4,), label=label)
    for figure in drawn(tmp_path).values():
        figure.draw_without_rendering()
        assert sorted(legend(figure)) == sorted(labels)


def test_the_concurrency_stands_beside_its_dot(tmp_path: Path) -> None:
    save_sweep(tmp_path / "s", (1, 16))
    figure = drawn(tmp_path)[EFFICIENCY]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "16"]
    assert "Numbers on dots indicate concurrency level." in words(figure)


def test_intervals_are_error_bars(tmp_path: Path) -> None:
    (result,) = save_sweep(tmp_path / "s", (4,), repeats=3)
    figures = drawn(tmp_path, "2")
    for file, key, scale in ((TTFT, ("ttft_s", "mean"), 1e3), (REQUESTS, ("request_throughput", ""), 1.0)):
        interval = result.intervals[key].scaled(scale)
        ((_, low, _, high),) = bars(figures[file].axes[0])
        value = lines(figures[file])[0][1][0]
        assert low == pytest.approx(min(interval.low, value)), file
        assert high == pytest.approx(max(interval.high, value)), file
    assert len(bars(figures[EFFICIENCY].axes[0])) == 2, "one upright and one sideways"
    assert "Bars: 95 % intervals" in words(figures[TTFT])


def test_failures_are_told_in_every_picture(tmp_path: Path) -> None:
    save_sweep(tmp_path / "s", (1, 4), failed=3)
    for figure in drawn(tmp_path).values():
        assert "6 of 56 requests FAILED; figures are of the others." in words(figure)


def test_pictures_say_where_they_come_from(tmp_path: Path) -> None:
    save_sweep(tmp_path / "s")
    assert words(drawn(tmp_path)[TTFT]).endswith(
        "Measured: 2026-01-31 14:05 · a machine · prefixlab 0.1.0 at 0123456789. "
        "Plotted: 2026-01-31 14:05 · here · prefixlab 0.1.0 · prefixlab plot"
    )


# One quantity in one picture. -----------------------------------------------------------------------------


def test_beside_aiperf_inter_token_latency_is_the_mean_per_request_of_all_and_said_so(
    tmp_path: Path,
) -> None:
    (result,) = save_sweep(tmp_path / "ours", (4,))
    theirs = save_aiperf(tmp_path / "theirs" / "c4")
    figures = drawn(tmp_path)
    assert [up for _, up in lines(figures[MEAN_ITL])] == [
        [1e3 * (result.metrics.tpot_s.mean or 0)],
        [theirs["inter_token_latency"]["avg"]],
    ]
    assert "Inter-token latency is the mean of each request here" in words(figures[MEAN_ITL])
    assert "Inter-token latency" not in words(figures[TTFT])


def test_what_nobody_measured_is_said_and_not_drawn(tmp_path: Path) -> None:
    save_sweep(tmp_path / "s", (4,), tokens=1)
    figure = drawn(tmp_path)[P50_ITL]
    assert lines(figure) == [([], [])]
    assert [text.get_text() for text in figure.axes[0].texts] == ["not measured"]


def test_ticks_that_would_touch_are_left_out(tmp_path: Path) -> None:
    save_sweep(tmp_path / "s", (1, 15, 16))
    ticks = [label.get_text() for label in drawn(tmp_path)[TTFT].axes[0].get_xticklabels()]
    assert ticks == ["1", "16"]


# Twelve benchmarks. ---------------------------------------------------------------------------------------


def test_twelve_benchmarks_differ_without_any_colour() -> None:
    assert len(LOOKS) == 12
    assert len({look.marker for look in LOOKS}) == 12
    assert len({(look.colour, look.dash, look.hollow) for look in LOOKS}) == 12


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISIONS = {
    "full": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


@pytest.mark.parametrize("vision", VISIONS)
def test_lines_of_one_dash_differ_in_colour_for_any_vision(vision: str) -> None:
    colours = dict.fromkeys(look.colour for look in LOOKS)
    for one, other in combinations(colours, 2):
        assert difference(one, other, VISIONS[vision]) > 15, f"{one} and {other}"


def difference(one: str, other: str, vision: np.ndarray) -> float:
    """CIE76, of which about 2 can just be seen."""
    a, b = (lab(vision @ linear(np.array(to_rgb(colour)))) for colour in (one, other))
    return float(np.linalg.norm(a - b))


def linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(to_xyz @ rgb / [0.9505, 1.0, 1.089], 0.0, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_benchmark_has_its_own_line(tmp_path: Path) -> None:
    for number in range(12):
        save_aiperf(tmp_path / f"b{number}" / "c4", records=False)
    figure = drawn(tmp_path)[TTFT]
    shown = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None)]
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in shown}) == 12
    assert legend(figure) == [f"b{number}" for number in range(12)]
