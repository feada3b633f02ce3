from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.prefix_ratio import PrefixRatioConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.report.pictures.prefix_ratio import PICTURE, prefix_ratio_figure, write_prefix_ratio_plot
from prefixlab.bench.report.prefix_ratio import QUARTILES, RatioPoint
from tests.bench.points import a_point


def config(ratio: float) -> ServeConfig:
    return ServeConfig(
        target=TargetConfig(base_url="http://here"),
        dataset=DatasetConfig(dataset_name="prefix-ratio"),
        prefix_ratio=PrefixRatioConfig(prefix_ratio=ratio),
    )


def a_ratio(ratio: float, *, repeats: int = 1) -> RatioPoint:
    return RatioPoint(config(ratio), a_point(repeats=repeats, percentiles=(25.0, 75.0, 99.0)))


def drawn(points: list[RatioPoint]) -> Figure:
    return prefix_ratio_figure(points, title="a model")


def band(axes: Axes, at: float) -> list[float] | None:
    for collection in axes.collections:
        if isinstance(collection, PolyCollection):
            heights = [float(y) for x, y in collection.get_paths()[0].vertices if abs(x - at) < 1e-9]
            return [min(heights), max(heights)]
    return None


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def test_lines_are_medians_and_bands_the_middle_half_of_all_values() -> None:
    points = [a_ratio(0.1), a_ratio(0.9)]
    for axes, name in zip(drawn(points).axes, ("ttft_s", "itl_s"), strict=False):
        of = getattr(points[0], name)
        low, middle, high = (1e3 * (of.at(percent) or 0) for percent in QUARTILES)
        assert np.asarray(axes.lines[0].get_ydata()).tolist() == [middle, middle]
        assert np.asarray(axes.lines[0].get_xdata()).tolist() == [0.1, 0.9]
        assert band(axes, 0.1) == pytest.approx([low, high])
        assert legend(axes) == ["median of all values", "middle half (p25 to p75)"]


def test_throughput_has_its_interval_where_there_are_repeats() -> None:
    points = [a_ratio(0.1, repeats=3), a_ratio(0.9, repeats=3)]
    assert points[0].result is not None
    interval = points[0].result.intervals["output_throughput", ""]
    axes = drawn(points).axes[2]
    assert band(axes, 0.1) == pytest.approx([interval.low, interval.high])
    assert legend(axes) == ["all repeats together", "95 % interval over the repeats"]
    assert band(drawn([a_ratio(0.1)]).axes[2], 0.1) is None


def test_a_ratio_that_was_not_measured_is_named(tmp_path: Path) -> None:
    points = [a_ratio(0.1), RatioPoint(config(0.5), None, "why"), a_ratio(0.9)]
    figure = drawn(points)
    assert any("NOT MEASURED: 0.5." in text.get_text() for text in figure.texts)
    assert np.asarray(figure.axes[0].lines[0].get_xdata()).tolist() == [0.1, 0.9]
    write_prefix_ratio_plot(tmp_path / PICTURE, points, title="a model")
    assert (tmp_path / "prefix_ratio_performance.png").read_bytes().startswith(b"\x89PNG")
