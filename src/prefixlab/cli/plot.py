"""`prefixlab plot DATA_DIR`: benchmarks side by side over the concurrency, as five pictures and a summary.

Owns the verb: where the pictures go. What is drawn is `prefixlab.bench.report.pictures.benchmarks`'s.

Invariant: it reads results and writes pictures; where there is nothing to draw it writes nothing, and exits
with 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixlab.cli.main import Parser

SUMMARY = "five pictures over the concurrency, several benchmarks side by side, and SUMMARY.txt"
PLOTS = "plots"


def configure(parser: Parser) -> None:
    parser.description = (
        f"{SUMMARY}.\n\n"
        "P50 and average inter-token latency, request throughput and average TTFT against the concurrency,\n"
        "and tokens/s per GPU against tokens/s per user: the pictures of Dynamo's benchmarks, from measured\n"
        "tokens and the real number of GPUs.\n\n"
        "  prefixlab bench sweep --base-url URL --max-concurrency 1,2,5,10,50,100,250 --label vLLM-FP8\n"
        "  prefixlab plot runs --num-devices 8\n\n"
        "DATA_DIR holds sweeps of prefixlab, each a benchmark by the name of its --label (else of its\n"
        "folder; of several --target one each), or what Dynamo's scripts leave of aiperf:\n"
        "NAME/cN/…/profile_export_aiperf.json. Both may lie there."
    )
    parser.add_argument("data_dir", metavar="DATA_DIR", help="folder of the results")
    parser.add_argument(
        "--output-dir", metavar="DIR", default=None, help=f"where pictures go (default: DATA_DIR/{PLOTS})"
    )
    parser.add_argument(
        "--benchmark-name",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="draw only these, in this order (default: all; at most 12)",
    )
    parser.add_argument(
        "--num-devices",
        nargs="+",
        action="extend",
        default=[],
        metavar="N",
        help="GPUs of the server, as 8, or of each as NAME=8 OTHER=4 (default: what servers said, or "
        "--metadata num_devices=N when it was measured; not known: the picture is per server)",
    )


def run(args: argparse.Namespace) -> int:
    from prefixlab.bench.report.pictures.benchmarks.chosen import choose
    from prefixlab.bench.report.pictures.benchmarks.figures import five_figures
    from prefixlab.bench.report.pictures.benchmarks.summary import SUMMARY as TEXT
    from prefixlab.bench.report.pictures.benchmarks.summary import summary_text
    from prefixlab.bench.report.pictures.provenance import Provenance
    from prefixlab.bench.report.pictures.style import save
    from prefixlab.core.errors import ConfigError

    data_dir = Path(args.data_dir)
    output_dir = data_dir / PLOTS if args.output_dir is None else Path(args.output_dir)
    chosen = choose(data_dir, args.benchmark_name, args.num_devices)
    now = Provenance.now()
    figures = five_figures(chosen.benchmarks, now)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for file, figure in figures.items():
            save(figure, output_dir / file)
        (output_dir / TEXT).write_text(summary_text(chosen, data_dir, output_dir, now), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output-dir {output_dir} cannot be written: {error.strerror}") from None
    for file in (*figures, TEXT):
        print(output_dir / file)
    if chosen.left_out:
        first, *more = chosen.left_out
        rest = f" (and {len(more)} more, see {output_dir / TEXT})" if more else ""
        print(f"left out: {first}{rest}", file=sys.stderr)
    return 0
