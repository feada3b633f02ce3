"""`prefixlab trace analyze FILE`: what a trace is like, and what caches of which size find of it.

Owns the verb: flags, what goes where, progress. The figures are `prefixlab.bench.traces.analyze`'s.

Invariant: where the JSON goes to standard output, nothing else does.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from prefixlab.bench.config.traces.analyze import AnalyzeConfig
    from prefixlab.bench.traces.analyze import Analysis
    from prefixlab.bench.traces.trace import Trace

SUMMARY = "what a trace is like: lengths, arrivals, who shares what, and hit rates against cache size"
STDOUT = "-"
PLOT_ENDINGS = (".png", ".svg", ".pdf")
TABLE_WIDTH = 120


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.config.traces.analyze import AnalyzeConfig
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\nHit rates are of one cache that everything goes through in order, for every size in "
        "one pass;\na block is a hit where all before it in its prompt are."
    )
    parser.add_argument("file", metavar="FILE", help="the trace, compressed or not; - for standard input")
    add_flags(parser, AnalyzeConfig)
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        default=None,
        metavar="FILE",
        help="write the figures to FILE as JSON; without FILE to standard output, in place of the tables",
    )


def run(args: argparse.Namespace) -> int:
    import sys

    from prefixlab.bench.config.traces.analyze import AnalyzeConfig
    from prefixlab.bench.report.trace import as_json
    from prefixlab.cli.bench_target import check_can_write
    from prefixlab.core.config import resolve

    config = resolve(AnalyzeConfig, vars(args), {})
    plot = check_can_write("--plot", config.plot, PLOT_ENDINGS)
    to_stdout = args.json == STDOUT
    json_file = None if to_stdout else check_can_write("--json", args.json)
    analysis = analyze_file(args.file, config)
    if to_stdout:
        sys.stdout.write(as_json(analysis.figures))
    else:
        show(analysis)
    if json_file is not None:
        write(json_file, as_json(analysis.figures))
    if plot is not None:
        from prefixlab.bench.report.pictures.provenance import Provenance
        from prefixlab.bench.report.pictures.trace import write_trace_plot

        write_trace_plot(plot, analysis, Provenance.now())
    return 0


def analyze_file(file: str, config: AnalyzeConfig) -> Analysis:
    from prefixlab.bench.traces.analyze import analyze
    from prefixlab.cli.trace_progress import Counter

    trace = read(file, config)
    config.check_against(trace)
    with Counter("analyzing", "blocks") as counter:
        return analyze(
            trace,
            config.capacities(trace.block_size),
            kv_bytes_per_token=config.kv_bytes_per_token,
            on_progress=counter.update,
        )


def read(file: str, config: AnalyzeConfig) -> Trace:
    from prefixlab.cli.trace_progress import Counter

    with Counter("reading", "bytes") as counter:
        return config.read(file, counter.update, num_requests=config.num_requests)


def show(analysis: Analysis) -> None:
    from rich.console import Console

    from prefixlab.bench.report.trace import show_analysis

    console = Console()
    # Where nobody watches, tables are as wide as they are made for; a narrow terminal folds them.
    show_analysis(console if console.is_terminal else Console(width=TABLE_WIDTH), analysis)


def write(file: Path, text: str) -> None:
    from prefixlab.core.errors import ConfigError

    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {file} cannot be written: {error.strerror}") from None
