"""10,000 streams at once, client and server in processes of their own: all open, all finish.

The server is `truth/server.c`, whose log says how many streams it really had at once; the first token waits
until all can be connected. A second part gives the client fewer open files than it needs: it must name that
before it sends anything (its trial of the vocabulary apart), not run into it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from _common import card, parser, print_card, print_table, summary, write_json
from _truth import run_client, serving, two_cores, workplace

LOW_LIMIT = 2000


def command(url: str, streams: int, output_len: int, result: Path) -> list[str]:
    words = [sys.executable, "-m", "prefixlab.cli.main", "bench", "serve", "--backend", "openai"]
    words += ["--base-url", url, "--model", "truth", "--dataset-name", "random", "--random-input-len", "64"]
    words += ["--random-output-len", str(output_len), "--num-prompts", str(streams), "--ignore-eos"]
    words += ["--max-concurrency", str(streams), "--save-result", "--result-filename", str(result)]
    return words


def run(
    binary: Path, folder: Path, streams: int, output_len: int, ttft_ms: float, itl_ms: float
) -> dict[str, Any]:
    client_core, server_core = two_cores()
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    with serving(
        binary,
        folder,
        ttft_ms=ttft_ms,
        itl_ms=itl_ms,
        core=server_core,
        log_capacity=2 * streams * output_len,
    ) as server:
        ran = run_client(command(server.url, streams, output_len, result), core=client_core, folder=folder)
        truth = server.stop().last(streams)
    if ran.code or not result.exists():
        sys.exit(f"the client ended with {ran.code}:\n{ran.stdout}\n{ran.stderr}")
    reported = json.loads(result.read_text())
    return {
        "streams_at_once": truth.peak_streams,
        "completed": reported["completed"],
        "failed": reported["failed"],
        "output_tokens": reported["total_output_tokens"],
        "tokens_written": len(truth.entries),
        "itl_p99_error_ms": reported["p99_itl_ms"] - float(np.percentile(truth.itl_ms, 99)),
        "ttft_p99_error_ms": reported["p99_ttft_ms"] - float(np.percentile(truth.ttft_ms, 99)),
        "client_cpu_s": ran.cpu_s,
        "client": reported.get("client"),
        "server": truth.facts,
    }


def with_few_files(binary: Path, folder: Path, streams: int) -> str:
    """What the client says when it may not open enough files. Exits if it said nothing, or sent something."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (LOW_LIMIT, LOW_LIMIT))

    with serving(binary, folder) as server:
        done = subprocess.run(
            command(server.url, streams, 2, folder / "never.json"),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=folder,
            preexec_fn=limit,
        )
        requests = len(server.stop().requests)
    said = done.stderr.strip()
    if done.returncode != 2 or "open files" not in said or requests > 1:
        sys.exit(f"ended with {done.returncode} after {requests} requests, and said:\n{said}")
    return said


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--streams", type=int, default=10_000)
    arguments.add_argument("--quick", action="store_true", help="one repeat of short streams")
    arguments.add_argument("--repeats", type=int, help="default: 3; quick: 1")
    args = arguments.parse_args()
    repeats = args.repeats or (1 if args.quick else 3)
    output_len, ttft_ms, itl_ms = (10, 5_000, 500) if args.quick else (40, 8_000, 500)

    facts = card("src", "benchmarks")
    facts["cores"] = "client {}, server {}".format(*two_cores())
    print_card(facts)
    with workplace() as (binary, folder):
        runs = [run(binary, folder, args.streams, output_len, ttft_ms, itl_ms) for _ in range(repeats)]
        said = with_few_files(binary, folder, args.streams)
    figures = ("itl_p99_error_ms", "ttft_p99_error_ms", "client_cpu_s")
    counts = ("streams_at_once", "completed", "failed", "output_tokens", "tokens_written")
    table: list[list[object]] = [[name, " / ".join(f"{found[name]:,}" for found in runs)] for name in counts]
    table += [[name, summary([found[name] for found in runs])] for name in figures]
    print_table([f"{args.streams:,} streams", "each repeat, or median (p10 … p90)"], table)
    print(f"with {LOW_LIMIT:,} open files allowed, before anything was sent:\n  {said}")
    whole = all(
        found["streams_at_once"] == found["completed"] == args.streams
        and found["output_tokens"] == found["tokens_written"] == args.streams * output_len
        for found in runs
    )
    print(
        "\nall were open at once, and all finished" if whole else "\nNOT all were open at once and finished"
    )
    document = {"machine": facts, "streams": args.streams, "output_len": output_len}
    document |= {"ttft_ms": ttft_ms, "itl_ms": itl_ms, "runs": runs, "with_few_open_files": said}
    write_json(args.json, document)
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
