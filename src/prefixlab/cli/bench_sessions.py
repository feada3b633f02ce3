"""`prefixlab bench sessions`: conversations of several turns, so many at once, or beginning at a rate.

Owns which of the options of a point are offered, and the names that vLLM's and SGLang's multi-turn scripts
have for some of them. The run is that of `bench serve --dataset-name sessions`, folder and all.

Invariant: what the verb does `bench serve` does with the same options, so either goes on with its folders.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixlab.cli.main import Parser

SUMMARY = "hold conversations of several turns with a server: latency and hit rate turn by turn"
DATASET = "sessions"

REFUSED = {
    "--num-clients": "is how many sessions there are at once to vLLM's script, and in all to SGLang's: "
    "give --concurrency or --num-sessions",
    "--num-prompts": "counts requests: of sessions there are --num-sessions",
    "--input-file": "is --dataset-path here, for conversations in words and for traces of sessions",
    "--max-num-requests": "would cut sessions short: give --num-sessions or --num-turns",
    "--distribution": "is of arrivals: --burstiness 1 is Poisson, inf constant",
    "--disable-auto-run": "is so anyway: bench sweep --dataset-name sessions runs several rates",
    "--enable-round-barrier": "is not honoured: each session goes on when it is answered",
    "--disable-random-sample": "is not needed: prompts are made up to the length asked for",
}
"""Options of the multi-turn scripts of others that are not ours."""


def configure(parser: Parser) -> None:
    from prefixlab.cli.bench_point import add_point_flags, add_strict_flag, options_of_others
    from prefixlab.cli.bench_serve import add_run_flags

    parser.description = (
        f"{SUMMARY}.\n\nA later turn waits for the answer to the one before, and for a user's think time; "
        "its prompt is all that was said, the server's own answers included. --concurrency is how many "
        "sessions there are at once (closed loop), --request-rate how many begin per second (open loop)."
        "\n\nWith --dataset-path the sessions are those of a trace, their prompts as recorded; or, on chat, "
        "the conversations of a file of ShareGPT's or OpenAI's form, held again.\n\nWithout --base-url, "
        "--host, --port or --backend an embedded engine is started and measured."
    )
    add_point_flags(parser, skip=options_of_others(DATASET) | {"dataset_name", "fixed_schedule"})
    parser.add_argument(
        "--max-active-conversations",
        "--max-parallel",
        dest="max_concurrency",
        type=int,
        default=argparse.SUPPRESS,
        metavar="INT",
        help="--max-concurrency, as vLLM's and SGLang's multi-turn scripts spell it",
    )
    add_run_flags(parser)
    add_strict_flag(parser)
    of_points = parser.why_refused
    parser.why_refused = lambda option: REFUSED.get(option) or of_points(option)


def run(args: argparse.Namespace) -> int:
    from prefixlab.cli import bench_serve

    if "resume" not in args:
        args.dataset_name = DATASET
    return bench_serve.run(args, "bench sessions")
