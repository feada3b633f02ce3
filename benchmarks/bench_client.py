"""The load generator against a server that knows when it wrote each token: how far off is what it reports?

A compiled server (`truth/server.c`) has one core, the client another. `prefixlab bench serve` runs with the
flags of `vllm bench serve`, and mean, median and p99 of TTFT and ITL in its result file are held against the
server's log. Then the token rate is raised, by turns with a bare loop that does nothing but read and stamp
(`truth/bare_loop.py`): what it holds is the most that Python holds on this machine. Two limits are found: the
rate at which a figure is off by more than the limits below, and the rate at which more than 1 % of the reads
brought several tokens, which is the first sign that the client is at its end.

Last, open loop at twice what a server with few slots carries: latency from
intent must grow, latency from send must not, and the run must call it saturated.

True ITL is the gap between two writes of a stream; true TTFT is first write − arrival of the request at the
server (the kernel's stamp), so the way of the request, a few µs, counts against the client.

`--peer NAME=COMMAND` holds another client against the same server, for scale. In COMMAND these are filled in:
{url}, {port}, {num_prompts}, {concurrency}, {input_len}, {output_len}, and {result}, the file it writes, with
keys as vLLM's.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from _common import card, parser, print_card, print_table, rounded, summary, write_json
from _truth import Truth, pinned, run_client, serving, two_cores, workplace

TTFT_MS = 100.0
INPUT_LEN, OUTPUT_LEN = 64, 128
ITL_LIMIT_MS, TTFT_LIMIT_MS, MERGED_LIMIT = 0.1, 0.5, 0.01
STATISTICS = {"mean": np.mean, "median": np.median, "p99": lambda values: np.percentile(values, 99)}
OURS, BARE = "prefixlab", "bare loop"
BARE_LOOP = (
    f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(__file__).parent / 'truth' / 'bare_loop.py'))} "
    "{port} {num_prompts} {concurrency} {output_len} {result}"
)
PREFIXLAB = (
    f"{shlex.quote(sys.executable)} -m prefixlab.cli.main bench serve --backend openai --base-url {{url}} "
    "--model truth --dataset-name random --random-input-len {input_len} --random-output-len {output_len} "
    "--num-prompts {num_prompts} --max-concurrency {concurrency} --ignore-eos --save-result "
    "--result-filename {result}"
)


@dataclass(frozen=True)
class Load:
    streams: int
    tokens_per_s_each: float
    num_prompts: int

    @property
    def tokens_per_s(self) -> float:
        return self.streams * self.tokens_per_s_each

    def __str__(self) -> str:
        return f"{self.streams:,} x {self.tokens_per_s_each:g}/s"


@dataclass(frozen=True)
class Run:
    """One client's run at one load. Errors are reported − true, in ms, by metric and statistic."""

    errors_ms: dict[str, float]
    true_ms: dict[str, float]
    reported: dict[str, Any]
    truth: Truth
    cpu_s: float
    num_tokens: int

    @property
    def merged_share(self) -> float | None:
        """Reads that brought several tokens, of all, where the client says."""
        client = self.reported.get("client") or {}
        return client["merged_reads"] / client["reads"] if client.get("reads") else None

    def of_client(self, name: str, factor: float = 1.0) -> float | None:
        """A figure of the client's own health, where the client has it."""
        value = (self.reported.get("client") or {}).get(name)
        return None if value is None else value * factor

    @property
    def worst_itl_error_ms(self) -> float:
        return max(abs(error) for name, error in self.errors_ms.items() if name.endswith("itl"))


def measure(binary: Path, folder: Path, client: str, load: Load, *, lockstep: bool) -> Run:
    client_core, server_core = two_cores()
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    itl_ms = 1000 / load.tokens_per_s_each
    capacity = 2 * load.num_prompts * OUTPUT_LEN
    with serving(
        binary,
        folder,
        ttft_ms=TTFT_MS,
        itl_ms=itl_ms,
        core=server_core,
        lockstep=lockstep,
        log_capacity=capacity,
    ) as server:
        command = shlex.split(
            client.format(
                url=server.url,
                port=server.port,
                num_prompts=load.num_prompts,
                concurrency=load.streams,
                input_len=INPUT_LEN,
                output_len=OUTPUT_LEN,
                result=result,
            )
        )
        ran = run_client(command, core=client_core, folder=folder)
        truth = server.stop().last(load.num_prompts)
    if ran.code or not result.exists():
        sys.exit(f"{shlex.join(command)}\nended with {ran.code}:\n{ran.stdout}\n{ran.stderr}")
    reported = json.loads(result.read_text())
    true = {"ttft": truth.ttft_ms, "itl": truth.itl_ms}
    true_ms = {
        f"{name} {metric}": float(f(true[metric])) for metric in true for name, f in STATISTICS.items()
    }
    errors_ms = {
        key: reported[f"{key.split()[0]}_{key.split()[1]}_ms"] - value for key, value in true_ms.items()
    }
    return Run(errors_ms, true_ms, reported, truth, ran.cpu_s, len(truth.entries))


