"""`prefixlab trace convert IN OUT`: any trace in the format that everybody reads.

Owns the verb: flags, what is printed where, the exit code.
"""

from __future__ import annotations

import argparse

SUMMARY = "rewrite a trace of any known format in Mooncake's"


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.traces.formats.format import DEFAULT_SESSION_INTERVAL_S
    from prefixlab.bench.traces.reading import FORMATS

    parser.description = (
        f"{SUMMARY}: JSON lines of timestamp (ms), input_length, output_length and hash_ids,\n"
        "with session_id and delay (ms) where there are sessions. A line holds its whole prompt,\n"
        "what its session said before included."
    )
    parser.add_argument("source", metavar="IN", help="the trace, plain or gzip; - is standard input")
    parser.add_argument(
        "target", metavar="OUT", help="where to; .gz in the name compresses, - is standard output"
    )
    parser.add_argument(
        "--format", choices=("mooncake",), default="mooncake", help="format of OUT (default: mooncake)"
    )
    parser.add_argument(
        "--from", dest="source_format", choices=tuple(FORMATS), help="format of IN (default: as it shows)"
    )
    parser.add_argument(
        "--num-requests", type=int, default=0, metavar="N", help="only the first so many (default: all)"
    )
    parser.add_argument(
        "--block-size", type=int, metavar="N", help="tokens per hash id (default: the format's, or inferred)"
    )
    parser.add_argument(
        "--session-interval",
        type=float,
        default=DEFAULT_SESSION_INTERVAL_S,
        metavar="S",
        help="seconds between the starts of sessions, where IN has no more than times within them "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--ignore-fields",
        default="",
        metavar="NAME,…",
        help="fields or columns of IN to leave out, not refuse",
    )
    parser.add_argument(
        "--sort",
        action="store_true",
        help="put requests in the order of their times, not refuse times that go back",
    )


def run(args: argparse.Namespace) -> int:
    import sys

    from prefixlab.bench.traces.reading import read_trace
    from prefixlab.bench.traces.writing import write_mooncake
    from prefixlab.cli.trace_progress import Counter

    with Counter("reading", "bytes") as counter:
        trace = read_trace(
            args.source,
            format=args.source_format,
            num_requests=args.num_requests,
            block_size=args.block_size,
            session_interval_s=args.session_interval,
            ignore_fields=[name.strip() for name in args.ignore_fields.split(",") if name.strip()],
            sort=args.sort,
            on_read=counter.update,
        )
    with Counter("writing", "requests") as counter:
        write_mooncake(trace, args.target, lambda count: counter.update(count, len(trace)))
    blocks = f", {len(trace.hash_ids):,} blocks of {trace.block_size} tokens" if trace.has_ids else ""
    sessions = f", {len(set(trace.session_ids)):,} sessions" if trace.session_ids is not None else ""
    for note in trace.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{args.target}: {len(trace):,} requests{sessions}{blocks}", file=sys.stderr)
    return 0
