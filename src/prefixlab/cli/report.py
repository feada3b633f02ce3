"""`prefixlab report RUN…`: runs as one HTML file.

Owns the verb: which runs, where the file goes. What is on the page is `prefixlab.bench.report.html`'s.

Invariant: it reads runs and writes one file; with `-o -` standard output holds the page and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixlab.cli.main import Parser

SUMMARY = "one HTML file of a run, a sweep or several: curves, distributions, timeline, comparison"
STDOUT = "-"
DEFAULT_FILE = "report.html"


def configure(parser: Parser) -> None:
    parser.description = (
        f"{SUMMARY}.\n\n"
        "The file holds all it shows and asks nobody for anything: mail it, open it anywhere, print it.\n"
        "Charts answer to pointer and keyboard, and each has its figures as a table below.\n"
        "\n"
        "  prefixlab report                         the newest run or sweep in runs/\n"
        "  prefixlab report runs/sweep-20260101     all points of a sweep\n"
        "  prefixlab report runs/before runs/after  both, and the second compared with the first"
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folder of a run, or of a sweep: all its points (default: the newest in runs/)",
    )
    parser.add_argument(
        "-o",
        "--output",
        default=DEFAULT_FILE,
        metavar="FILE",
        help=f"where the page goes; - is standard output (default: {DEFAULT_FILE})",
    )


def run(args: argparse.Namespace) -> int:
    from prefixlab.bench.report.html.page import report
    from prefixlab.bench.report.html.words import size
    from prefixlab.cli.bench_target import check_can_write
    from prefixlab.core.errors import ConfigError

    to_stdout = args.output == STDOUT
    file = None if to_stdout else check_can_write("--output", args.output)
    paths = [Path(run) for run in args.runs] or [newest()]
    page = report(paths).encode("utf-8")
    if file is None:
        sys.stdout.buffer.write(page)
        return 0
    try:
        file.write_bytes(page)
    except OSError as error:
        raise ConfigError(f"--output {file} cannot be written: {error.strerror}") from None
    print(f"{', '.join(map(str, paths))}: {file} ({size(len(page))}); open it in a browser", file=sys.stderr)
    return 0


def newest() -> Path:
    """The run or sweep in `runs/` that was begun last. ConfigError if there is none."""
    from prefixlab.bench.config.report import RUNS
    from prefixlab.bench.records.run_dir import CONFIG
    from prefixlab.core.errors import ConfigError

    begun = [path for path in RUNS.glob("*") if (path / CONFIG).is_file()]
    if not begun:
        raise ConfigError(
            f"there is no run in {RUNS}/: name the folder of one, or measure first, as with "
            "prefixlab bench serve --base-url URL"
        )
    return max(begun, key=lambda path: (path / CONFIG).stat().st_mtime)
