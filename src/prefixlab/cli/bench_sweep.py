"""`prefixlab bench sweep`: the points of one or more lists of values, on one or more servers, side by side.

Owns the verb: flags, where results go, the exit code. The sweep is `prefixlab.bench.runs.sweep`.

Invariant: what was measured is shown and kept, also when the sweep ends early.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefixlab.bench.metrics.point import PointResult
    from prefixlab.bench.records.run_dir import RunDir
    from prefixlab.bench.runs.sweep import SweepPoint
    from prefixlab.cli.main import Parser

SUMMARY = "measure a server at many points: any option of the load and the prompts takes a list"
VERB = "bench sweep"
TABLE_WIDTH = 160


def configure(parser: Parser) -> None:
    from prefixlab.bench.config.sweep import SweepConfig
    from prefixlab.cli.bench_point import add_point_flags, add_strict_flag
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}, as --max-concurrency 1,10,100. Several lists are taken in every combination. Without a "
        "load the concurrencies are 1, 2, 5, 10, 50, 100 and 250, with three requests for each slot and at "
        "least 10. The server's cache is emptied before every point, where it can be.\n\nOptions shown as "
        "INT,… FLOAT,… STR,… or a,b,c take a list, with commas between. --target NAME=URL measures "
        "several servers."
    )
    add_flags(parser, SweepConfig, "sweep")
    add_strict_flag(parser)
    add_point_flags(parser, listed=True)
    parser.why_refused = why_refused
    parser.add_argument(
        "--resume",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="go on with the sweep in this folder; points that are finished are not measured again",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the points and their cost, and stop",
    )


def why_refused(word: str) -> str | None:
    """Besides what is so of a point's options: a list written with blanks."""
    from prefixlab.cli import peer_flags

    if not word.startswith("-"):
        return "stands alone: the values of a list have commas between them, as in --max-concurrency 1,4"
    return peer_flags.why_refused(word)


def run(args: argparse.Namespace) -> int:
    from prefixlab.bench.report.console import counted
    from prefixlab.core.config import Values

    with contextlib.ExitStack() as resources:
        if "resume" in args:
            folder, points = resumed(args, VERB, resources)
        else:
            points = planned_points(args)
            if not any(isinstance(value, Values) and len(value) > 1 for value in vars(args).values()):
                several = counted(len(points), "point")
                print(f"no option was given a list: {several}, {describe_axes(points)}", file=sys.stderr)
            if "dry_run" in args:
                print(describe(points))
                return 0
            folder = begun(points, VERB, resources)
        results = measure(points, Keeper(folder, VERB))
    return judge(points, results)


def resumed(
    args: argparse.Namespace, verb: str, resources: contextlib.ExitStack
) -> tuple[RunDir | None, list[SweepPoint]]:
    """The folder that --resume names, for as long as `resources`, and its points."""
    from prefixlab.bench.records.run_dir import RunDir
    from prefixlab.bench.runs.sweep import probe
    from prefixlab.cli.bench_point import open_point_endpoint, point_tokenizer, refuse_settings

    refuse_settings(args)
    folder = resources.enter_context(RunDir.open(Path(args.resume)))
    points = restored_points(folder.config_of(verb), args)
    probe(points, partial(open_point_endpoint, told=False), point_tokenizer, folder.path)
    return folder, points


def begun(points: list[SweepPoint], verb: str, resources: contextlib.ExitStack) -> RunDir | None:
    """A new folder for what has been found to be measurable; None where nothing is to be kept."""
    from prefixlab.bench.runs import files
    from prefixlab.bench.runs.checks import check_files
    from prefixlab.bench.runs.sweep import own_config, probe
    from prefixlab.cli.bench_point import open_point_endpoint, point_tokenizer

    for point in points:
        check_files(own_config(point, points))
    probe(points, partial(open_point_endpoint, told=False), point_tokenizer, None)
    report = points[0].config.report
    settings = {
        "verb": verb,
        "command": files.command_line(sys.argv),
        "points": [
            {"name": point.name, "swept": dict(point.swept), "config": point.config.stored()}
            for point in points
        ],
    }
    default = files.sweep_folder(report.label, verb.rpartition(" ")[2])
    folder = files.new_folder(report.run_dir, default, settings)
    return None if folder is None else resources.enter_context(folder)