def known(values: list[float | None]) -> str:
    """The median of what is known."""
    there = [value for value in values if value is not None]
    return f"{np.median(there):,.2f}" if there else "n/a"


def row(client: str, load: Load, runs: list[Run]) -> list[object]:
    """Medians over repeats; the spread is in the JSON."""
    merged = [run.merged_share for run in runs if run.merged_share is not None]
    errors = [np.median([run.errors_ms[key] for run in runs]) for key in runs[0].errors_ms]
    return [
        f"{client}, {load}",
        *(f"{error:+,.3f}" for error in errors),
        f"{np.median(merged):.2%}" if merged else "n/a",
        f"{np.median([run.truth.peak_tokens_per_s for run in runs]):,.0f}",
        f"{np.median([run.cpu_s / run.num_tokens for run in runs]) * 1e6:,.1f}",
        known([run.of_client("cpu_s", 1e6 / run.num_tokens) for run in runs]),
        known([run.of_client("read_lag_p99_ms") for run in runs]),
        f"{np.median([run.truth.facts['late_p99_ms'] for run in runs]):,.2f}",
    ]


HEADERS = [
    "error (reported - true), ms",
    *(f"{metric} {name}" for metric in ("TTFT", "ITL") for name in ("mean", "p50", "p99")),
    "merged",
    "tokens/s (peak)",
    "CPU/token, µs",
    "loop alone",
    "read lag p99, ms",
    "server late p99, ms",
]


def as_json(client: str, load: Load, runs: list[Run]) -> dict[str, Any]:
    return {
        "client": client,
        "streams": load.streams,
        "tokens_per_s_each": load.tokens_per_s_each,
        "num_prompts": load.num_prompts,
        "true_ms": {key: summary([run.true_ms[key] for run in runs]) for key in runs[0].true_ms},
        "error_ms": {key: summary([run.errors_ms[key] for run in runs]) for key in runs[0].errors_ms},
        "peak_tokens_per_s": summary([run.truth.peak_tokens_per_s for run in runs]),
        "cpu_us_per_token": summary([run.cpu_s / run.num_tokens * 1e6 for run in runs]),
        "merged_share": [run.merged_share for run in runs],
        "server": [run.truth.facts for run in runs],
        "client_health": [run.reported.get("client") for run in runs],
    }


def verdict(load: Load, runs: list[Run]) -> str:
    """Against the goal, by the worst repeat: a client that is right most of the time is not right."""
    itl = max(run.worst_itl_error_ms for run in runs)
    ttft = max(abs(error) for run in runs for key, error in run.errors_ms.items() if key.endswith("ttft"))
    met = itl <= ITL_LIMIT_MS and ttft <= TTFT_LIMIT_MS
    late_ms = max(run.truth.facts["late_p99_ms"] for run in runs)
    wavering = late_ms > 500 / load.tokens_per_s_each
    return (
        f"{load}: worst error of any repeat: ITL {itl:.3f} ms (limit {ITL_LIMIT_MS}), TTFT {ttft:.3f} ms "
        f"(limit {TTFT_LIMIT_MS}): {'met' if met else 'NOT met'}"
        + (f"; the server was {late_ms:,.0f} ms late: measure on a quieter machine" if wavering else "")
    )


