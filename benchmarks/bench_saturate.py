"""Does `bench saturate` find a knee that is known? On `serve --model sim`, whose capacity can be worked out.

    python benchmarks/bench_saturate.py --seeds 10 --json benchmarks/results/saturate.json

A simulated server of SLOTS running requests, each of OUTPUT_TOKENS steps of STEP_MS, with prefill that takes
next to no time, carries SLOTS / (OUTPUT_TOKENS · STEP_MS) requests per second. Above that, evenly spaced
arrivals make a queue that grows without end; below it nobody waits for long. Steps also cost the host a
little, so the truth is measured as well, by the slow twin of the search: `bench serve` at rates every 2 %
around that, for --grid-duration seconds each; the knee is the middle between the last that meets the
objectives and the first that does not. Then one search for each seed, its answer beside the truth.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import card, parser, print_card, print_table, summary, write_json

CLI = (sys.executable, "-m", "prefixlab.cli.main")
SLOTS, OUTPUT_TOKENS, STEP_MS = 8, 8, 50.0
GOODPUT = "ttft:250"
"""Of a full server a slot comes free every 50 ms; an answer takes 400 ms."""
SHARE = 0.95
POINT = (
    *("--random-input-len", "32", "--random-output-len", str(OUTPUT_TOKENS), "--burstiness", "inf"),
    *("--goodput", GOODPUT, "--no-progress", "--scrape-interval", "0"),
)


def capacity() -> float:
    """Requests per second, by arithmetic."""
    return SLOTS / (OUTPUT_TOKENS * STEP_MS / 1e3)


@contextlib.contextmanager
def served() -> Iterator[str]:
    words = ["serve", "--model", "sim", "--port", "0", "--sim-step-ms", str(STEP_MS)]
    words += ["--sim-prefill-tokens-per-s", "10000000", "--max-running-requests", str(SLOTS)]
    words += ["--enable-mixed-chunk"]  # else a prefill is a step of its own, in which decodes stand still
    server = subprocess.Popen([*CLI, *words], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if found := re.search(r"http://\S+", line):
                yield found.group().rstrip(".,)")
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        server.terminate()
        server.communicate()


def asked(words: list[str]) -> dict[str, Any]:
    done = subprocess.run([*CLI, *words], capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def grid(url: str, duration_s: float) -> list[dict[str, Any]]:
    """`bench serve` at rates around the capacity."""
    rows = []
    for percent in range(80, 107, 2):
        rate = capacity() * percent / 100
        result = asked(
            [
                *("bench", "serve", "--base-url", url, *POINT, "--request-rate", f"{rate:.4g}"),
                *("--num-prompts", str(round(rate * duration_s)), "--flush-cache", "--style", "json"),
                "--no-run-dir",
            ]
        )
        good = bool(result["goodput_share"] >= SHARE and not result["saturated"])
        rows.append({"rate": rate, "share": result["goodput_share"], "meets": good})
        print(f"  {rate:.3f} req/s: {result['goodput_share']:.1%} good, {'meets' if good else 'misses'}")
    return rows


def knee_of(rows: list[dict[str, Any]]) -> float:
    met = [row["rate"] for row in rows if row["meets"]]
    missed = [row["rate"] for row in rows if not row["meets"]]
    if not met or not missed or max(met) > min(missed):
        raise SystemExit("the grid has no one knee: the machine was too busy")
    return float((max(met) + min(missed)) / 2)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--grid-duration", type=float, default=30.0)
    options.add_argument("--probe-duration", type=float, default=10.0)
    given = options.parse_args()
    facts = card()
    print_card(facts)
    rows = []
    with served() as url, tempfile.TemporaryDirectory() as folder:
        print(f"\nby arithmetic {capacity():.2f} req/s; by a grid of runs:")
        truth_rows = grid(url, given.grid_duration)
        knee = knee_of(truth_rows)
        print(f"the knee is at {knee:.3f} req/s\n")
        for seed in range(given.seeds):
            found = asked(
                [
                    *("bench", "saturate", "--base-url", url, *POINT, "--seed", str(1000 * seed)),
                    *("--share", str(SHARE), "--probe-duration", str(given.probe_duration)),
                    *("--style", "json", "--run-dir", str(Path(folder) / str(seed))),
                ]
            )
            row = {
                "seed": 1000 * seed,
                "answer": found["load"],
                "low": found["low"],
                "high": found["high"],
                "off": None if found["load"] is None else found["load"] / knee - 1,
                "probes": len(found["probes"]),
                "settled": found["settled"],
            }
            rows.append(row)
            print(f"  seed {row['seed']}: {found['answer']}; {row['probes']} probes")
    print()
    print_table(
        ["seed", "answer", "95 % low", "high", "off %", "probes", "settled"],
        [
            [
                str(row["seed"]),
                f"{row['answer']:.3f}",
                f"{row['low']:.3f}",
                f"{row['high']:.3f}",
                f"{row['off']:+.1%}",
                str(row["probes"]),
                str(row["settled"]),
            ]
            for row in rows
        ],
    )
    within = sum(abs(row["off"]) <= 0.05 and row["probes"] <= 10 for row in rows)
    inside = sum(row["low"] <= knee <= row["high"] for row in rows)
    print(f"\nwithin 5 % in at most 10 probes: {within} of {len(rows)}; the interval holds it: {inside}")
    document = {
        "machine": facts,
        "by_arithmetic": capacity(),
        "grid": truth_rows,
        "knee": knee,
        "searches": rows,
        "probes": summary([row["probes"] for row in rows]),
        "within_5_percent_in_10_probes": within,
        "inside_interval": inside,
    }
    write_json(given.json, document)


if __name__ == "__main__":
    main()
