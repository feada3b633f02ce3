"""`prefixlab trace convert IN OUT`: any trace in the format that everybody reads.

Owns the verb: flags, what is printed where, the exit code.
"""

from __future__ import annotations

import argparse

SUMMARY = "rewrite a trace of any known format in Mooncake's"


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.config.traces.reading import ReadingConfig
    from prefixlab.core.config import add_flags

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
        "--num-requests", type=int, default=0, metavar="N", help="only the first so many (default: all)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT where it is there already")
    add_flags(parser, ReadingConfig, "what to make of IN")


def run(args: argparse.Namespace) -> int:
    import sys

    from prefixlab.bench.config.traces.reading import ReadingConfig
    from prefixlab.bench.traces.writing import block_size_to_give, check_target, write_mooncake
    from prefixlab.cli.trace_progress import Counter
    from prefixlab.core.config import resolve

    check_target(args.source, args.target, force=args.force)
    with Counter("reading", "bytes") as counter:
        config = resolve(ReadingConfig, vars(args), {})
        trace = config.read(args.source, counter.update, num_requests=args.num_requests)
    with Counter("writing", "requests") as counter:
        write_mooncake(trace, args.target, lambda count: counter.update(count, len(trace)))
    blocks = f", {len(trace.hash_ids):,} blocks of {trace.block_size} tokens" if trace.has_ids else ""
    sessions = f", {len(set(trace.session_ids)):,} sessions" if trace.session_ids is not None else ""
    for note in trace.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{args.target}: {len(trace):,} requests{sessions}{blocks}", file=sys.stderr)
    if hint := block_size_to_give(trace):
        print(f"note: {args.target}: {hint}", file=sys.stderr)
    return 0
