"""Time to first token at 90 % shared prefix against 0 %, on the embedded engine.

Runs `prefixlab bench warm-cache --pcts 0,90` as a user would, several repeats in rotated order, and reports
the ratio of median TTFT per repeat. The ceiling is the share of prompt tokens that must still be computed:
prefill cannot be saved beyond that, and attention over the cached prefix, the decode steps of others and the
HTTP path come on top.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import card, parser, print_card, print_table, summary, write_json


def sweep(total_tokens: int, max_concurrency: int, repeats: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        command = [sys.executable, "-m", "prefixlab.cli.main", "bench", "warm-cache", "--strict"]
        command += ["--pcts", "0,90", "--total-tokens", str(total_tokens), "--repeats", str(repeats)]
        command += ["--max-concurrency", str(max_concurrency), "--output-file", str(rows)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in rows.read_text().splitlines()]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--total-tokens", type=int, nargs="+", default=[2048, 4096])
    arguments.add_argument("--max-concurrency", type=int, nargs="+", default=[1, 4])
    arguments.add_argument("--repeats", type=int, default=5)
    args = arguments.parse_args()

    facts = card("src", "benchmarks/bench_ttft.py")
    print_card(facts)
    results, table = [], []
    for total_tokens in args.total_tokens:
        for concurrency in args.max_concurrency:
            rows = sweep(total_tokens, concurrency, args.repeats)
            ttft_ms: dict[int, list[float]] = {0: [], 90: []}
            for row in sorted(rows, key=lambda row: row["repeat"]):
                ttft_ms[int(row["shared_prefix_pct"])].append(row["median_ttft_ms"])
            ratios = [warm / cold for cold, warm in zip(ttft_ms[0], ttft_ms[90], strict=True)]
            warm_row = next(row for row in rows if row["shared_prefix_pct"] == 90)
            cached = warm_row["cached_tokens"] / warm_row["completed"]
            ceiling = 1 - cached / total_tokens
            results.append(
                {
                    "total_tokens": total_tokens,
                    "max_concurrency": concurrency,
                    "ttft_0_ms": summary(ttft_ms[0]),
                    "ttft_90_ms": summary(ttft_ms[90]),
                    "ratio": summary(ratios),
                    "ratio_ceiling": ceiling,
                }
            )
            table.append(
                [
                    f"{total_tokens:,}",
                    concurrency,
                    *(summary(ttft_ms[pct]) for pct in (0, 90)),
                    summary(ratios),
                    f"{ceiling:.3f}",
                ]
            )
    headers = ["tokens", "in flight", "TTFT at 0 %, ms", "TTFT at 90 %, ms", "ratio", "ceiling of ratio"]
    print_table(headers, table)
    print("Each TTFT is the median of 16 requests; median (p10 … p90) over repeats.")
    write_json(args.json, {"machine": facts, "results": results})


if __name__ == "__main__":
    main()
