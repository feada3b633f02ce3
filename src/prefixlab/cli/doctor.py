"""`prefixlab doctor`: can the figures of a run be trusted?

Owns the verb: what is printed where, the exit code. The checks are `prefixlab.bench.doctor`.

Invariant: it changes nothing in the folders it reads.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixlab.bench.doctor.evidence import Alone
    from prefixlab.bench.saved.saved_run import SavedRun
    from prefixlab.cli.main import Parser

SUMMARY = "can the figures of a run be trusted? one page per run, with a grade"


def configure(parser: Parser) -> None:
    from prefixlab.bench.doctor.diagnosis import GRADES

    parser.description = (
        f"{SUMMARY}.\n\n"
        "Looks at the client (late? stamps? calibrated?), the load (on schedule? steady? saturated?),\n"
        "the answers (failed? as long as asked? token by token?) and the cache (warm? hits as expected?).\n"
        "Every run that is measured has the same page in its folder: doctor.txt and doctor.json. Of several\n"
        "runs the one at concurrency 1 tells whether the others' prompts were faster under load than alone.\n"
        "\n"
        "grades: A nothing speaks against the figures; B 1 to 3 cautions; C more, or one check is bad;\n"
        "        F two or more are bad, or nothing succeeded. What a run does not tell lowers no grade."
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run, or of a sweep: all its points"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array, an object per run")
    parser.add_argument(
        "--min-grade",
        choices=GRADES[:-1],
        help="exit code 3 if a run is graded below this one (default: grades decide nothing)",
    )


def run(args: argparse.Namespace) -> int:
    import msgspec

    from prefixlab.bench.doctor.checks import diagnose
    from prefixlab.bench.doctor.diagnosis import is_below
    from prefixlab.bench.doctor.evidence import saved_evidence
    from prefixlab.bench.doctor.page import page_keys, page_text
    from prefixlab.bench.saved.saved_run import find_runs

    runs = [found for path in args.runs for found in find_runs(Path(path))]
    alone = _alone(runs)
    told, below = [], []
    for saved in runs:
        diagnosis = diagnose(saved_evidence(saved, alone=alone))
        if args.json:
            told.append(page_keys(diagnosis, path=str(saved.path), name=saved.name))
        else:
            print(page_text(diagnosis, str(saved.path)))
        if args.min_grade and is_below(diagnosis.grade, args.min_grade):
            below.append(f"{saved.path}: {diagnosis.grade}, below {args.min_grade}")
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(told), indent=2).decode() + "\n")
    for line in below:
        print(line, file=sys.stderr)
    return 3 if below else 0


def _alone(runs: list[SavedRun]) -> Alone | None:
    """What the run at concurrency 1 says of how long a prompt takes alone, if one of several is that."""
    from prefixlab.bench.doctor.cache import alone_of

    single = [found for found in runs if found.summary.get("max_concurrency") == 1]
    return alone_of(single[0].table) if len(runs) > 1 and single else None
