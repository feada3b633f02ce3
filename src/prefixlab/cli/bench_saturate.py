"""`prefixlab bench saturate`: the largest load that still meets its objectives.

Owns the verb: flags, where results go, the exit code. The search is `prefixlab.bench.saturate`.

Invariant: what was found out is shown and kept, also when the search ends early.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefixlab.bench.config.serve import ServeConfig
    from prefixlab.bench.metrics.goodput import Objectives
    from prefixlab.bench.records.run_dir import RunDir
    from prefixlab.bench.saturate.config import SaturateConfig
    from prefixlab.bench.saturate.run import Found
    from prefixlab.cli.main import Parser

SUMMARY = "find the largest rate or concurrency that meets --goodput, in few probes, and say how sure that is"
VERB = "bench saturate"
DECIDED = ("request_rate", "stage", "schedule", "repeats", "duration", "fixed_schedule", "num_prompts")
"""Options of a point that the search decides, or that leave it nothing to decide."""
PROBES = "probes.json"
TABLE_WIDTH = 140


def configure(parser: Parser) -> None:
    from prefixlab.bench.saturate.config import SaturateConfig
    from prefixlab.bench.saturate.search import CONFIDENCE
    from prefixlab.cli.bench_point import add_point_flags
    from prefixlab.cli.bench_serve import add_run_flags
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\nEach probe is a run of `bench serve` at one load, with prompts of its own, from a "
        "cache as cold as the server can make it. A probe says how probable it is that --share of its "
        "requests meet "
        f"--goodput; the next one goes to where that teaches most. The answer holds the true limit with "
        f"{CONFIDENCE:.0%} probability. A server whose queue grows misses, whatever its latency so far.\n\n"
        "  prefixlab bench saturate --base-url http://127.0.0.1:30000 --goodput ttft:500 tpot:50\n"
        "  prefixlab bench saturate --find concurrency --goodput tpot:30 --share 0.99 --model sim\n\n"
        "Exits 3 where no load met the objectives."
    )
    add_flags(parser, SaturateConfig, "search")
    add_point_flags(parser, skip={"burstiness", *DECIDED})
    add_run_flags(parser)


def run(args: argparse.Namespace) -> int:
    import dataclasses

    from prefixlab.bench.records.run_dir import RunDir
    from prefixlab.bench.runs.checks import check_point
    from prefixlab.bench.runs.trial import try_out
    from prefixlab.bench.saturate.config import SaturateConfig
    from prefixlab.cli.bench_point import (
        given_settings,
        open_point_endpoint,
        planned_outline,
        point_config,
        point_tokenizer,
        refuse_settings,
        restored_config,
    )
    from prefixlab.core.config import resolve

    with contextlib.ExitStack() as resources:
        folder: RunDir | None = None
        if "resume" in args:
            refuse_settings(args)
            folder = resources.enter_context(RunDir.open(Path(args.resume)))
            data = folder.config_of(VERB)
            saturate = SaturateConfig(**data["search"])
            config = restored_config(data["probe"], args)
        else:
            own = {field.name for field in dataclasses.fields(SaturateConfig)} | {"dry_run"}
            saturate = resolve(SaturateConfig, vars(args), {})
            words = {name: value for name, value in vars(args).items() if name not in own}
            config = point_config(given_settings(argparse.Namespace(**words)))
        saturate.check(config)
        first = saturate.probe(config, 1, saturate.search(None).guess, None)
        if "dry_run" in args:
            print(describe(saturate, config))
            return 0
        planned_outline(first)  # files that cannot be read are told before any server is asked
        endpoint = resources.enter_context(open_point_endpoint(config))
        if folder is None:
            tokenizer = point_tokenizer(first, endpoint)
            check_point(endpoint, first, tokenizer)
            try_out(endpoint, first)
            folder = new_folder(saturate, config)
            if folder is not None:
                resources.enter_context(folder)
        return search(saturate, config, endpoint, folder)


def new_folder(saturate: SaturateConfig, config: ServeConfig) -> RunDir | None:
    import dataclasses

    from prefixlab.bench.runs import files

    settings = {
        "verb": VERB,
        "command": files.command_line(sys.argv),
        "search": dataclasses.asdict(saturate),
        "probe": config.stored(),
    }
    report = config.report
    return files.new_folder(report.run_dir, files.sweep_folder(report.label, "saturate"), settings)


def search(saturate: SaturateConfig, config: ServeConfig, endpoint: Any, folder: RunDir | None) -> int:
    """Search, show, keep, judge."""
    from prefixlab.bench.saturate.run import Found, find_knee
    from prefixlab.cli.bench_point import point_tokenizer, watching
    from prefixlab.cli.bench_serve import say_how_to_go_on

    objectives = config.report.objectives()
    assert objectives is not None, "checked before the server was asked"
    found: Found | None = None
    try:
        states = find_knee(
            saturate,
            config,
            endpoint,
            point_tokenizer,
            folder=None if folder is None else folder.path,
            watch=lambda settings: watching([settings]),
            say=lambda words: print(words, file=sys.stderr),
            known=None if folder is None else Found.from_json(saturate, folder.read_json(PROBES) or {}),
        )
        for state in states:
            found = state
            if folder is not None:
                folder.write_json(PROBES, found.to_json())
    except KeyboardInterrupt:
        say_how_to_go_on(folder, VERB)
        raise
    finally:
        if found is not None:
            show(found, objectives, config.report.style, folder)
    assert found is not None, "a search has at least one probe"
    return judge(found, folder)


def show(found: Found, objectives: Objectives, style: str, folder: RunDir | None) -> None:
    import msgspec

    from prefixlab.bench.saturate.report import as_text, keys

    text, data = as_text(found, objectives, TABLE_WIDTH), keys(found, objectives)
    if folder is not None:
        folder.write_text("report.txt", text)
        ended = not (found.interrupted or found.gone)
        folder.write_json("summary.json", {"finished": ended, **data})
        print(f"kept in {folder.path}", file=sys.stderr)
    sys.stdout.write(msgspec.json.encode(data).decode() + "\n" if style == "json" else text)


def judge(found: Found, folder: RunDir | None) -> int:
    from prefixlab.cli.bench_serve import say_how_to_go_on
    from prefixlab.core.errors import GateError, TargetError

    if found.interrupted or found.gone:
        say_how_to_go_on(folder, VERB)
        if found.gone:
            raise TargetError(found.gone)
        raise KeyboardInterrupt
    if found.answer.load is None:
        raise GateError("no load that was tried meets --goodput")
    return 0


def describe(saturate: SaturateConfig, config: ServeConfig) -> str:
    """What would be done, and what it costs at most."""
    from prefixlab.cli.bench_point import describe_point

    lines = []
    if not saturate.whole and saturate.start is None:
        lines.append(f"for where to begin: {describe_point(saturate.capacity_probe(config))}")
    if saturate.start is not None or saturate.whole:
        guess = saturate.search(None).guess
        lines.append(f"first probe: {describe_point(saturate.probe(config, 1, guess, None))}")
    lines.append(
        f"at most {saturate.max_probes} probes of {saturate.probe_duration:g} s or {saturate.probe_requests} "
        f"requests, whichever is more, until the {saturate.find} is sure to {saturate.tolerance:.0%}"
    )
    return "\n".join(lines)
