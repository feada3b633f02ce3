"""`prefixlab bench warm-cache`: what 0 to 99 % shared prefix does to throughput and time to first token.

Owns the verb: flags, where results go, the exit code. The run is `prefixlab.bench.runs.warm_cache`.

Invariant: what was measured is shown, also when the run ends early.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixlab.bench.config.target import TargetConfig
    from prefixlab.bench.config.warm_cache import WarmCacheOptions
    from prefixlab.bench.loadgen.driver import Progress
    from prefixlab.bench.report.progress import ProgressBar
    from prefixlab.bench.report.sweep import PooledPoint
    from prefixlab.bench.runs.warm_cache import PointRun
    from prefixlab.bench.targets.endpoint import Endpoint
    from prefixlab.bench.workloads.warm_cache import PointShape

SUMMARY = "sweep the share of a common prefix: throughput, latency, and proof that the cache hit as intended"
PLOT_ENDINGS = (".png", ".svg", ".pdf")
TABLE_WIDTH = 120


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.config.target import TargetConfig
    from prefixlab.bench.config.warm_cache import WarmCacheConfig
    from prefixlab.cli.embedded import add_engine_flags
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\nWithout --base-url, --host or --port an embedded engine is started and measured."
    )
    add_flags(parser, TargetConfig, "server to measure")
    add_flags(parser, WarmCacheConfig, "sweep")
    add_engine_flags(parser, TargetConfig, WarmCacheConfig)


def run(args: argparse.Namespace) -> int:
    from prefixlab.bench.config.target import TargetConfig
    from prefixlab.bench.config.warm_cache import WarmCacheConfig
    from prefixlab.bench.report.warm_cache import plan_text
    from prefixlab.cache.config import CacheConfig
    from prefixlab.cli.bench_target import check_can_write, endpoint_under_test, target_config
    from prefixlab.core.config import resolve

    target = target_config(args)
    config = resolve(WarmCacheConfig, vars(args), {})
    options = config.options(embedded=target.is_embedded)
    outputs = Outputs(
        check_can_write("--output-file", config.output_file),
        check_can_write("--plot", config.plot, PLOT_ENDINGS),
    )
    if config.dry_run:
        page_size = resolve(CacheConfig, vars(args)).page_size if target.is_embedded else target.page_size
        print(plan_text(options, page_size))
        return 0
    with endpoint_under_test(target, args, TargetConfig, WarmCacheConfig) as endpoint:
        points = measure(endpoint, options, outputs, place_of(target, endpoint), target.kv_events)
    judge(points, strict=config.strict)
    return 0


@dataclass(frozen=True)
class Outputs:
    """Files to write; None where none is wanted."""

    lines: Path | None
    plot: Path | None


def measure(
    endpoint: Endpoint,
    options: WarmCacheOptions,
    outputs: Outputs,
    place: str,
    kv_events: Sequence[str] = (),
) -> list[PooledPoint]:
    """Measure and show; what was measured is shown also on the way out with an error, or interrupted."""
    from prefixlab.bench.report.progress import ProgressBar
    from prefixlab.bench.report.sweep import pool_points
    from prefixlab.bench.runs.warm_cache import run_warm_cache

    num_runs = options.repeats * len(options.pcts)
    with ProgressBar(num_runs * options.num_prompts) as bar:
        watcher = Watcher(endpoint, options, outputs.lines, bar)
        bar.describe("trial request")
        try:
            run_warm_cache(endpoint, options, watcher, kv_events=kv_events)
        finally:
            bar.stop()
            points = pool_points(watcher.runs)
            if points:
                show(endpoint, options, points, outputs.plot, place)
            whole = sum(not run.interrupted for run in watcher.runs)
            if watcher.runs and whole < num_runs:
                bar.say(f"ended early: {whole} of {num_runs} points and repeats were measured")
    return points


class Watcher:
    """Keeps what was measured, writes it to the output file at once, and shows progress."""

    def __init__(
        self, endpoint: Endpoint, options: WarmCacheOptions, output: Path | None, bar: ProgressBar
    ) -> None:
        self._endpoint, self._options, self._output, self._bar = endpoint, options, output, bar
        self.runs: list[PointRun] = []

    def point_started(self, shape: PointShape, repeat: int, num_requests: int) -> None:
        self._bar.describe(f"{shape.pct} % shared, repeat {repeat + 1} of {self._options.repeats}")

    def progress(self, progress: Progress) -> None:
        self._bar.update(progress)

    def point_done(self, run: PointRun) -> None:
        from prefixlab.bench.report.jsonl import append_line, warm_cache_row
        from prefixlab.bench.report.warm_cache import progress_line

        self.runs.append(run)
        if self._output is not None and not run.interrupted:
            append_line(self._output, warm_cache_row(run, self._options, self._endpoint))
        self._bar.say(progress_line(run))


def show(
    endpoint: Endpoint,
    options: WarmCacheOptions,
    points: list[PooledPoint],
    plot: Path | None,
    place: str,
) -> None:
    """To stdout, and the picture."""
    from rich.console import Console

    from prefixlab.bench.report.warm_cache import setting_line, show_sweep

    show_sweep(Console(width=TABLE_WIDTH, highlight=False), endpoint, options, points, place)
    if plot is not None:
        from prefixlab.bench.report.pictures.provenance import Provenance
        from prefixlab.bench.report.pictures.warm_cache import write_warm_cache_plot

        title = f"What a shared prefix is worth: {endpoint.model or 'model'}, {place}"
        setting, now = setting_line(endpoint, options), Provenance.now()
        write_warm_cache_plot(plot, points, title=title, setting=setting, provenance=now)
        print(f"picture: {plot}")


def place_of(target: TargetConfig, endpoint: Endpoint) -> str:
    """What the figures belong to: this machine, a server whose machine we do not know, or none."""
    from prefixlab.bench.report.environment import machine_name

    if endpoint.simulated is not None:
        return endpoint.simulated
    return f"measured on {machine_name() if target.is_embedded else f'server at {target.url}'}"


def judge(points: list[PooledPoint], *, strict: bool) -> None:
    """Turn what was found into an exit code.

    Raises:
        TargetError: at some point no request succeeded.
        GateError: with --strict, a point is not consistent, or a request failed.
    """
    from prefixlab.core.errors import GateError, TargetError

    empty = [point for point in points if not point.metrics.ok]
    if empty:
        raise TargetError(f"no request succeeded at {_percents(empty)}: {'; '.join(empty[0].notes)}")
    wrong = _failures(points) + _mismatches(points)
    if strict and wrong:
        raise GateError(f"--strict: {'; '.join(wrong)}")


def _failures(points: list[PooledPoint]) -> list[str]:
    """One sentence for each point at which requests failed."""
    from prefixlab.bench.ledger.check import first_failure

    return [
        f"{point.metrics.failed} of {point.metrics.planned} requests failed at {point.shape.pct} %: "
        f"{first_failure(record for run in point.runs for record in run.records)}"
        for point in points
        if point.metrics.failed
    ]


def _mismatches(points: list[PooledPoint]) -> list[str]:
    """One sentence for each verdict other than consistent, with the points that have it."""
    wrong = [point for point in points if not point.is_consistent]
    return [
        f"cached tokens {words} at {_percents([point for point in wrong if point.verdict_words == words])}"
        for words in dict.fromkeys(point.verdict_words for point in wrong)
    ]


def _percents(points: list[PooledPoint]) -> str:
    return ", ".join(f"{point.shape.pct} %" for point in points)
