"""Does `compare` say "no difference" of the same setting twice, and find 5 %? Does `gate` pass and stop?

First the statistics alone, in this process: made-up pairs of runs whose neighbouring requests are alike
(AR(1), latencies log-normal), with and without a true change. *Coverage* is how often the 95 % interval
holds the truth, *found* how often a true change of 5 % is called worse, *wrong* how often a difference is
found where there is none, *no interval* how often none was given.

Then for real: two `prefixlab serve --model sim`, one with steps of 40 ms and one with 42 ms, and trials of
two runs of `prefixlab bench serve` each (Poisson arrivals, others in every trial): on the first server
twice, or on one after the other. `prefixlab compare` and `prefixlab gate` are run on the two folders as
anybody would. A trial counts where compare says "no difference" and gate ends with 0, or "worse" and 3.
The machine must be quiet: what changes from one run to the next on it is a difference.

    python benchmarks/bench_compare.py --json benchmarks/results/compare.json
    python benchmarks/bench_compare.py --statistics-only
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from _common import card, parser, print_card, print_table, write_json
from prefixlab.bench.compare.difference import Finding, differ, level_for
from prefixlab.bench.compare.series import FloatArray, Percentile, Ratio, Sample, Series

STEP_MS = {"same": (40, 40), "slower": (40, 42)}
MARGIN = "3%"
"""Of compare, and how much worse gate lets through."""
CLI = (sys.executable, "-m", "prefixlab.cli.main")
CHANGE = 0.05
SPREAD = 0.3
MEMORY = 0.7
LONG_AGO = 200
FIGURES: dict[str, Callable[[FloatArray], Series]] = {
    "mean": lambda values: Ratio(values, np.ones(len(values))),
    "median": lambda values: Percentile(values, 50.0),
    "p99": lambda values: Percentile(values, 99.0),
}


def series(rng: np.random.Generator, num_requests: int, memory: float) -> FloatArray:
    """Shape (n,): an AR(1) series, but for what is older than LONG_AGO."""
    shocks = rng.normal(size=num_requests + LONG_AGO)
    weights = memory ** np.arange(LONG_AGO) * np.sqrt(1 - memory**2)
    return np.convolve(shocks, weights)[LONG_AGO : LONG_AGO + num_requests]


def simulate(trials: int) -> list[dict[str, Any]]:
    """One row per size of run, kind of figure and pairing."""
    rows = []
    for num_requests, memory in ((300, 0.0), (1000, MEMORY), (10_000, MEMORY)):
        for paired in (False, True):
            found: dict[str, list[tuple[bool | None, bool, bool]]] = {name: [] for name in FIGURES}
            for trial in range(trials):
                rng = np.random.default_rng([trial, num_requests, paired])
                prompts = rng.normal(size=num_requests) if paired else np.zeros(num_requests)
                sides = [
                    np.exp(SPREAD * (series(rng, num_requests, memory) * (0.5 if paired else 1.0) + prompts))
                    for _ in range(3)
                ]
                for name, make in FIGURES.items():
                    found[name].append(_tried(sides, make, paired=paired, seed=trial))
            for name, told in found.items():
                held = [hit for hit, _, _ in told if hit is not None]
                rows.append(
                    {
                        "requests": num_requests,
                        "memory": memory,
                        "paired": paired,
                        "figure": name,
                        "coverage": round(sum(held) / len(held), 3) if held else None,
                        "found": round(sum(one for _, one, _ in told) / trials, 3),
                        "wrong": round(sum(one for _, _, one in told) / trials, 3),
                        "no interval": round(1 - len(held) / trials, 3),
                    }
                )
    return rows


def _tried(
    sides: list[FloatArray], make: Callable[[FloatArray], Series], *, paired: bool, seed: int
) -> tuple[bool | None, bool, bool]:
    """(the 95 % interval holds 0, a change of 5 % is found, one is found where there is none); the last two
    as of 13 figures, as `compare` looks at."""
    a, same, other = (Sample(make(side)) for side in (*sides[:2], sides[2] * (1 + CHANGE)))
    options: dict[str, Any] = {"higher_is_better": False, "paired": paired, "seed": seed}
    plain = differ("x", a, same, **options)
    hit = None if plain.low is None or plain.high is None else plain.low <= 0 <= plain.high
    level = level_for(13)
    found = differ("x", a, other, level=level, **options).finding is Finding.WORSE
    wrong = differ("x", a, same, level=level, **options).finding in (Finding.WORSE, Finding.BETTER)
    return hit, found, wrong


@contextlib.contextmanager
def serving(step_ms: float) -> Iterator[str]:
    """The address of a simulated server of its own, ended afterwards."""
    words = (*CLI, "serve", "--model", "sim", "--port", "0", "--sim-step-ms", str(step_ms))
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if found := re.search(r"http://[\d.]+:\d+", line):
                yield found[0]
                break
        else:
            sys.exit("the server ended before it was ready")
    finally:
        server.terminate()
        try:
            server.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()


def measure(url: str, folder: Path, seed: int, options: Any) -> None:
    """One run, as anybody would make it."""
    words = [*CLI, "bench", "serve", "--base-url", url, "--run-dir", str(folder), "--no-progress"]
    words += ["--num-prompts", str(options.requests), "--request-rate", str(options.rate), "--ignore-eos"]
    words += ["--random-input-len", "64", "--random-output-len", "8", "--seed", str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"a run failed:\n{done.stderr}")


def trial(kind: str, urls: dict[float, str], seed: int, options: Any) -> dict[str, Any]:
    """Two runs, and what both verbs say of them."""
    with tempfile.TemporaryDirectory(prefix="prefixlab-compare-") as name:
        folders = [Path(name) / side for side in "ab"]
        for folder, step_ms in zip(folders, STEP_MS[kind], strict=True):
            measure(urls[step_ms], folder, seed, options)
        paths = [str(folder) for folder in folders]
        compared, gated = (
            subprocess.run([*CLI, *words], capture_output=True, text=True, check=False)
            for words in (
                ("compare", *paths, "--json", "--margin", MARGIN),
                ("gate", *paths, "--max-regression", MARGIN),
            )
        )
    told = json.loads(compared.stdout)
    wanted = ("no difference", 0) if kind == "same" else ("worse", 3)
    changes = {of["figure"]: of["change"] for of in told["points"][0]["differences"]}
    return {
        "kind": kind,
        "verdict": told["verdict"],
        "finding": told["finding"],
        "gate": gated.returncode,
        "compare_right": told["finding"] == wanted[0],
        "gate_right": gated.returncode == wanted[1],
        "changes": {name: changes[name] for name in ("output_throughput", "mean_ttft_ms", "mean_tpot_ms")},
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--trials", type=int, default=20, help="of each kind, on the mock (default: 20)")
    options.add_argument("--requests", type=int, default=4000, help="of each run (default: 4000)")
    options.add_argument("--rate", type=float, default=150.0, help="requests a second (default: 150)")
    options.add_argument("--simulated", type=int, default=400, help="made-up trials (default: 400)")
    options.add_argument("--statistics-only", action="store_true", help="leave the mock out")
    given = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    facts = card("src/prefixlab/bench/compare", "benchmarks/bench_compare.py")
    print_card(facts)
    rows = simulate(given.simulated)
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    trials: list[dict[str, Any]] = []
    if not given.statistics_only:
        steps = sorted({step for pair in STEP_MS.values() for step in pair})
        with contextlib.ExitStack() as servers:
            urls = {float(step): servers.enter_context(serving(step)) for step in steps}
            for number in range(given.trials):
                for kind in STEP_MS:
                    trials.append(trial(kind, urls, len(trials), given))
                    last = trials[-1]
                    print(f"{number + 1:>3} {kind:<7} gate {last['gate']}  {last['verdict']}", flush=True)
        print()
        for kind in STEP_MS:
            of_kind = [one for one in trials if one["kind"] == kind]
            for verb in ("compare", "gate"):
                right = sum(one[f"{verb}_right"] for one in of_kind)
                print(f"{kind}: {verb} right in {right} of {len(of_kind)}")
    write_json(given.json, {**facts, "simulated": rows, "trials": trials})


if __name__ == "__main__":
    main()