def describe_axes(points: list[SweepPoint]) -> str:
    """What differs between the points."""
    swept = [{name: value for name, value in point.swept.items() if name != "target"} for point in points]
    names = list(swept[0])
    if not names:
        return "as the options say"
    return "; ".join(
        f"--{name} {','.join(dict.fromkeys(str(point[name]) for point in swept))}" for name in names
    )


def planned_points(args: argparse.Namespace) -> list[SweepPoint]:
    """All points, their settings checked: a wrong one is told before the first is measured."""
    import dataclasses

    from prefixlab.bench.config.sweep import SweepConfig, point_name, settings_of, shown
    from prefixlab.bench.runs.sweep import SweepPoint
    from prefixlab.cli.bench_point import given_settings, point_config
    from prefixlab.core.config import resolve
    from prefixlab.core.errors import ConfigError

    sweep = resolve(SweepConfig, vars(args), {})
    if "," in str(getattr(args, "base_url", "")):
        raise ConfigError("--base-url is one server: several are measured with --target NAME=URL NAME=URL")
    own = {field.name for field in dataclasses.fields(SweepConfig)} | {"dry_run"}
    options = argparse.Namespace(**{name: value for name, value in vars(args).items() if name not in own})
    targets: dict[str | None, dict[str, Any]] = {
        name: {"base_url": url} for name, url in sweep.targets().items()
    } or {None: {}}
    if sweep.target and any(name in vars(args) for name in ("base_url", "host", "port")):
        raise ConfigError("--target names the servers: leave out --base-url, --host and --port")
    points: list[SweepPoint] = []
    for name, where in targets.items():
        for point in sweep.points(vars(options)):
            given = given_settings(argparse.Namespace(**settings_of({**vars(options), **where}, point)))
            number = len(points)
            points.append(
                SweepPoint(point_name(number, name, point), shown(name, point), point_config(given))
            )
    if len(points) > 1 and points[0].config.report.result_filename is not None:
        raise ConfigError("--result-filename is one file, and there are several points: use --output-file")
    return points


def restored_points(data: dict[str, Any], args: argparse.Namespace) -> list[SweepPoint]:
    from prefixlab.bench.runs.sweep import SweepPoint
    from prefixlab.cli.bench_point import restored_config

    return [
        SweepPoint(point["name"], point["swept"], restored_config(point["config"], args))
        for point in data["points"]
    ]


def describe(points: list[SweepPoint]) -> str:
    """Every point in a line, and what they cost together."""
    from prefixlab.bench.report.console import counted
    from prefixlab.bench.runs.point import tokens_of
    from prefixlab.cli.bench_point import arrival_seconds, describe_point, planned_outline

    lines = [f"{point.name}: {describe_point(point.config)}" for point in points]
    num_requests = num_output = 0
    num_prompt: int | None = 0
    for point in points:
        planned, repeats = planned_outline(point.config), point.config.load.repeats
        prompt, output = tokens_of(planned)
        num_requests += repeats * planned.num_requests
        num_prompt = None if num_prompt is None or prompt is None else num_prompt + repeats * prompt
        num_output += repeats * output
    prompts = "prompts as long as they are" if num_prompt is None else counted(num_prompt, "prompt token")
    seconds = sum(arrival_seconds(point.config) for point in points)
    lines.append(
        f"{counted(len(points), 'point')}: {counted(num_requests, 'request')}, "
        f"{prompts}, {counted(num_output, 'output token')}"
        + (f", at least {seconds:,.0f} s of arrivals" if seconds else "")
        + "; besides, up to 3 short probes at each point"
    )
    return "\n".join(lines)


