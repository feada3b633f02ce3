"""`prefixlab trace fetch NAME`: download a public trace, checked and resumable.

Owns the verb: flags, what is printed where, the exit code. The path of the trace goes to stdout, so that
`prefixlab trace analyze $(prefixlab trace fetch NAME)` works.
"""

from __future__ import annotations

import argparse

SUMMARY = "download a public trace"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"{SUMMARY}. What came so far is kept, and gone on with. A checksum that is not known here\n"
        "is recorded at the first download, and later ones are held to it."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which; --list tells what there is")
    parser.add_argument("--to", default=".", metavar="DIR", help="where to (default: here)")
    parser.add_argument("--list", action="store_true", help="what there is, whose, and under which licence")


def run(args: argparse.Namespace) -> int:
    import sys
    from pathlib import Path

    from prefixlab.bench.traces.fetch import fetch
    from prefixlab.bench.traces.public import PUBLIC_TRACES
    from prefixlab.cli.trace_progress import Counter
    from prefixlab.core.config import did_you_mean
    from prefixlab.core.errors import ConfigError

    if args.list:
        print(listing())
        return 0
    if args.name not in PUBLIC_TRACES:
        given = "no name is given" if args.name is None else f"there is no public trace {args.name!r}"
        near = did_you_mean(args.name or "", PUBLIC_TRACES) if args.name else ""
        raise ConfigError(f"{given}{near}; prefixlab trace fetch --list tells what there is")
    trace = PUBLIC_TRACES[args.name]
    print(f"{trace.url}\nlicence: {trace.licence}; cite: {trace.cite}", file=sys.stderr)
    with Counter(trace.file_name, "bytes") as counter:
        fetched = fetch(trace, Path(args.to), counter.update)
    if fetched.was_there:
        told = "was there, sha256 as it must be" if fetched.checked_against else "was there, sha256 unknown"
    elif fetched.checked_against:
        told = "sha256 as it must be"
    else:
        told = f"sha256 not published: {fetched.sha256} is recorded in {fetched.path.name}.sha256"
    print(f"{fetched.num_bytes:,} bytes, {told}", file=sys.stderr)
    print(fetched.path)
    return 0


def listing() -> str:
    """The table of public traces, as aligned text."""
    from prefixlab.bench.traces.public import PUBLIC_TRACES

    rows = [("name", "format", "licence", "bytes", "sha256", "cite", "URL")]
    rows += [
        (
            trace.name,
            trace.format,
            trace.licence,
            "unknown" if trace.num_bytes is None else f"{trace.num_bytes:,}",
            "unknown: recorded at first download" if trace.sha256 is None else trace.sha256[:12],
            trace.cite,
            trace.url,
        )
        for trace in PUBLIC_TRACES.values()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
