"""`prefixlab demo`: what the prefix cache is worth on this machine, in minutes, with nothing prepared.

Owns the choice of what to show; the measuring is `bench warm-cache` and `bench trace`, run as a user would
run them, with their command lines printed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from prefixlab.core.errors import ConfigError

SUMMARY = "see what the cache is worth on this machine: a sweep on the embedded engine, then a real trace"

DEFAULT_TRACES = "../shared/traces"
TRACE = "sharegpt300_qwen3_b16.jsonl.gz"
NUM_TRACE_REQUESTS = 50


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"{SUMMARY}.\n\nThe trace is {TRACE} from the folder that PREFIXLAB_TRACES names "
        f"(default: {DEFAULT_TRACES});\nwhere it is not there, that part is skipped."
    )
    parser.add_argument(
        "--results", metavar="FOLDER", default="demo-results", help="where to write (default: demo-results)"
    )


def run(args: argparse.Namespace) -> int:
    results = Path(args.results)
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--results {results}: {error.strerror}") from None
    picture, rows = results / "warm-cache.png", results / "warm-cache.jsonl"
    rows.unlink(missing_ok=True)  # --output-file appends; a demo starts anew
    code = _do("bench", "warm-cache", "--strict", "--output-file", str(rows), "--plot", str(picture))
    if code:
        return code

    trace = Path(os.environ.get("PREFIXLAB_TRACES") or DEFAULT_TRACES) / TRACE
    if trace.exists():
        code = _do("bench", "trace", str(trace), "--num-prompts", str(NUM_TRACE_REQUESTS), "--no-run-dir")
    else:
        print(f"\nskipped the trace: {trace} is not there (PREFIXLAB_TRACES names the folder of traces)")
    if not code:
        print(
            f"\nThe picture: {picture}"
            f"\nThe figures, a line per point and repeat: {rows}"
            "\n\nA server of yours:  .venv/bin/prefixlab bench warm-cache --base-url URL --backend vllm"
            "\nAll there is:       .venv/bin/prefixlab --help"
        )
    return code


def _do(*words: str) -> int:
    from prefixlab.cli.main import main

    print(f"\n$ prefixlab {shlex.join(words)}", flush=True)
    sys.stderr.flush()
    return main(list(words))