def measure(points: list[SweepPoint], keeper: Keeper) -> list[PointResult]:
    """Measure and show; what was measured is shown also on the way out with an error, or interrupted."""
    from prefixlab.bench.runs.files import result_file
    from prefixlab.bench.runs.sweep import run_sweep
    from prefixlab.cli.bench_point import open_point_endpoint, point_tokenizer, watching

    result_file(points[0].config, "", None)  # a folder that cannot be made is told before anything is sent
    results: list[PointResult] = []
    folder = keeper.folder
    try:
        with watching([point.config for point in points]) as watcher:
            for result in run_sweep(
                points,
                open_point_endpoint,
                point_tokenizer,
                folder=None if folder is None else folder.path,
                watcher=watcher,
                on_point=keeper.point_done,
            ):
                results.append(result)
    finally:
        if not results and folder is not None:
            folder.remove_if_empty()
        if results:
            keeper.show(results, points[0].config.report.style, left=left_of(points, results))
    return results


def left_of(points: list[SweepPoint], results: list[PointResult]) -> list[str]:
    """What a sweep that ended early did not measure, in sentences; nothing if it was measured to its end."""
    said = []
    if results[-1].interrupted:
        said.append(f"{points[len(results) - 1].name} was broken off: its figures are of what had finished")
    if missing := [point.name for point in points[len(results) :]]:
        said.append(f"not measured: {', '.join(missing)}")
    return said


class Keeper:
    """Where results of points go."""

    def __init__(self, folder: RunDir | None, verb: str) -> None:
        self.folder = folder
        self._verb = verb

    def as_text(self, results: list[PointResult], style: str) -> str:
        """What is shown and kept for people to read."""
        from prefixlab.bench.runs.files import sweep_text

        return sweep_text(results, TABLE_WIDTH)

    def point_done(self, point: SweepPoint, result: PointResult) -> None:
        from prefixlab.bench.records.run_dir import free_name
        from prefixlab.bench.runs.files import result_file, save

        path = result_file(point.config, result.settings.backend, result.settings.model)
        if path is not None and not point.config.report.append_result:
            path = free_name(path)  # two points may end in one second
        save(point.config.report, path, result)

    def show(self, results: list[PointResult], style: str, *, left: list[str]) -> None:
        from prefixlab.bench.report.points.side_by_side import write_csv
        from prefixlab.bench.runs.files import lines_of

        text = self.as_text(results, style) + "".join(f"note: {sentence}\n" for sentence in left)
        lines = lines_of(results)
        if self.folder is not None:
            write_csv(self.folder.path / "sweep.csv", results)
            self.folder.write_bytes("sweep.jsonl", lines)
            self.folder.write_text("report.txt", text)
            self.folder.write_json("summary.json", {"finished": not left, "points": len(results)})
            print(f"kept in {self.folder.path}", file=sys.stderr)
            if left:
                print(f"to go on: prefixlab {self._verb} --resume {self.folder.path}", file=sys.stderr)
        sys.stdout.write(lines.decode() if style == "json" else text)


def judge(points: list[SweepPoint], results: list[PointResult]) -> int:
    """Raises TargetError if at some point no request succeeded, KeyboardInterrupt if it was interrupted,
    GateError as `check_strictly`."""
    from prefixlab.bench.ledger.check import first_failure
    from prefixlab.cli.bench_point import check_strictly
    from prefixlab.core.errors import TargetError

    if results and results[-1].interrupted:
        raise KeyboardInterrupt
    empty = [
        (point.name, result) for point, result in zip(points, results, strict=True) if not result.metrics.ok
    ]
    if empty:
        names = ", ".join(name for name, _ in empty)
        raise TargetError(f"no request succeeded at {names}: {first_failure(empty[0][1].table)}")
    names_of = [point.name for point in points]
    check_strictly(points[0].config, dict(zip(names_of, results, strict=True)))
    return 0
