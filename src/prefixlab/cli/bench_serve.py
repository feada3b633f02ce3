"""`prefixlab bench serve`: one load on one server, its latency and throughput.

Owns the verb: flags, what is printed where, the exit code. The run is `prefixlab.bench.runs.serve`.

Invariant: what was measured is shown and kept, also when the run ends early.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixlab.bench.config.serve import ServeConfig
    from prefixlab.bench.metrics.point import PointResult
    from prefixlab.bench.records.run_dir import RunDir
    from prefixlab.bench.targets.endpoint import Endpoint
    from prefixlab.cli.main import Parser
    from prefixlab.core.seams import Tokenizer

SUMMARY = "put one load on a server: latency, throughput, and how far to believe them"
VERB = "bench serve"


def configure(parser: Parser) -> None:
    from prefixlab.cli.bench_point import add_point_flags, add_strict_flag

    parser.description = (
        f"{SUMMARY}.\n\nTakes the command lines of vllm bench serve and of SGLang's bench_serving. Without "
        "--base-url, --host, --port or --backend an embedded engine is started and measured."
    )
    add_point_flags(parser)
    add_run_flags(parser)
    add_strict_flag(parser)


def add_run_flags(parser: Parser) -> None:
    """Of every verb that makes one run."""
    parser.add_argument(
        "--resume",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="go on with the run in this folder, as its config.json says; only keys may be given besides",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print what would be sent, and stop",
    )


def run(args: argparse.Namespace, verb: str = VERB) -> int:
    """`verb`: as the user typed it, where another one makes the same run."""
    from prefixlab.bench.records.run_dir import RunDir
    from prefixlab.bench.runs.checks import check_files, check_point
    from prefixlab.bench.runs.trace import within_limits
    from prefixlab.bench.runs.trial import try_out
    from prefixlab.cli.bench_point import (
        describe_point,
        given_settings,
        open_point_endpoint,
        planned_outline,
        point_config,
        point_tokenizer,
        refuse_settings,
        restored_config,
    )
    from prefixlab.core.errors import TargetError

    with contextlib.ExitStack() as resources:
        folder: RunDir | None = None
        if "resume" in args:
            refuse_settings(args)
            folder = resources.enter_context(RunDir.open(Path(args.resume)))
            config = restored_config(folder.config_of(VERB), args)
        else:
            given = given_settings(args)
            dry = given.pop("dry_run", False)
            config = point_config(given)
            if dry:
                print(describe_point(config))
                return 0
            planned_outline(config)  # files that cannot be read are told before any server is asked
            check_files(config)
        gone: str | None = None
        try:
            endpoint = resources.enter_context(open_point_endpoint(config))
        except TargetError as error:
            if folder is None or not folder.segments():
                raise
            from prefixlab.bench.runs.remembered import remembered_endpoint

            endpoint, gone = remembered_endpoint(folder, config), str(error)
        config = within_limits(config, endpoint)
        tokenizer = point_tokenizer(config, endpoint)
        if folder is None:
            check_point(endpoint, config, tokenizer)
            try_out(endpoint, config)
            folder = new_folder(config, endpoint)
            if folder is not None:
                resources.enter_context(folder)
        return measure(config, endpoint, folder, tokenizer, gone=gone, verb=verb)


def new_folder(config: ServeConfig, endpoint: Endpoint) -> RunDir | None:
    from prefixlab.bench.runs import files

    settings = {
        "verb": VERB,
        "command": files.command_line(sys.argv),
        **config.stored(),
        "resolved": files.resolved(endpoint),
    }
    return files.new_folder(config.report.run_dir, files.default_folder(config, endpoint), settings)


def measure(
    config: ServeConfig,
    endpoint: Endpoint,
    folder: RunDir | None,
    tokenizer: Tokenizer | None,
    *,
    gone: str | None = None,
    verb: str = VERB,
) -> int:
    """Run, show, keep, judge.

    Args:
        gone: why the server cannot be asked; what the folder holds is shown.
    """
    from prefixlab.bench.runs import files
    from prefixlab.bench.runs.serve import ServeRun
    from prefixlab.cli.bench_point import check_strictly, watching

    output = files.result_file(config, endpoint.backend, endpoint.model)
    notes: list[str] = []
    if folder is not None and gone is None:
        notes = files.begin(folder, endpoint, config.dataset.seed)
    with watching([config]) as watcher:
        run = ServeRun(
            endpoint,
            config,
            tokenizer=tokenizer,
            folder=folder,
            cold=bool(config.load.flush_cache),
            watcher=watcher,
            gone=gone,
        )
        try:
            result = run.run()
        except KeyboardInterrupt:
            say_how_to_go_on(folder, verb)
            raise
    if folder is not None:
        result = files.finish(folder, endpoint, result, detailed=config.report.save_detailed, notes=notes)
    sys.stdout.write(files.as_text(result, config.report.style))
    files.save(config.report, output, result)
    for where in (output, folder.path if folder else None):
        if where is not None:
            print(f"kept in {where}", file=sys.stderr)
    if result.interrupted:
        say_how_to_go_on(folder, verb)
    code = judge(result, run.gone)
    check_strictly(config, {"this run": result})
    return code


def say_how_to_go_on(folder: RunDir | None, verb: str) -> None:
    if folder is not None:
        print(f"to go on: prefixlab {verb} --resume {folder.path}", file=sys.stderr)


def judge(result: PointResult, gone: str | None) -> int:
    """Raises TargetError if no request succeeded or the server went away, KeyboardInterrupt if the run was
    interrupted."""
    from prefixlab.bench.ledger.check import first_failure
    from prefixlab.core.errors import TargetError

    if gone is not None:
        raise TargetError(gone)
    if result.interrupted:
        raise KeyboardInterrupt
    if not result.metrics.ok:
        raise TargetError(f"no request succeeded: {first_failure(result.table)}")
    return 0
