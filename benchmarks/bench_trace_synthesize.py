"""`trace synthesize` against its source, and against drawing everything independently.

At factors of 1 the result is to be like the source: Kolmogorov-Smirnov distances of input, own and output
lengths, of the gaps between requests and of the rate over time; correlation of input and output; what an
ideal cache and two smaller ones find. Beside it what a synthesizer gets that draws a path in the tree of
prefixes, a length behind it, an output and a gap each for itself. Then what factors do. The seed is printed;
nothing here is a timing but the seconds.

    PREFIXLAB_TRACES=… python benchmarks/bench_trace_synthesize.py
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from _common import card, parser, print_card, print_table, rounded, write_json
from prefixlab.bench.traces.likeness import CAPACITY_SHARES, Likeness, compare
from prefixlab.bench.traces.reading import read_trace
from prefixlab.bench.traces.synthesize import SharedTree, Synthesis, synthesize
from prefixlab.bench.traces.trace import Trace

FILES = {
    "conversation": ("mooncake_conversation.jsonl.gz", None),
    "agentic, 2,000 requests": ("agentic_claude_code_weka.jsonl.gz", 2000),
}


def independently(source: Trace, num_requests: int, seed: int) -> Trace:
    """Everything drawn for itself, with replacement, from what the source has of it."""
    draw = np.random.default_rng(seed)
    n, size = len(source), source.block_size
    tree = SharedTree.of(source)
    path, own_of, output_of = (draw.integers(0, n, num_requests) for _ in range(3))
    own = (source.prompt_tokens - tree.context)[own_of]
    whole = tree.context // size * size
    depths = (whole // size)[path]
    own = np.maximum(own, 1)
    counts = depths + -(-own // size)
    starts = np.concatenate(([0], np.cumsum(counts)))
    ids = np.arange(int(starts[-1])) + int(source.hash_ids.max()) + 1
    of = np.repeat(np.arange(num_requests), depths)
    place = np.arange(len(of)) - np.repeat(np.cumsum(depths) - depths, depths)
    ids[starts[of] + place] = source.hash_ids[source.starts[path[of]] + place]
    gaps = draw.choice(np.diff(source.offsets_s), num_requests - 1) if n > 1 else np.zeros(num_requests - 1)
    return replace(
        source,
        offsets_s=np.concatenate(([0.0], np.cumsum(gaps))),
        prompt_tokens=whole[path] + own,
        output_tokens=source.output_tokens[output_of],
        starts=starts,
        hash_ids=ids,
        session_ids=None,
        turns=None,
        think_s=None,
    )


def rows(found: dict[str, Likeness]) -> list[list[object]]:
    first = next(iter(found.values()))
    columns = [first.source, *(likeness.result for likeness in found.values())]
    names = [name for name in asdict(first.source) if name != "lru_hit_rates"]
    table: list[list[object]] = [[name, *(f"{getattr(of, name):,.5g}" for of in columns)] for name in names]
    for place, share in enumerate(CAPACITY_SHARES):
        table.append([f"LRU at {share:.0%} of blocks", *(f"{of.lru_hit_rates[place]:.5f}" for of in columns)])
    for name in ("input", "own", "output", "gaps", "times"):
        table.append([f"KS {name}", "0", *(f"{getattr(likeness, name):.4f}" for likeness in found.values())])
    return table


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seed", type=int, default=1)
    args = arguments.parse_args()
    folder = Path(os.environ.get("PREFIXLAB_TRACES", "../shared/traces"))
    facts = card("src", "benchmarks")
    print_card(facts)
    document: dict[str, Any] = {"machine": facts, "seed": args.seed}
    for name, (file, limit) in FILES.items():
        if not (folder / file).exists():
            print(f"{folder / file} is not there: {name} is left out", file=sys.stderr)
            continue
        source = read_trace(folder / file, num_requests=limit or 0)
        print(f"{name}: {len(source):,} requests, seed {args.seed}")
        began_s = time.monotonic()
        likely = synthesize(source, Synthesis(), args.seed)
        took_s = time.monotonic() - began_s
        print(f"synthesized in {took_s:.2f} s\n")
        thrice = synthesize(source, Synthesis(num_requests=3 * len(source)), args.seed)
        found = {
            "as many": compare(source, likely),
            "three times as many": compare(source, thrice),
            "independent": compare(source, independently(source, len(source), args.seed)),
        }
        print_table([name, "source", *found], rows(found))
        factors = {
            "prefix x 1.5": Synthesis(prefix_len_multiplier=1.5),
            "prefix x 0.5": Synthesis(prefix_len_multiplier=0.5),
            "prompt x 1.5": Synthesis(prompt_len_multiplier=1.5),
            "output x 1.5": Synthesis(output_len_multiplier=1.5),
            "roots x 1.5": Synthesis(prefix_root_multiplier=1.5),
            "speedup 2": Synthesis(speedup=2.0),
        }
        changed = {
            words: compare(source, synthesize(source, how, args.seed)) for words, how in factors.items()
        }
        print_table(
            ["result / source", "context", "own", "output", "duration", "ideal hit rate, tokens"],
            [
                [
                    words,
                    *(
                        f"{getattr(likeness.result, figure) / getattr(likeness.source, figure):.4f}"
                        for figure in ("mean_context", "mean_own", "mean_output", "duration_s")
                    ),
                    f"{likeness.result.ideal_hit_rate_tokens:.5f}",
                ]
                for words, likeness in changed.items()
            ],
        )
        document[name] = {
            "seconds": rounded(took_s),
            "at_1": {words: plain(asdict(likeness)) for words, likeness in found.items()},
            "factors": {words: plain(asdict(likeness)) for words, likeness in changed.items()},
        }
    write_json(args.json, document)


def plain(values: Any) -> Any:
    """Rounded, and without what JSON has no word for."""
    if isinstance(values, dict):
        return {name: plain(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    if isinstance(values, float):
        return rounded(values) if math.isfinite(values) else None
    return values


if __name__ == "__main__":
    main()
