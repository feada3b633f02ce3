"""A sweep over prefix ratios on paper: a table, and `results_summary.json`.

Owns which figures stand there, and the keys, which are those of both generations of Dynamo's
`prefix_ratio_benchmark.py`; what its readers do not know stands beside them. Latencies are in milliseconds.

Invariants: one entry per ratio asked for, in that order; one that was not measured is null and says why. No
figure is an average of percentiles: those of several servers are of all their requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.ledger.check import Verdict, first_failure
from prefixlab.bench.ledger.ledger import verdict_word
from prefixlab.bench.metrics.distribution import Distribution
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.report.figures import milliseconds, number

QUARTILES = (25.0, 50.0, 75.0)
SUMMARY = "results_summary.json"


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
        "cache_verdicts": [point.result and _verdict(point.result) for point in points],
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
            verdict = _verdict(point.result)
            colour = "green" if verdict == Verdict.CONSISTENT.value else "yellow"
            cells += [str(point.result.metrics.failed), f"[{colour}]{verdict}[/]"]
        table.add_row(*cells)
    return table


def _verdict(result: PointResult) -> str:
    return verdict_word(result.check, result.ledger)


def _percent(rate: float | None) -> str:
    return number(None if rate is None else 100 * rate, 2)
