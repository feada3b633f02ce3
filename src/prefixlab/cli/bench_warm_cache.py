"""`prefixlab bench warm-cache`: what 0 to 99 % shared prefix does to throughput and time to first token.

Owns the verb: flags, what is printed where, the exit code. The run is `prefixlab.bench.warm_cache`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixlab.bench.config import TargetConfig, WarmCacheConfig, WarmCacheOptions
    from prefixlab.bench.endpoint import Endpoint
    from prefixlab.bench.records import Record
    from prefixlab.bench.report.progress import ProgressBar
    from prefixlab.bench.report.sweep import PooledPoint
    from prefixlab.bench.warm_cache import PointRun
    from prefixlab.bench.workloads.warm_cache import PointShape

SUMMARY = "sweep the share of a common prefix: throughput, latency, and proof that the cache hit as intended"
PLOT_ENDINGS = (".png", ".svg", ".pdf")
TABLE_WIDTH = 120


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.config import TargetConfig, WarmCacheConfig
    from prefixlab.cli.embedded import add_engine_flags
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\nWithout --base-url, --host or --port an embedded engine is started and measured."
    )
    add_flags(parser, TargetConfig, "server to measure")
    add_flags(parser, WarmCacheConfig, "sweep")
    add_engine_flags(parser, TargetConfig, WarmCacheConfig)


def run(args: argparse.Namespace) -> int:
    import asyncio

    from prefixlab.bench.config import TargetConfig, WarmCacheConfig
    from prefixlab.cli.bench_target import check_can_write, server_under_test, target_config
    from prefixlab.core.config import resolve

    target = target_config(args)
    config = resolve(WarmCacheConfig, vars(args), {})
    options = config.options(embedded=target.is_embedded)
    output = check_can_write("--output-file", config.output_file)
    plot = check_can_write("--plot", config.plot, PLOT_ENDINGS)
    if config.dry_run:
        print(plan(options, target.page_size))
        return 0
    with server_under_test(target, args, TargetConfig, WarmCacheConfig) as url:
        endpoint, runs = asyncio.run(measure(target, options, url, output))
    report(endpoint, options, runs, config, plot, place=place_of(target))
    return 0


async def measure(
    target: TargetConfig, options: WarmCacheOptions, url: str, output: Path | None
) -> tuple[Endpoint, list[PointRun]]:
    from prefixlab.bench.endpoint import open_endpoint
    from prefixlab.bench.report.progress import ProgressBar
    from prefixlab.bench.warm_cache import run_warm_cache
    from prefixlab.cli.bench_target import tokenizer_maker
    from prefixlab.core.clock import MonotonicClock

    num_requests = options.repeats * len(options.pcts) * options.num_prompts
    async with open_endpoint(target, url, tokenizer_maker(target), MonotonicClock()) as endpoint:
        with ProgressBar(num_requests) as bar:
            listener = Watcher(endpoint, options, output, bar)
            return endpoint, await run_warm_cache(endpoint, options, listener)


class Watcher:
    """Shows progress, and writes each point to the output file as soon as it is measured."""

    def __init__(
        self, endpoint: Endpoint, options: WarmCacheOptions, output: Path | None, bar: ProgressBar
    ) -> None:
        self._endpoint, self._options, self._output, self._bar = endpoint, options, output, bar

    def point_started(self, shape: PointShape, repeat: int, num_requests: int) -> None:
        self._bar.describe(f"{shape.pct} % shared, repeat {repeat + 1} of {self._options.repeats}")

    def request_done(self, record: Record) -> None:
        self._bar.request_done(record)

    def point_done(self, run: PointRun) -> None:
        from prefixlab.bench.report.jsonl import append_line, warm_cache_row
        from prefixlab.bench.report.sweep import milliseconds, number

        if self._output is not None:
            append_line(self._output, warm_cache_row(run, self._options, self._endpoint))
        self._bar.say(
            f"{run.shape.pct:>3} % shared, repeat {run.repeat + 1}: "
            f"TTFT {number(milliseconds(run.metrics.ttft_s.median), 1)} ms, "
            f"{number(run.metrics.total_throughput)} tok/s, "
            f"cached {number(run.check.cached_tokens)} of {number(run.check.expected_cached_tokens)} "
            f"expected, {run.check.verdict.value}, cold start {run.cold_start.coldness.value}"
        )


def place_of(target: TargetConfig) -> str:
    """What the figures belong to: this machine, or a server whose machine we do not know."""
    from prefixlab.bench.environment import machine_name

    return machine_name() if target.is_embedded else f"server at {target.url}"


def report(
    endpoint: Endpoint,
    options: WarmCacheOptions,
    runs: list[PointRun],
    config: WarmCacheConfig,
    plot: Path | None,
    *,
    place: str,
) -> None:
    """Print everything, draw the picture, then judge.

    Raises:
        TargetError: at some point no request succeeded.
        GateError: with --strict, a point is not consistent, or a request failed.
    """
    from rich.console import Console

    from prefixlab.bench.report.plot import write_plot
    from prefixlab.bench.report.sweep import cache_table, latency_table, pool_points, throughput_table

    points = pool_points(runs)
    for point in points:
        print(block(endpoint, options, point), end="\n\n")
    console = Console(width=TABLE_WIDTH, highlight=False)
    for table in (cache_table(points), throughput_table(points), latency_table(points)):
        console.print(table)
    print(setting(endpoint, options))
    if options.repeats > 1:
        print("order of points: as given, then shuffled anew for each repeat")
    print(f"measured on {place}")
    for detail in dict.fromkeys(run.cold_start.detail for run in runs if run.salt):
        print(f"prompts were salted: {detail}")
    if plot is not None:
        title = f"What a shared prefix is worth: {endpoint.facts.model or 'model'} on {place}"
        write_plot(plot, points, title=title, setting=setting(endpoint, options))
        print(f"picture: {plot}")
    judge(points, strict=config.strict)


def block(endpoint: Endpoint, options: WarmCacheOptions, point: PooledPoint) -> str:
    from prefixlab.bench.report.console import result_block

    cold = ", ".join(sorted({run.cold_start.coldness.value for run in point.runs}))
    return result_block(
        [
            ("Backend:", endpoint.backend),
            ("Model:", endpoint.facts.model),
            ("Shared prefix (%):", point.shape.pct),
            ("Prefix / suffix (tokens):", f"{point.shape.prefix_len} / {point.shape.suffix_len}"),
            ("Page size (tokens):", endpoint.page_size),
            ("Cold start:", cold),
            ("Repeats:", len(point.runs)),
            ("Traffic request rate:", "closed loop"),
            ("Max request concurrency:", options.max_concurrency),
        ],
        point.metrics,
        point.check,
        notes=[*point.notes, *([point.check.detail] if point.check.detail else [])],
    )


def setting(endpoint: Endpoint, options: WarmCacheOptions) -> str:
    """What makes the figures comparable, in one line."""
    parts = [
        f"{options.num_prompts} prompts of {options.total_tokens:,} tokens",
        f"{options.output_len} output tokens",
        f"concurrency {options.max_concurrency}",
        "page size unknown" if endpoint.page_size is None else f"page size {endpoint.page_size}",
        f"{options.repeats} repeat{'s' if options.repeats > 1 else ''}",
        f"seed {options.seed}",
    ]
    if endpoint.expects_miss:
        parts.append(f"no hit expected ({endpoint.expects_miss})")
    return " · ".join(parts)


def judge(points: list[PooledPoint], *, strict: bool) -> None:
    from prefixlab.bench.verdict import Verdict
    from prefixlab.core.errors import GateError, TargetError

    empty = [point.shape.pct for point in points if not point.metrics.ok]
    if empty:
        raise TargetError(f"no request succeeded at {percents(empty)}: {'; '.join(points[0].notes)}")
    wrong = [p.shape.pct for p in points if p.check.verdict is not Verdict.CONSISTENT or p.metrics.failed]
    if strict and wrong:
        raise GateError(f"--strict: not consistent, or requests failed, at {percents(wrong)}")


def percents(pcts: list[int]) -> str:
    return ", ".join(f"{pct} %" for pct in pcts)


def plan(options: WarmCacheOptions, page_size: int | None) -> str:
    """The points and what they cost, without asking any server."""
    from prefixlab.bench.workloads.warm_cache import shape_point

    lines = [f"{'shared %':>8}  {'prefix':>8}  {'suffix':>8}  {'cached/prompt':>13}  {'to compute':>12}"]
    total_compute = 0
    for pct in options.pcts:
        shape = shape_point(pct, options.total_tokens)
        cached = None if page_size is None else shape.expected_cached_tokens(page_size)
        compute = shape.prefix_len + options.num_prompts * (options.total_tokens - (cached or 0))
        total_compute += compute
        lines.append(
            f"{pct:>8}  {shape.prefix_len:>8,}  {shape.suffix_len:>8,}  "
            f"{'?' if cached is None else format(cached, ','):>13}  {compute:>12,}"
        )
    num_requests = options.repeats * len(options.pcts) * options.num_prompts
    unknown = "" if page_size is not None else " at most (give --page-size to know what the cache will serve)"
    lines.append(
        f"{options.repeats} repeat{'s' if options.repeats > 1 else ''}: {num_requests:,} requests, "
        f"{options.repeats * total_compute:,} prompt tokens to compute{unknown}, "
        f"{num_requests * options.output_len:,} output tokens; each point also sends up to 3 short probes"
    )
    return "\n".join(lines)
