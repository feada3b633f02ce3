"""What a million records cost: writing them as lines, Parquet and CSV, reading them, summing them up.

Records are made up: exponential gaps, a closed loop of 256 in flight. Every stage runs in a process of
its own, so that its peak memory (ru_maxrss) is its own; that of a writing stage includes the table it writes.
Stages take turns within each repeat.

    lines, write      RecordTable → Records → JSON lines, as a run's decoder writes them (one process of many)
    lines, read       JSON lines → RecordTable
    summarise         RecordTable → every figure of a point: metrics, intervals, verdicts
    read, summarise   JSON lines → every figure, in one process: what `bench serve` does when a run ends
    parquet, write    RecordTable → Parquet; the same for csv
    parquet, read     Parquet → RecordTable

    python benchmarks/bench_records.py --json benchmarks/results/records.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from _common import card, parser, print_card, print_table, rounded, summary, write_json
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics.point import PointSettings, evaluate
from prefixlab.bench.records.line import encode
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.store import read_parquet, write_csv, write_parquet
from prefixlab.bench.records.table import CODE, FLAGS, LABELS, NUMBERS, TIMES, Labels, RecordTable

IN_FLIGHT = 256
ROWS_AT_ONCE = 10_000
LINES, PARQUET, CSV = "records.jsonl", "records.parquet", "records.csv"


def make_table(num_records: int, num_tokens: int, seed: int) -> RecordTable:
    """A closed loop of IN_FLIGHT, every answer `num_tokens` tokens in as many chunks."""
    rng = np.random.default_rng(seed)
    gaps_s = rng.exponential(0.02, (num_records, num_tokens))
    gaps_s[:, 0] += 0.1
    np.cumsum(gaps_s, axis=1, out=gaps_s)
    sent_s = np.zeros(num_records)
    for row in range(IN_FLIGHT, num_records, IN_FLIGHT):
        before = slice(row - IN_FLIGHT, row - IN_FLIGHT + len(sent_s[row : row + IN_FLIGHT]))
        sent_s[row : row + IN_FLIGHT] = sent_s[before] + gaps_s[before, -1]
    gaps_s += sent_s[:, None]
    arrivals_s = gaps_s.reshape(-1)
    nothing = np.full(num_records, np.nan)
    columns = dict.fromkeys(TIMES, nothing) | dict.fromkeys(NUMBERS, np.full(num_records, -1))
    columns |= dict.fromkeys(FLAGS, np.ones(num_records, dtype=np.bool_))
    zero = np.zeros(num_records, dtype=np.int64)
    columns |= dict.fromkeys(("segment", "client", "num_merged_reads", "num_retries"), zero)
    columns |= dict.fromkeys(("planned_prompt_tokens", "num_prompt_tokens"), zero + 64)
    columns |= {"planned_output_tokens": zero + num_tokens, "counts_estimated": zero.astype(np.bool_)}
    columns |= {"intended_s": sent_s, "sent_s": sent_s, "first_byte_s": arrivals_s[::num_tokens]}
    columns |= {"last_s": arrivals_s[num_tokens - 1 :: num_tokens]}
    unnamed = Labels(np.full(num_records, -1, dtype=np.int32), ())
    return RecordTable(
        request_id=[f"request-{row}" for row in range(num_records)],
        outcome=np.full(num_records, CODE[Outcome.OK], dtype=np.uint8),
        arrival_start=np.arange(num_records + 1, dtype=np.int64) * num_tokens,
        arrivals_s=arrivals_s,
        counts=np.ones(len(arrivals_s), dtype=np.int32),
        errors={},
        **{
            **columns,
            **dict.fromkeys(LABELS, unnamed),
            "finish_reason": Labels(unnamed.codes + 1, ("length",)),
        },
    )


def write_lines(path: Path, table: RecordTable) -> None:
    with path.open("wb") as file:
        for start in range(0, len(table), ROWS_AT_ONCE):
            records = table.slice(start, min(start + ROWS_AT_ONCE, len(table))).to_records()
            file.writelines(map(encode, records))


def summarise(table: RecordTable) -> None:
    settings = PointSettings(
        backend="openai",
        model="m",
        num_prompts=len(table),
        open_loop=False,
        date="",
        max_concurrency=IN_FLIGHT,
    )
    result = evaluate(settings, [table], ClientHealth())
    assert result.metrics.ok == len(table), "a record was lost"
    assert result.metrics.itl_s.count == len(table.arrivals_s) - len(table), "a token was lost"


def stage(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Run one stage in this process: seconds, and this process's peak memory."""
    folder = Path(args.folder)

    def made() -> RecordTable:
        return make_table(args.records, args.tokens, args.seed)

    prepare: Callable[[], RecordTable | None]
    work: Callable[[RecordTable | None], object]
    prepare, work = {
        "lines, write": (made, lambda table: write_lines(folder / LINES, table)),
        "lines, read": (lambda: None, lambda _: RecordTable.read([folder / LINES])),
        "summarise": (made, summarise),
        "read, summarise": (lambda: None, lambda _: summarise(RecordTable.read([folder / LINES]))),
        "parquet, write": (made, lambda table: write_parquet(folder / PARQUET, table)),
        "parquet, read": (lambda: None, lambda _: read_parquet([folder / PARQUET])),
        "csv, write": (made, lambda table: write_csv(folder / CSV, table)),
    }[name]
    table = prepare()
    start = time.perf_counter()
    work(table)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


STAGES = (
    "lines, write",
    "lines, read",
    "summarise",
    "read, summarise",
    "parquet, write",
    "parquet, read",
    "csv, write",
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--records", type=int, default=1_000_000, help="default: %(default)s")
    options.add_argument("--tokens", type=int, default=128, help="per record (default: %(default)s)")
    options.add_argument("--repeats", type=int, default=5, help="of every stage (default: %(default)s)")
    options.add_argument("--seed", type=int, default=42)
    options.add_argument("--stages", default=";".join(STAGES), help="which, by name, ; between")
    options.add_argument("--folder", help="where the files go, and stay (default: a temporary one)")
    options.add_argument("--stage", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.stage:
        print(json.dumps(stage(args.stage, args)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        measure(args, Path(args.folder or temporary))


def measure(args: argparse.Namespace, folder: Path) -> None:
    facts = card("src/prefixlab/bench", "benchmarks/bench_records.py")
    print_card(facts)
    print(f"{args.records:,} records of {args.tokens} tokens each, seed {args.seed}\n")
    seconds, peaks = defaultdict(list), defaultdict(list)
    for _ in range(args.repeats):
        for name in args.stages.split(";"):
            command = [sys.executable, __file__, "--stage", name, "--folder", str(folder)]
            command += [f"--{key}={getattr(args, key)}" for key in ("records", "tokens", "seed")]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = json.loads(ran.stdout)
            seconds[name].append(figures["seconds"])
            peaks[name].append(figures["peak_gib"])
            print(f"{name}: {figures['seconds']:.1f} s, {figures['peak_gib']:.2f} GiB", file=sys.stderr)
    rows = [[name, summary(seconds[name]), summary(peaks[name])] for name in seconds]
    print_table(["stage", "seconds", "peak memory, GiB"], rows)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("records.*"))}
    print_table(["file", "MB"], [[name, rounded(size / 1e6)] for name, size in sizes.items()])
    stages = {name: {"seconds": s, "peak_gib": peak} for name, s, peak in rows}
    document = {"card": facts, "records": args.records, "tokens": args.tokens, "seed": args.seed}
    write_json(args.json, {**document, "stages": stages, "file_bytes": sizes})


if __name__ == "__main__":
    main()
