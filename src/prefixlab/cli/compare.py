"""`prefixlab compare A B`: whether B differs from A, figure by figure, and how sure that is.

Owns the verb: flags, what goes where. What is compared, and how, is `prefixlab.bench.compare`'s.

Invariant: where the JSON goes to standard output, nothing else does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from prefixlab.bench.compare.comparison import Comparison
    from prefixlab.bench.compare.config import LookConfig
    from prefixlab.bench.compare.figures import Figure

SUMMARY = "is run B different from run A: every figure with its interval, and one verdict"
TABLE_WIDTH = 140
WHAT_SIDES_ARE = (
    "A and B are run directories (of a run, or of a sweep, whose points are matched by what they set), "
    "folders that hold\nseveral runs of one setting (repeats), or result files: of prefixlab, vLLM, SGLang, "
    "guidellm or aiperf.\nSeveral paths with commas between are repeats. - is standard input."
)


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.compare.config import CompareConfig
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\n{WHAT_SIDES_ARE}\n\nA figure is better or worse if its interval leaves out 0 and it "
        "changed by more than the margin; there is no\ndifference if the whole interval lies within the "
        "margin; else it is undecided. Three repeats or more on\neach side count as one value each, and know "
        "what changes from one run to the next: three tell a change of 5 % where\nruns are 1 % apart, about "
        "seven that there is none of 2 %. Of fewer, blocks of requests are drawn again, in pairs\nwhere both "
        "sent the same requests."
    )
    add_sides(parser)
    add_flags(parser, CompareConfig)


def add_sides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="the baseline")
    parser.add_argument("b", metavar="B", help="what is compared with it")
    parser.add_argument(
        "--json", action="store_true", default=False, help="print the result as JSON in place of the tables"
    )


def run(args: argparse.Namespace) -> int:
    import sys

    from prefixlab.bench.compare.config import CompareConfig
    from prefixlab.bench.compare.report import as_json, show_comparison
    from prefixlab.core.config import resolve

    config = resolve(CompareConfig, vars(args), {})
    comparison = compared(args, config, config.chosen(), config.margin_share)
    if args.json:
        sys.stdout.write(as_json(comparison))
    else:
        show_comparison(wide_console(), comparison)
    return 0


def compared(
    args: argparse.Namespace, config: LookConfig, figures: Sequence[Figure], margin: float
) -> Comparison:
    from prefixlab.bench.compare.comparison import compare
    from prefixlab.bench.compare.side import STDIN, open_side
    from prefixlab.core.errors import ConfigError

    if args.a == args.b == STDIN:
        raise ConfigError("A and B cannot both be standard input")
    return compare(
        open_side(args.a),
        open_side(args.b),
        figures=figures,
        margin=margin,
        confidence=config.level,
        seed=config.seed,
    )


def wide_console() -> Console:
    """Where nobody watches, tables are as wide as they are made for; a narrow terminal folds them."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)
