"""A sweep over prefix ratios on paper: a table, `results_summary.json` and a picture.

Owns which figures stand there, and the keys, which are those of both generations of Dynamo's
`prefix_ratio_benchmark.py`; what its readers do not know stands beside them. Latencies are in milliseconds.

Invariants: one entry per ratio asked for, in that order; one that was not measured is null and says why. No
figure is an average of percentiles: those of several servers are of all their requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich import box
from rich.markup import escape
from rich.table import Table

from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.ledger.check import Verdict, first_failure
from prefixlab.bench.metrics.distribution import Distribution
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.report.figures import milliseconds, number
from prefixlab.bench.report.plot import BLUE, GRID, MUTED, ORANGE, STYLE
from prefixlab.core.errors import ConfigError

QUARTILES = (25.0, 50.0, 75.0)
SUMMARY, PICTURE = "results_summary.json", "prefix_ratio_performance.png"


@dataclass(frozen=True)
class RatioPoint:
    """One ratio.

    Attributes:
        result: None where nothing was measured, or no request succeeded.
        failure: why; empty where there is a result.
    """

    config: ServeConfig
    result: PointResult | None
    failure: str = ""

    @property
    def ratio(self) -> float:
        return self.config.prefix_ratio.prefix_ratio

    @property
    def ttft_s(self) -> Distribution:
        return Distribution(0) if self.result is None else self.result.metrics.ttft_s

    @property
    def itl_s(self) -> Distribution:
        return Distribution(0) if self.result is None else self.result.metrics.itl_s

    @property
    def output_throughput(self) -> float | None:
        return None if self.result is None else self.result.metrics.output_throughput

    @property
    def expected_hit_rate(self) -> float | None:
        return None if self.result is None else self.result.check.expected_hit_rate

    @property
    def hit_rate(self) -> float | None:
        return None if self.result is None else self.result.check.hit_rate


def ratio_points(configs: Sequence[ServeConfig], results: Sequence[PointResult]) -> list[RatioPoint]:
    """`results` may be fewer: what came after was not measured."""
    points = []
    for place, config in enumerate(configs):
        if place >= len(results):
            points.append(RatioPoint(config, None, "not measured: the sweep ended before"))
        elif not results[place].metrics.ok:
            why = first_failure(results[place].table) or "nothing was sent"
            points.append(RatioPoint(config, None, f"no request succeeded: {why}"))
        else:
            points.append(RatioPoint(config, results[place]))
    return points


def summary_keys(points: Sequence[RatioPoint]) -> dict[str, Any]:
    """What `results_summary.json` holds: lists with one entry per ratio."""
    config = points[0].config
    model = next((point.result.settings.model for point in points if point.result), config.target.model)
    keys: dict[str, Any] = {
        "prefix_ratios": [point.ratio for point in points],
        "ttft_values": [milliseconds(point.ttft_s.mean) for point in points],
        "throughput_values": [point.output_throughput for point in points],
    }
    for name in ("ttft", "itl"):
        for percent in QUARTILES:
            of: list[Distribution] = [getattr(point, f"{name}_s") for point in points]
            keys[f"{name}_p{percent:g}_values"] = [milliseconds(seconds.at(percent)) for seconds in of]
    return keys | {
        "expected_hit_rates": [point.expected_hit_rate for point in points],
        "measured_hit_rates": [point.hit_rate for point in points],
        "cache_verdicts": [point.result and point.result.check.verdict.value for point in points],
        "failed_requests": [point.result and point.result.metrics.failed for point in points],
        "failures": {f"{point.ratio:g}": point.failure for point in points if point.failure},
        "config": {
            "model": model,
            "tokenizer": config.target.tokenizer or model,
            "isl": config.dataset.random_input_len,
            "osl": config.dataset.random_output_len,
            "requests": config.dataset.num_prompts,
            "concurrency": config.load.max_concurrency,
            "initial_seed": config.dataset.seed,
            "num_prefix_prompts": config.prefix_ratio.num_prefix_prompts,
            "isl_stddev": config.prefix_ratio.isl_stddev,
            "osl_stddev": config.prefix_ratio.osl_stddev,
            "urls": list(config.request.url or [config.target.url] if not config.target.is_embedded else []),
        },
    }


def ratio_table(points: Sequence[RatioPoint]) -> Table:
    """One row per ratio."""
    table = Table(
        title="Prefix ratios: what is shared, what the cache served, what it did; latencies in ms",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    columns = ["prefix\nratio", "prefix\ntokens", "expected\nhit rate %", "measured\nhit rate %"]
    columns += [f"{name}\np{percent:g}" for name in ("TTFT", "ITL") for percent in QUARTILES]
    for column in (*columns, "output\ntok/s", "failed"):
        # fold: where there is too little room, a figure goes on in the next line and is never cut
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("cache", overflow="fold")
    for point in points:
        prefix_len, _ = point.config.prefix_ratio.lengths(point.config.dataset.random_input_len)
        cells = [f"{point.ratio:g}", f"{prefix_len:,}"]
        cells += [_percent(point.expected_hit_rate), _percent(point.hit_rate)]
        for seconds in (point.ttft_s, point.itl_s):
            cells += [number(milliseconds(seconds.at(percent)), 1) for percent in QUARTILES]
        cells.append(number(point.output_throughput, 1))
        if point.result is None:
            cells += ["", f"[red]{escape(point.failure)}[/]"]
        else:
            verdict = point.result.check.verdict
            colour = "green" if verdict is Verdict.CONSISTENT else "yellow"
            cells += [str(point.result.metrics.failed), f"[{colour}]{verdict.value}[/]"]
        table.add_row(*cells)
    return table


def _percent(rate: float | None) -> str:
    return number(None if rate is None else 100 * rate, 2)


def write_picture(path: Path, points: Sequence[RatioPoint], *, title: str) -> None:
    """TTFT, ITL, throughput and hit rate over the ratio; bands are the middle half of all requests.

    Raises:
        ConfigError: the file cannot be written.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 8))
        (ttft, itl), (throughput, hits) = figure.subplots(2, 2)
        _banded(ttft, "Time to first token", "median, ms", points, lambda point: point.ttft_s, ORANGE)
        _banded(itl, "Inter-token latency", "median, ms", points, lambda point: point.itl_s, ORANGE)
        _line(throughput, [(point.ratio, point.output_throughput) for point in points], BLUE)
        highest = max((point.output_throughput or 0.0 for point in points), default=0.0)
        _dress(throughput, "Throughput", "output tokens/s", highest=highest)
        expected = [(point.ratio, _scaled(point.expected_hit_rate, 100)) for point in points]
        measured = [(point.ratio, _scaled(point.hit_rate, 100)) for point in points]
        hits.plot([0, 1], [0, 100], linestyle=":", color=MUTED, label="prefix ratio")
        _line(hits, expected, MUTED, label="expected", hollow=True)
        _line(hits, measured, BLUE, label="measured")
        hits.legend(frameon=False, loc="upper left")
        _dress(hits, "Hit rate", "% of prompt tokens", highest=100)
        figure.suptitle(title, x=0.012, y=0.98, ha="left", fontsize=14, fontweight="bold")
        missing = [f"{point.ratio:g}" for point in points if point.result is None]
        failed = f"  NOT MEASURED: {', '.join(missing)}." if missing else ""
        footer = f"Line: median of all requests. Band: their middle half (p25 to p75).{failed}"
        figure.text(0.012, 0.012, footer, ha="left", fontsize=9, color=ORANGE if missing else MUTED)
        figure.tight_layout(rect=(0, 0.03, 1, 0.96), w_pad=3, h_pad=2)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _banded(
    axes: Any,
    name: str,
    unit: str,
    points: Sequence[RatioPoint],
    of: Callable[[RatioPoint], Distribution],
    colour: str,
) -> None:
    low, middle, high = (
        [(point.ratio, milliseconds(of(point).at(percent))) for point in points] for percent in QUARTILES
    )
    ratios = [ratio for ratio, value in middle if value is not None]
    axes.fill_between(ratios, _known(low), _known(high), color=colour, alpha=0.15, linewidth=0)
    _line(axes, middle, colour)
    _dress(axes, name, unit, highest=max(_known(high), default=0.0))


def _line(
    axes: Any,
    places: Sequence[tuple[float, float | None]],
    colour: str,
    label: str = "",
    *,
    hollow: bool = False,
) -> None:
    ratios = [ratio for ratio, value in places if value is not None]
    size, face = (11, "white") if hollow else (6, colour)  # what is hollow lies beneath, and is seen around
    axes.plot(ratios, _known(places), "o-", color=colour, mfc=face, ms=size, linewidth=2, label=label or None)


def _known(places: Sequence[tuple[float, float | None]]) -> list[float]:
    return [value for _, value in places if value is not None]


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value


def _dress(axes: Any, name: str, unit: str, *, highest: float) -> None:
    axes.set_title(name, loc="left", fontweight="bold")
    axes.set_ylabel(unit)
    axes.set_xlabel("prefix ratio")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(0, 1.1 * highest or 1.0)  # autoscaling leaves no room above
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
