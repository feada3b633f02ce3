"""What analysing a trace costs: seconds and peak memory, of reading it and of each step after that.

Every trace is analysed in a process of its own, so that its peak memory (ru_maxrss) is its own; traces take
turns within each repeat. Public ones come from the folder that PREFIXLAB_TRACES names, and are left out where
absent. Made-up ones: `loose`, blocks drawn by Zipf's law without any order, the worst there is, as no stretch
repeats another; and `plain`, the same at 20,000 references, which a list of blocks in order of use is put
through too, at 20 capacities: what each of all capacities would cost without one pass.

    read      file → Trace
    reuse     Trace → distances of every reference
    curve     distances → hits at every capacity
    analyze   Trace → all figures (reuse and curve included)

    python benchmarks/bench_trace_analyze.py --json benchmarks/results/trace_analyze.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from _common import ROOT, card, parser, print_card, print_table, rounded, summary, write_json
from prefixlab.bench.traces.analyze import analyze
from prefixlab.bench.traces.hit_rates import measure_reuse
from prefixlab.bench.traces.reading import read_trace
from prefixlab.bench.traces.trace import Trace

PUBLIC = {
    "sharegpt300": "sharegpt300_qwen3_b16.jsonl.gz",
    "conversation": "mooncake_conversation.jsonl.gz",
    "agentic": "agentic_claude_code_weka.jsonl.gz",
}
MADE_UP = ("plain", "loose")
PLAIN_REFERENCES = 20_000
BLOCKS_PER_REQUEST = 32
STEPS = ("read", "reuse", "curve", "analyze", "capacity by capacity")

T = TypeVar("T")


def folder() -> Path:
    return Path(os.environ.get("PREFIXLAB_TRACES") or ROOT.parent / "shared" / "traces")


def loose_trace(num_references: int, seed: int) -> Trace:
    """Requests of blocks that follow no order."""
    num_requests = num_references // BLOCKS_PER_REQUEST
    ids = np.random.default_rng(seed).zipf(1.2, num_requests * BLOCKS_PER_REQUEST) % num_references
    return Trace(
        "loose",
        block_size=16,
        offsets_s=np.arange(num_requests, dtype=np.float64),
        prompt_tokens=np.full(num_requests, 16 * BLOCKS_PER_REQUEST, np.int64),
        output_tokens=np.ones(num_requests, np.int64),
        starts=np.arange(num_requests + 1, dtype=np.int64) * BLOCKS_PER_REQUEST,
        hash_ids=ids.astype(np.int64),
    )


def plain_hits(trace: Trace, capacity: int) -> int:
    """Hit blocks of one capacity, request by request."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for begin, end in zip(trace.starts[:-1].tolist(), trace.starts[1:].tolist(), strict=True):
        leading = True
        for block in trace.hash_ids[begin:end].tolist():
            leading = leading and block in cache
            hits += leading
            cache[block] = None
            cache.move_to_end(block)
            if len(cache) > capacity:
                cache.popitem(last=False)
    return hits


def timed(call: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def measure_one(name: str, references: int, seed: int) -> dict[str, Any]:
    """One trace in this process."""
    seconds = {}
    if name in PUBLIC:
        trace, seconds["read"] = timed(lambda: read_trace(folder() / PUBLIC[name]))
    else:
        trace = loose_trace(references if name == "loose" else PLAIN_REFERENCES, seed)
    peak_before = peak_gib()
    reuse, seconds["reuse"] = timed(lambda: measure_reuse(trace))
    curve, seconds["curve"] = timed(reuse.curve)
    num_runs = len(reuse.starts)
    peak_reuse = peak_gib()
    del reuse
    analysis, seconds["analyze"] = timed(lambda: analyze(trace))
    facts = {
        "requests": len(trace),
        "references": len(trace.hash_ids),
        "unique_blocks": curve.unique_blocks,
        "runs": num_runs,
        "capacities": len(curve.capacities),
        "ideal_by_blocks": round(curve.ideal.rate_by_blocks, 5),
        "ideal_by_tokens": round(curve.ideal.rate_by_tokens, 5),
    }
    assert analysis.figures.cache is not None
    lru = {str(point.asked): round(point.hit_rate_by_blocks, 4) for point in analysis.figures.cache.of_unique}
    if name == "plain":
        capacities = curve.capacities.tolist()[:: max(1, len(curve.capacities) // 20)]
        found, spent = timed(lambda: [plain_hits(trace, capacity) for capacity in capacities])
        assert found == [curve.at(capacity).hit_blocks for capacity in capacities], "the two ways disagree"
        seconds["capacity by capacity"] = spent / len(capacities) * len(curve.capacities)
    peaks = {"trace": peak_before, "reuse": peak_reuse, "analyze": peak_gib()}
    return {"seconds": seconds, "peak_gib": peaks, "facts": facts, "lru": lru}


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=5, help="of every trace (default: %(default)s)")
    options.add_argument(
        "--references", type=int, default=4_000_000, help="of the trace `loose` (default: %(default)s)"
    )
    options.add_argument("--seed", type=int, default=42)
    options.add_argument("--traces", default=",".join((*MADE_UP, *PUBLIC)), help="default: %(default)s")
    options.add_argument("--one", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.one:
        print(json.dumps(measure_one(args.one, args.references, args.seed)))
        return
    facts = card("src/prefixlab/bench/traces", "benchmarks/bench_trace_analyze.py")
    print_card(facts)
    names = []
    for name in args.traces.split(","):
        if name in PUBLIC and not (folder() / PUBLIC[name]).exists():
            print(f"left out: {folder() / PUBLIC[name]} is not there", file=sys.stderr)
        else:
            names.append(name)
    report(args, facts, names)


def report(args: argparse.Namespace, facts: dict[str, Any], names: list[str]) -> None:
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(args.repeats):
        for name in names:
            command = [sys.executable, __file__, "--one", name]
            command += ["--references", str(args.references), "--seed", str(args.seed)]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[name].append(json.loads(ran.stdout))
            print(f"{name}: analyze {runs[name][-1]['seconds']['analyze']:.3f} s", file=sys.stderr)
    rows, document = [], {}
    for name in names:
        steps = [step for step in STEPS if step in runs[name][0]["seconds"]]
        seconds = {step: summary([run["seconds"][step] for run in runs[name]]) for step in steps}
        rows += [[f"{name}: {step}", seconds[step]] for step in steps]
        peaks = {
            part: summary([run["peak_gib"][part] for run in runs[name]]) for part in runs[name][0]["peak_gib"]
        }
        first = runs[name][0]
        document[name] = {**first["facts"], "lru": first["lru"], "seconds": seconds, "peak_gib": peaks}
    print_table(["step", "seconds"], rows)
    peak_rows = [
        [name, *(f"{document[name]['peak_gib'][part].median:.3g}" for part in ("trace", "reuse", "analyze"))]
        for name in names
    ]
    print_table(["peak memory so far, GiB", "with the trace", "after reuse", "after all"], peak_rows)
    keys = ("requests", "references", "unique_blocks", "runs", "ideal_by_blocks", "ideal_by_tokens")
    print_table(
        ["trace", *keys],
        [
            [
                name,
                *(
                    rounded(document[name][key]) if "by" in key else f"{document[name][key]:,}"
                    for key in keys
                ),
            ]
            for name in names
        ],
    )
    write_json(args.json, {"card": facts, "seed": args.seed, "traces": document})


if __name__ == "__main__":
    main()
