"""What the prefix cache of the embedded engine is worth, split into hits and code path, with intervals.

Runs `prefixlab bench ab` as a user would: hit, forced miss and cache off in turns, one request at a time,
half of each prompt shared. Engines are started anew every few rounds, so that what two processes of one
engine differ by chance is in the intervals. Goes on until each interval of TTFT is within 3 %; a forced miss
should cost what no cache costs, so 0 should lie inside the interval of the code path.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import card, parser, print_card, print_table, rounded, write_json


def measure(model: str, total_tokens: int, shared_percent: float, max_rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "prefixlab.cli.main", "bench", "ab", "--model", model]
        command += ["--shared-len", str(total_tokens), "--shared-percent", str(shared_percent)]
        command += ["--shared-output-len", "1", "--figure", "ttft_median", "--until-ci", "3%"]
        command += ["--restart-every", "6", "--max-rounds", str(max_rounds), "--disable-tqdm"]
        command += ["--max-model-len", str(2 * total_tokens), "--run-dir", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads((run / "summary.json").read_text())
        return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="tiny")
    arguments.add_argument("--total-tokens", type=int, nargs="+", default=[512, 1024])
    arguments.add_argument("--shared-percent", type=float, default=50.0)
    arguments.add_argument("--max-rounds", type=int, default=180)
    args = arguments.parse_args()

    facts = card("src", "benchmarks/bench_ab.py")
    print_card(facts)
    results: list[dict[str, Any]] = []
    table = []
    for total_tokens in args.total_tokens:
        found = measure(args.model, total_tokens, args.shared_percent, args.max_rounds)
        for difference in found["differences"]:
            low, high = difference["low"], difference["high"]
            results.append(
                {
                    "model": args.model,
                    "total_tokens": total_tokens,
                    "shared_percent": args.shared_percent,
                    "rounds": found["rounds"],
                    "requests_per_round": found["requests_per_round"],
                    **difference,
                }
            )
            table.append(
                [
                    f"{total_tokens:,}",
                    f"{difference['about']} ({difference['to']} against {difference['from']})",
                    f"{rounded(difference['a']):g} → {rounded(difference['b']):g}",
                    f"{difference['change']:+.1%}",
                    "n/a" if low is None else f"{low:+.1%} … {high:+.1%}",
                    "n/a" if low is None else ("yes" if low <= 0 <= high else "no"),
                    f"{difference['method']}, {found['rounds'] * found['requests_per_round']} requests each",
                ]
            )
    print_table(
        ["prompt tokens", "worth of", "median TTFT, ms", "change", "95 % interval", "0 inside", "of"], table
    )
    write_json(args.json, {"machine": facts, "results": results})


if __name__ == "__main__":
    main()