def overload(binary: Path, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Open loop at twice what the server can carry, capped at what it takes at once."""
    client_core, server_core = two_cores()
    slots, output_len, itl_ms = 32, 50, 2.0
    capacity = slots / (TTFT_MS + (output_len - 1) * itl_ms) * 1e3  # requests a second
    num_prompts = round(2 * capacity * (4 if quick else 15))
    result = folder / "overload.json"
    options = {"ttft_ms": TTFT_MS, "itl_ms": itl_ms, "slots": slots, "core": server_core}
    with serving(binary, folder, **options) as server:
        words = PREFIXLAB.format(
            url=server.url,
            num_prompts=num_prompts,
            concurrency=slots,
            input_len=INPUT_LEN,
            output_len=output_len,
            result=result,
        )
        ran = run_client(
            [*shlex.split(words), "--request-rate", str(2 * capacity)], core=client_core, folder=folder
        )
    if ran.code:
        sys.exit(f"{words}\nended with {ran.code}:\n{ran.stdout}\n{ran.stderr}")
    reported = json.loads(result.read_text())
    names = [f"{statistic}_e2el{end}_ms" for end in ("", "_from_intent") for statistic in ("median", "p99")]
    figures = {name: rounded(reported[name]) for name in names}
    return {
        "capacity_requests_per_s": rounded(capacity),
        "offered_requests_per_s": rounded(2 * capacity),
        **figures,
        "saturated": reported["saturated"],
        "saturation": reported["saturation"],
    }


def is_true(run: Run) -> bool:
    """Every figure within its limit."""
    ttft = max(abs(error) for name, error in run.errors_ms.items() if name.endswith("ttft"))
    return run.worst_itl_error_ms <= ITL_LIMIT_MS and ttft <= TTFT_LIMIT_MS


def is_at_ease(run: Run) -> bool:
    """Hardly a read had to bring several tokens."""
    return is_true(run) and (run.merged_share is None or run.merged_share <= MERGED_LIMIT)


LIMITS = {"all figures true": is_true, "and at most 1 % of reads merged": is_at_ease}
Ladder = list[tuple[Load, list[Run]]]


def climb(binary: Path, folder: Path, rates: list[int], repeats: int, *, lockstep: bool) -> dict[str, Ladder]:
    """Both clients by turns, up the rates."""
    ladders: dict[str, Ladder] = {OURS: [], BARE: []}
    for rate in rates:
        load = Load(1024, rate, 1024)
        for ladder in ladders.values():
            ladder.append((load, []))
        for _ in range(repeats):
            for name, command in ((OURS, PREFIXLAB), (BARE, BARE_LOOP)):
                found = measure(binary, folder, command, load, lockstep=lockstep)
                ladders[name][-1][1].append(found)
    return ladders


def summit(
    ladder: Ladder, held: Callable[[Run], bool], *, every: bool
) -> tuple[float, tuple[Load, list[Run]] | None]:
    """The highest rate below the first one that broke, and that one.

    Args:
        every: one repeat is enough to break; else it takes half of them. On a machine that others share, a
            repeat may fall into a time in which neither core ran.
    """
    held_up_to = 0.0
    for load, runs in ladder:
        num_held = sum(map(held, runs))
        if num_held < len(runs) and (every or 2 * num_held <= len(runs)):
            return held_up_to, (load, runs)
        held_up_to = load.tokens_per_s
    return held_up_to, None


def why_it_broke(load: Load, runs: list[Run]) -> str:
    late_ms = max(run.truth.facts["late_p99_ms"] for run in runs)
    words = f"broke at {load.tokens_per_s:,.0f} tokens/s"
    if late_ms <= 1000 / load.tokens_per_s_each:
        return words
    return f"{words}, where the server was {late_ms:,.0f} ms late: what it writes in bunches comes in bunches"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="one repeat: under a minute")
    arguments.add_argument("--repeats", type=int, help="default: 3; quick: 1")
    arguments.add_argument("--lockstep", action="store_true", help="all streams write at once, as engines do")
    arguments.add_argument("--no-ladder", action="store_true", help="only the two loads of the goal")
    arguments.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    args = arguments.parse_args()
    repeats = args.repeats or (1 if args.quick else 3)
    clients = {OURS: PREFIXLAB} | dict(peer.split("=", 1) for peer in args.peer)
    goals = [Load(256, 100, 512 if args.quick else 1024), Load(1024, 50, 1024)]
    rates = [75, 100] if args.quick else [60, 70, 80, 90, 100, 125, 150]
    if args.no_ladder:
        rates = []

    facts = card("src", "benchmarks")
    facts["cores"] = "client {}, server {}".format(*two_cores())
    print_card(facts)
    if not pinned(two_cores()[0]):
        print("there is one core, or no taskset: client and server disturb each other\n", file=sys.stderr)
    with workplace() as (binary, folder):
        runs: dict[tuple[str, Load], list[Run]] = {}
        for _ in range(repeats):  # interleaved, so that a machine that drifts does so under all
            for load in goals:
                for name, command in clients.items():
                    found = measure(binary, folder, command, load, lockstep=args.lockstep)
                    runs.setdefault((name, load), []).append(found)
        print_table(HEADERS, [row(name, load, found) for (name, load), found in runs.items()])
        for load in goals:
            print(verdict(load, runs[OURS, load]))
        print()

        ladders = climb(binary, folder, rates, min(repeats, 3), lockstep=args.lockstep)
        if rates:
            rows = [(name, *ladder[i]) for i in range(len(rates)) for name, ladder in ladders.items()]
            print_table(HEADERS, [row(*each) for each in rows])
        limits: dict[str, dict[str, float]] = {}
        for words, held in LIMITS.items() if rates else ():
            for every, repeats_words in ((True, "every repeat"), (False, "most repeats")):
                for name, ladder in ladders.items():
                    held_up_to, broken = summit(ladder, held, every=every)
                    limits.setdefault(f"{words}, {repeats_words}", {})[name] = rounded(held_up_to)
                    how = why_it_broke(*broken) if broken else "did not break"
                    print(
                        f"{words}, in {repeats_words}: {name} up to {held_up_to:,.0f} tokens/s on one core; "
                        f"{how}"
                    )
        overloaded = overload(binary, folder, quick=args.quick)
        print("\nopen loop at twice what the server carries:")
        print_table(["figure", ""], [[name, value] for name, value in overloaded.items()])
    document = {
        "machine": facts,
        "ttft_ms": TTFT_MS,
        "lockstep": args.lockstep,
        "goals": [as_json(name, load, found) for (name, load), found in runs.items()],
        "ladder": [as_json(name, *step) for name, ladder in ladders.items() for step in ladder],
        "held_tokens_per_s": limits,
        "overload": overloaded,
    }
    write_json(args.json, document)


if __name__ == "__main__":
    main()
