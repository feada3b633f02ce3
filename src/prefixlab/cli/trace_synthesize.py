"""`prefixlab trace synthesize FILE OUT`: a trace made from a trace.

Owns the verb: flags, what is printed where. The method is `prefixlab.bench.traces.synthesize`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixlab.bench.traces.likeness import Likeness

SUMMARY = "make a trace from a trace: longer, shorter, faster, with more or less sharing"


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.config.traces.reading import ReadingConfig
    from prefixlab.bench.traces.synthesize import Synthesis
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\nWhat belongs together stays together: lengths of prompt and output, the turns of a "
        "conversation,\nbursts. The result is in Mooncake's format; how like the source it is, is printed."
    )
    parser.add_argument("file", metavar="FILE", help="the source, in any format that trace analyze reads")
    parser.add_argument(
        "out", metavar="OUT", help="file to write: .jsonl, or .jsonl.gz; - for standard output"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT where it is there already")
    add_flags(parser, Synthesis, "what to make")
    add_flags(parser, ReadingConfig, "what to make of FILE")
    parser.add_argument("--seed", type=int, default=0, help="seed of all chance (default: 0)")
    parser.add_argument("--json", default=None, metavar="FILE", help="write the comparison here as JSON")


def run(args: argparse.Namespace) -> int:
    import dataclasses
    import sys

    import msgspec

    from prefixlab.bench.config.traces.reading import ReadingConfig
    from prefixlab.bench.traces.likeness import compare
    from prefixlab.bench.traces.synthesize import Synthesis, synthesize
    from prefixlab.bench.traces.writing import block_size_to_give, check_target, write_mooncake
    from prefixlab.cli.bench_target import check_can_write
    from prefixlab.cli.trace_progress import Counter
    from prefixlab.core.config import resolve
    from prefixlab.core.errors import ConfigError

    if args.seed < 0:
        raise ConfigError(f"--seed must not be negative, not {args.seed}")
    how = resolve(Synthesis, vars(args), {})
    json_file = check_can_write("--json", args.json)
    check_target(args.file, args.out, force=args.force)
    with Counter("reading", "bytes") as counter:
        source = resolve(ReadingConfig, vars(args), {}).read(args.file, counter.update)
    with Counter("synthesizing", "requests") as counter:
        result = synthesize(source, how, args.seed, counter.update)
    with Counter("writing", "requests") as counter:
        write_mooncake(result, args.out, lambda count: counter.update(count, len(result)))
    if hint := block_size_to_give(result):
        print(f"note: {args.out}: {hint}", file=sys.stderr)
    likeness = compare(source, result)
    print(comparison(likeness), file=sys.stderr if args.out == "-" else sys.stdout)
    if json_file is not None:
        document = {"seed": args.seed, **dataclasses.asdict(how), **dataclasses.asdict(likeness)}
        json_file.write_bytes(msgspec.json.encode(document) + b"\n")
    return 0


def comparison(likeness: Likeness) -> str:
    """Source and result side by side."""
    import io

    from rich.console import Console
    from rich.table import Table

    from prefixlab.bench.traces.likeness import CAPACITY_SHARES

    table = Table(box=None, pad_edge=False)
    for heading in ("", "source", "result", "KS distance"):
        table.add_column(heading, justify="left" if not heading else "right")
    source, result = likeness.source, likeness.result
    distances = {"Mean input length": likeness.input, "Mean output length": likeness.output}
    distances |= {"of which nobody else's": likeness.own}
    rows = {
        "Requests": (f"{source.num_requests:,}", f"{result.num_requests:,}"),
        "Duration (s)": (f"{source.duration_s:,.1f}", f"{result.duration_s:,.1f}"),
        "Mean input length": (f"{source.mean_input:,.1f}", f"{result.mean_input:,.1f}"),
        "of which shared": (f"{source.mean_context:,.1f}", f"{result.mean_context:,.1f}"),
        "of which nobody else's": (f"{source.mean_own:,.1f}", f"{result.mean_own:,.1f}"),
        "Mean output length": (f"{source.mean_output:,.1f}", f"{result.mean_output:,.1f}"),
        "Correlation of input and output": (f"{source.pearson:.4f}", f"{result.pearson:.4f}"),
        "of their ranks": (f"{source.spearman:.4f}", f"{result.spearman:.4f}"),
        "Ideal hit rate, blocks": (
            f"{source.ideal_hit_rate_blocks:.5f}",
            f"{result.ideal_hit_rate_blocks:.5f}",
        ),
        "Ideal hit rate, tokens": (
            f"{source.ideal_hit_rate_tokens:.5f}",
            f"{result.ideal_hit_rate_tokens:.5f}",
        ),
    }
    for share, *rates in zip(CAPACITY_SHARES, source.lru_hit_rates, result.lru_hit_rates, strict=True):
        rows[f"LRU hit rate at {share:.0%} of the source's blocks"] = (f"{rates[0]:.5f}", f"{rates[1]:.5f}")
    for name, (left, right) in rows.items():
        found = distances.get(name)
        table.add_row(name, left, right, "" if found is None else f"{found:.4f}")
    table.add_row("Time between requests", "", "", f"{likeness.gaps:.4f}")
    table.add_row("Rate over time", "", "", f"{likeness.times:.4f}")
    text = io.StringIO()
    Console(file=text, width=110, highlight=False).print(table)
    return text.getvalue().rstrip()
