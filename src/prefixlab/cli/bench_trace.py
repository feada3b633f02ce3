"""`prefixlab bench trace FILE`: replay a recorded trace at its own times, check hits against an ideal cache.

Owns the verb: flags, what is printed where, the exit code. The run is `prefixlab.bench.runs.trace`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixlab.bench.config.trace import TraceConfig
    from prefixlab.bench.runs.trace import TraceRun
    from prefixlab.bench.targets.endpoint import Endpoint
    from prefixlab.bench.workloads.trace import Fitting, Trace

SUMMARY = (
    "replay a trace in Mooncake's format (.jsonl or .jsonl.gz), its sharing of prefixes reproduced exactly"
)
EMBEDDED_LENGTH_SCALE = 0.25
"""Traces are recorded on models and machines far larger than the one embedded."""


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.config.target import TargetConfig
    from prefixlab.bench.config.trace import TraceConfig
    from prefixlab.cli.embedded import add_engine_flags
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\nWithout --base-url, --host or --port an embedded engine is started and measured."
    )
    parser.add_argument("file", metavar="FILE", help="the trace")
    add_flags(parser, TargetConfig, "server to measure")
    add_flags(parser, TraceConfig, "trace")
    add_engine_flags(parser, TargetConfig, TraceConfig)


def run(args: argparse.Namespace) -> int:
    from prefixlab.bench.config.target import TargetConfig
    from prefixlab.bench.config.trace import TraceConfig
    from prefixlab.bench.workloads.trace import fit_trace, read_trace
    from prefixlab.cli.bench_target import check_can_write, endpoint_under_test, target_config
    from prefixlab.core.config import resolve

    target = target_config(args)
    config = resolve(TraceConfig, vars(args), {})
    output = check_can_write("--output-file", config.output_file)
    trace = read_trace(Path(args.file), num_requests=config.num_prompts, block_size=config.block_size)
    scale = config.length_scale or (EMBEDDED_LENGTH_SCALE if target.is_embedded else 1.0)
    fitted, fitting = fit_trace(trace, length_scale=scale, max_len=config.max_len)
    if config.dry_run:
        print(describe(fitted, fitting, config.speedup))
        return 0
    with endpoint_under_test(target, args, TargetConfig, TraceConfig) as endpoint:
        replayed = measure(endpoint, config, trace, scale)
    show(endpoint, replayed)
    if replayed.interrupted:
        raise KeyboardInterrupt
    report(endpoint, replayed, config, output)
    return 0


def measure(endpoint: Endpoint, config: TraceConfig, trace: Trace, scale: float) -> TraceRun:
    from prefixlab.bench.report.progress import ProgressBar
    from prefixlab.bench.runs.trace import run_trace

    with ProgressBar(len(trace.requests)) as bar:
        bar.describe(trace.name)
        return run_trace(
            endpoint,
            trace,
            length_scale=scale,
            max_len=config.max_len,
            speedup=config.speedup,
            seed=config.seed,
            on_progress=bar.update,
        )


def show(endpoint: Endpoint, replayed: TraceRun) -> None:
    """To stdout; also what had finished when the run was interrupted."""
    from prefixlab.bench.report.console import result_block

    print(
        result_block(
            [
                ("Backend:", endpoint.backend),
                ("Model:", endpoint.model),
                ("Trace:", replayed.trace.name),
                ("Block size (tokens):", replayed.trace.block_size),
                ("Page size (tokens):", endpoint.page_size),
                ("Traffic request rate:", f"trace, speedup {replayed.speedup:g}"),
                ("Arrival stamps:", replayed.health.stamps),
            ],
            replayed.metrics,
            replayed.check,
            open_loop=True,
            notes=replayed.notes,
        )
    )


def report(endpoint: Endpoint, replayed: TraceRun, config: TraceConfig, output: Path | None) -> None:
    """Write the JSON line, then judge as `bench warm-cache` does. An interrupted run gets neither."""
    from prefixlab.bench.report.console import counted
    from prefixlab.bench.report.jsonl import append_line, trace_row
    from prefixlab.bench.verdict import Verdict
    from prefixlab.core.errors import GateError, TargetError

    if output is not None:
        append_line(output, trace_row(replayed, endpoint))
    if not replayed.metrics.ok:
        raise TargetError("no request of the trace succeeded")
    if config.strict and (replayed.check.verdict is not Verdict.CONSISTENT or replayed.metrics.failed):
        failed = f"{replayed.metrics.failed} of {counted(replayed.metrics.planned, 'request')} failed"
        raise GateError(f"--strict: cached tokens {replayed.check.verdict.value}, {failed}")


def describe(trace: Trace, fitting: Fitting, speedup: float) -> str:
    """What would be sent, in one line, and what was done to the trace to make it that."""
    from prefixlab.bench.report.console import counted

    requests = trace.requests
    prompt = sum(request.num_prompt_tokens for request in requests)
    output = sum(request.num_output_tokens for request in requests)
    longest = max(request.num_prompt_tokens + request.num_output_tokens for request in requests)
    scaled = f", lengths scaled by {fitting.length_scale:g}" if fitting.length_scale != 1 else ""
    cut = f", {counted(fitting.num_cut, 'request')} cut to {fitting.max_len:,}" if fitting.num_cut else ""
    return (
        f"{trace.name}: {counted(len(requests), 'request')} over {requests[-1].offset_s / speedup:,.1f} s, "
        f"{counted(prompt, 'prompt token')} and {counted(output, 'output token')}, longest {longest:,}, "
        f"blocks of {trace.block_size}{scaled}{cut}"
    )
