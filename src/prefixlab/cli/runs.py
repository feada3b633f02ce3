"""`prefixlab runs [DIR]`: what was measured, and questions to all of it.

Owns the verb: flags, what goes where, the exit code. Rows and queries are `prefixlab.bench.saved`'s.

Invariant: a run that cannot be read is named on stderr, and the others are listed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefixlab.bench.saved.catalogue import Catalogue

SUMMARY = "list what was measured; ask all of it in SQL"
NO_QUERY = ""
MIN_WIDTH = 100
WIDTH_OF_FILES = 240


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.config.report import RUNS
    from prefixlab.bench.saved.catalogue import COLUMNS

    listed = "\n".join(f"  {name:<17}{what}" for name, what in COLUMNS.items())
    parser.description = (
        f"{SUMMARY}.\n\nColumns:\n{listed}\n\nand every key of summary.json (p99_itl_ms, duration, label, "
        "…), every option as config_… and what\nis known of machine and server as env_…. Units at the end of "
        "a name may be left out: ttft_p99."
    )
    parser.add_argument(
        "dir", nargs="?", default=str(RUNS), metavar="DIR", help=f"where to look (default: {RUNS}/)"
    )
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only these; also with !=, <, <=, >, >= and ~ (contains); may be given several times",
    )
    parser.add_argument("--sort", metavar="KEY", help="from low to high (default: newest last)")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument(
        "--columns",
        metavar="KEY,KEY,…",
        help="what to show; with + in front beside what is always shown; all: everything there is",
    )
    parser.add_argument(
        "--points", action="store_true", help="show every point of a sweep, in place of one line"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: an object per run or row")
    form.add_argument("--csv", action="store_true", help="print CSV")
    parser.add_argument(
        "--sql",
        nargs="?",
        const=NO_QUERY,
        metavar="QUERY",
        help="answer this, of the views runs, requests, metrics and timeline; without a query: tell their "
        "columns, with examples",
    )


def run(args: argparse.Namespace) -> int:
    import sys
    from pathlib import Path

    from prefixlab.bench.saved.catalogue import read_catalogue
    from prefixlab.core.errors import ConfigError

    listing = [name for name in ("filter", "sort", "reverse", "columns", "points") if getattr(args, name)]
    if args.sql is not None and listing:
        raise ConfigError(f"--{listing[0]} is for the list of runs: leave it out with --sql")
    catalogue = read_catalogue(Path(args.dir))
    for sentence in catalogue.broken:
        print(f"prefixlab: {sentence}", file=sys.stderr)
    if args.sql == NO_QUERY:
        sys.stdout.write(described(catalogue))
    elif args.sql is not None:
        answer(catalogue, args)
    else:
        show(catalogue, args)
    return 0


def show(catalogue: Catalogue, args: argparse.Namespace) -> None:
    import sys

    from prefixlab.bench.saved.filters import filtered, ordered
    from prefixlab.bench.saved.listing import picked, sweeps_folded, that_fit

    rows = filtered(catalogue.rows, args.filter)
    if args.sort is not None:
        rows = ordered(rows, args.sort, falling=args.reverse)
    elif args.reverse:
        rows.reverse()
    names = columns_of(catalogue, args.columns, is_table=not (args.json or args.csv))
    shown = rows if args.points or args.json or args.csv else sweeps_folded(catalogue, rows)
    if args.columns is None and not (args.json or args.csv):
        told = [name for name in names if any(row.get(name) is not None for row in shown)] or names
        names = that_fit(told, shown, table_width())
        if len(names) < len(told):
            hidden = ", ".join(name for name in told if name not in names)
            print(f"no room for {hidden}: --columns chooses, --columns all shows everything", file=sys.stderr)
    put(names, picked(shown, names), args)
    if not rows:
        print(f"none of {len(catalogue.rows)} runs passes --filter", file=sys.stderr)
    ways = dict.fromkeys(way for row in rows if (way := catalogue.how_to_go_on(row)) is not None)
    for way in ways:
        print(f"to go on: {way}", file=sys.stderr)


def answer(catalogue: Catalogue, args: argparse.Namespace) -> None:
    from prefixlab.bench.saved.sql import RunsDatabase

    with RunsDatabase(catalogue) as database:
        names, rows = database.ask(args.sql)
    put(names, rows, args)


def described(catalogue: Catalogue) -> str:
    """The views, their columns, examples."""
    import shutil
    import textwrap

    from prefixlab.bench.saved.sql import EXAMPLES, VIEWS, RunsDatabase

    width = min(MIN_WIDTH, shutil.get_terminal_size().columns)
    text = ""
    with RunsDatabase(catalogue) as database:
        for view in VIEWS:
            columns = ", ".join(f"{name} {kind}" for name, kind in database.columns(view))
            wrapped = textwrap.fill(
                columns, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
            )
            text += f"{view}\n{wrapped}\n\n"
    return text + "examples\n" + "".join(f'  prefixlab runs --sql "{query}"\n' for query in EXAMPLES)


def columns_of(catalogue: Catalogue, words: str | None, *, is_table: bool) -> list[str]:
    """What --columns names. ConfigError for what no run has."""
    from prefixlab.bench.saved.filters import column_of
    from prefixlab.bench.saved.listing import IN_TABLES, SHOWN

    usual = IN_TABLES if is_table else SHOWN
    if words is None:
        return list(usual)
    if words.strip() == "all":
        return list(dict.fromkeys(name for row in catalogue.rows for name in row))
    is_more = words.startswith("+")
    each = [word.strip() for word in words.removeprefix("+").split(",")]
    named = [column_of(word, catalogue.rows, "--columns") for word in each if word]
    return list(dict.fromkeys([*(usual if is_more or not named else ()), *named]))


def table_width() -> int:
    """Of the terminal; of what is no terminal, wide."""
    import shutil
    import sys

    terminal = max(MIN_WIDTH, shutil.get_terminal_size().columns)
    return terminal if sys.stdout.isatty() else WIDTH_OF_FILES


def put(names: Sequence[str], rows: Sequence[Sequence[Any]], args: argparse.Namespace) -> None:
    """On stdout, in the form that is asked for."""
    import sys

    from prefixlab.bench.saved.listing import as_csv, as_json, as_table

    if args.json:
        text = as_json(names, rows)
    elif args.csv:
        text = as_csv(names, rows)
    else:
        text = as_table(names, rows, table_width())
    sys.stdout.write(text)
