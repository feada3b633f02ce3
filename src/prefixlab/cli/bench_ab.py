"""`prefixlab bench ab`: arms in turns, and what differs between them; by default what a cache is worth.

Owns the verb: flags, where results go, the exit code. The A/B is `prefixlab.bench.ab`.

Invariant: what was measured is shown and kept, also when it ends early.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefixlab.bench.ab.arms import Arm
    from prefixlab.bench.ab.config import AbConfig
    from prefixlab.bench.ab.run import Turns
    from prefixlab.bench.config.serve import ServeConfig
    from prefixlab.bench.records.run_dir import RunDir
    from prefixlab.cli.main import Parser

SUMMARY = "measure two or more settings or servers in turns; by default what a prefix cache is worth, and why"
VERB = "bench ab"
TABLE_WIDTH = 140
DECIDED = frozenset(
    {
        *("num_prompts", "repeats", "duration", "url", "save_workload", "result_filename"),
        *("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps", "stage", "schedule", "fixed_schedule"),
    }
)
"""Options of a point that rounds decide, or that mean nothing in a turn of few requests."""
WHERE = ("base_url", "host", "port")
DEFAULTS: dict[str, Any] = {"dataset_name": "shared-prefix", "scrape_interval": 0.0}
TOKEN_S = 0.01
"""Of one stream, for --dry-run to say about how long it takes: nobody has asked the server yet."""
LOADS = ("max_concurrency", "request_rate")


def configure(parser: Parser) -> None:
    from prefixlab.bench.ab.config import AbConfig
    from prefixlab.cli.bench_point import add_point_flags
    from prefixlab.cli.bench_serve import add_run_flags
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\nEvery arm has its turn in every round, with the same prompts and in an order that "
        "changes so that a drift of the machine cancels. Differences are of pairs: request by request.\n\n"
        "Without --arm there are three arms. In hit, what prompts share (half of them, --shared-percent) is "
        "in the cache; in miss every request is told to miss; off is a server without a cache: the embedded "
        "engine a second time, or --off-url. Hit against miss is what hits are worth, miss against off what "
        "the cache's code path costs.\n\n"
        "  prefixlab bench ab --model tiny --shared-percent 50\n"
        "  prefixlab bench ab --base-url http://127.0.0.1:30000 --off-url http://127.0.0.1:30001 "
        "--until-ci 3%\n"
        "  prefixlab bench ab --arm a:base-url=http://one:8000 --arm b:base-url=http://two:8000\n"
        "  prefixlab bench ab --base-url http://one:8000 --arm narrow:max-concurrency=4 "
        "--arm wide:max-concurrency=8\n\n"
        "The load is a closed loop of one unless --max-concurrency or --request-rate says otherwise, and the "
        "prompts those of --dataset-name shared-prefix. Caches are emptied once, before the first round; "
        "with --flush-cache before every turn. The server's metrics are kept only with --scrape-interval."
    )
    add_flags(parser, AbConfig, "arms and rounds")
    add_point_flags(parser, skip=DECIDED)
    add_run_flags(parser)


def run(args: argparse.Namespace) -> int:
    from prefixlab.bench.records.run_dir import RunDir
    from prefixlab.cli.bench_point import planned_outline, refuse_settings

    with contextlib.ExitStack() as resources:
        folder: RunDir | None = None
        if "resume" in args:
            refuse_settings(args)
            folder = resources.enter_context(RunDir.open(Path(args.resume)))
            ab, arms, notes = restored(folder.config_of(VERB), args)
        else:
            ab, arms, notes = planned(args)
        for arm in arms:
            planned_outline(arm.config)  # what cannot be made is told before any server is started
        if "dry_run" in args:
            print(describe(ab, arms, notes))
            return 0
        if folder is None:
            folder = new_folder(ab, arms, notes)
            if folder is not None:
                resources.enter_context(folder)
        return measure(ab, arms, notes, folder)


def planned(args: argparse.Namespace) -> tuple[AbConfig, list[Arm], list[str]]:
    """Settings, arms as they will be asked, and notes on them."""
    import dataclasses

    from prefixlab.bench.ab.arms import Arm, alike, same_arms, worth_arms
    from prefixlab.bench.ab.config import AbConfig
    from prefixlab.core.config import resolve

    ab = resolve(AbConfig, vars(args), {})
    own = {field.name for field in dataclasses.fields(AbConfig)} | {"dry_run"}
    given = {name: value for name, value in vars(args).items() if name not in own}
    settings = ab.settings()
    if settings:
        notes: list[str] = []
        arms = [Arm(name, arm_config(name, words, given)) for name, words in settings.items()]
    else:
        arms, notes = worth_arms(with_defaults(given), ab.off_url)
    notes += [note for note in [same_arms(arms)] if note]
    return ab, alike(arms, ab), notes


def arm_config(name: str, words: list[str], given: dict[str, Any]) -> ServeConfig:
    """What all arms have, and `words` besides. ConfigError names the arm."""
    from prefixlab.cli.bench_point import add_point_flags
    from prefixlab.cli.main import Parser
    from prefixlab.core.errors import ConfigError

    parser = Parser(f"prefixlab {VERB}", SUMMARY)
    add_point_flags(parser, skip=DECIDED)
    try:
        own = vars(parser.parse_strictly(words))
        common = given
        if any(place in own for place in WHERE):
            common = {option: value for option, value in given.items() if option not in WHERE}
        return with_defaults({**common, **own})
    except ConfigError as error:
        raise ConfigError(f"--arm {name}: {error}") from None


def with_defaults(given: dict[str, Any]) -> ServeConfig:
    from prefixlab.cli.bench_point import given_settings, point_config

    load = {} if any(name in given for name in LOADS) else {"max_concurrency": 1}
    return point_config(given_settings(argparse.Namespace(**{**DEFAULTS, **load, **given})))


def new_folder(ab: AbConfig, arms: list[Arm], notes: list[str]) -> RunDir | None:
    import dataclasses

    from prefixlab.bench.runs import files

    report = arms[0].config.report
    settings = {
        "verb": VERB,
        "command": files.command_line(sys.argv),
        "ab": dataclasses.asdict(ab),
        "arms": [{"name": arm.name, "role": arm.role.name, "config": arm.config.stored()} for arm in arms],
        "notes": notes,
    }
    return files.new_folder(report.run_dir, files.sweep_folder(report.label, "ab"), settings)


def restored(data: dict[str, Any], args: argparse.Namespace) -> tuple[AbConfig, list[Arm], list[str]]:
    from prefixlab.bench.ab.arms import Arm, Role
    from prefixlab.bench.ab.config import AbConfig
    from prefixlab.cli.bench_point import restored_config
    from prefixlab.core.errors import ConfigError

    try:
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data["ab"].items()
        }
        arms = [
            Arm(arm["name"], restored_config(arm["config"], args), Role[arm["role"]]) for arm in data["arms"]
        ]
        return AbConfig(**options), arms, list(data["notes"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"--resume {args.resume}: not a config.json of this version: {error}") from None


def measure(ab: AbConfig, arms: list[Arm], notes: list[str], folder: RunDir | None) -> int:
    """Take turns, show, keep, judge."""
    from prefixlab.bench.ab.progress import Rounds
    from prefixlab.bench.ab.run import take_turns
    from prefixlab.bench.report.progress import ProgressBar
    from prefixlab.cli.bench_point import open_point_endpoint, point_tokenizer, watching
    from prefixlab.cli.bench_serve import say_how_to_go_on
    from prefixlab.core.clock import MonotonicClock
    from prefixlab.core.errors import PrefixlabError

    for note in forewarned(ab, arms, notes):
        print(f"note: {note}", file=sys.stderr)
    try:
        with watching([arm.config for arm in arms]) as watcher:
            turns = take_turns(
                ab,
                arms,
                partial(open_point_endpoint, told=True),
                point_tokenizer,
                folder=None if folder is None else folder.path,
                watcher=watcher,
                notes=notes,
                on_round=Rounds(watcher.say, MonotonicClock()) if isinstance(watcher, ProgressBar) else None,
            )
    except (PrefixlabError, KeyboardInterrupt):
        if folder is not None:
            folder.remove_if_empty()
            if any(folder.path.glob("*/segments")):
                say_how_to_go_on(folder, VERB)
        raise
    show(turns, folder)
    return judge(turns, folder)


def forewarned(ab: AbConfig, arms: list[Arm], notes: list[str]) -> list[str]:
    """What should be known before anything is measured."""
    from prefixlab.bench.ab.judge import too_few

    chunk = ab.chunk_of(max((arm.config.load for arm in arms), key=ab.chunk_of))
    few = too_few(ab.figures, ab.most_rounds, chunk, len(arms))
    return notes if few is None else [*notes, few]


def show(turns: Turns, folder: RunDir | None) -> None:
    import msgspec

    from prefixlab.bench.ab.report import as_text, keys
    from prefixlab.bench.runs.files import save

    text, data = as_text(turns, TABLE_WIDTH), keys(turns)
    for arm, result in zip(turns.arms, turns.results, strict=True):
        save(arm.config.report, None, result)
    if folder is not None:
        folder.write_text("report.txt", text)
        folder.write_json("summary.json", {"finished": not turns.broken_off, **data})
        print(f"kept in {folder.path}", file=sys.stderr)
    style = turns.arms[0].config.report.style
    sys.stdout.write(msgspec.json.encode(data).decode() + "\n" if style == "json" else text)


def judge(turns: Turns, folder: RunDir | None) -> int:
    """Raises KeyboardInterrupt if it was interrupted, TargetError if a server went away or an arm got no
    answer."""
    from prefixlab.bench.ledger.check import first_failure
    from prefixlab.cli.bench_serve import say_how_to_go_on
    from prefixlab.core.errors import TargetError

    if turns.broken_off:
        say_how_to_go_on(folder, VERB)
        if turns.gone:
            raise TargetError(turns.gone)
        raise KeyboardInterrupt
    for arm, result in zip(turns.arms, turns.results, strict=True):
        if not result.metrics.ok:
            raise TargetError(f"no request of {arm.name} succeeded: {first_failure(result.table)}")
    return 0


def describe(ab: AbConfig, arms: list[Arm], notes: list[str]) -> str:
    """What would be done, and what it costs at most."""
    import dataclasses

    from prefixlab.bench.ab.progress import told
    from prefixlab.bench.ab.schedule import order
    from prefixlab.bench.runs.point import tokens_of
    from prefixlab.cli.bench_point import arrival_seconds, describe_point, planned_outline

    def of_one_turn(arm: Arm) -> str:
        load = dataclasses.replace(arm.config.load, repeats=1)
        return describe_point(dataclasses.replace(arm.config, load=load))

    lines = [f"{arm.name} ({arm.role.value}), in each round: {of_one_turn(arm)}" for arm in arms]
    seed = arms[0].config.dataset.seed
    turns = (order(number, len(arms), seed) for number in range(min(ab.most_rounds, 2 * len(arms))))
    shown = ", ".join(" ".join(arms[number].name for number in row) for row in turns)
    until = "" if ab.until_ci is None else f", until {ab.figures[0]} is known to ±{ab.until_ci}"
    lines.append(f"at most {ab.most_rounds} rounds{until}; turns by seed {seed}: {shown} …")
    num_requests, least_s = 0, 0.0
    for arm in arms:
        planned = planned_outline(arm.config)
        num_requests += arm.config.load.repeats * planned.num_requests
        if arm.config.load.open_loop:
            least_s += arrival_seconds(arm.config)
        else:
            num_tokens = arm.config.load.repeats * tokens_of(planned)[1]
            least_s += TOKEN_S * num_tokens / (arm.config.load.max_concurrency or 1)
    lines.append(
        f"at most {num_requests:,} requests, and one in each turn for each prefix, not measured; some "
        f"{told(least_s)} with a server that takes {TOKEN_S * 1e3:g} ms for an output token"
    )
    return "\n".join(lines + [f"note: {note}" for note in forewarned(ab, arms, notes)])
