"""`prefixlab bench trace FILE`: replay a recorded trace at its own times, at one speed or at several.

Owns the verb: its flags and defaults, what is printed where, the exit code. A speed is a point of a sweep, so
the runs, their folders and their reports are those of `bench sweep`.

Invariant: what was measured is shown and kept, also when the replay ends early.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefixlab.bench.metrics.point import PointResult
    from prefixlab.bench.runs.sweep import SweepPoint
    from prefixlab.cli.main import Parser

SUMMARY = "replay a trace of requests, its sharing of prefixes reproduced exactly, at one speed or at several"
VERB = "bench trace"
EMBEDDED_NUM_PROMPTS, EMBEDDED_LENGTH_SCALE = 50, 0.25
"""Unless told otherwise: traces are recorded on models and machines far larger than the one embedded."""
SPEEDS = ("speedup", "time_scale")
OWN = ("file", "preset", "dry_run")


def configure(parser: Parser) -> None:
    from prefixlab.bench.config.sweep import SweepConfig
    from prefixlab.bench.config.trace import PRESETS
    from prefixlab.cli.bench_point import add_point_flags, add_strict_flag, options_of_others
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}. Takes Mooncake's, Bailian's, Azure's and BurstGPT's traces, agentic sessions and lists "
        "of lengths, plain or compressed.\n\nEach request goes at its recorded time (--fixed-schedule), "
        "whatever became of the others; with --no-fixed-schedule and --max-concurrency only the order is "
        "kept. Several speeds are measured one after another, each from a cold cache, and shown side by "
        "side.\n\nAll requests of the trace are sent, or the first --num-prompts. Without --base-url, "
        "--host, --port or --backend an embedded engine is started and measured: it is sent the first "
        f"{EMBEDDED_NUM_PROMPTS}, unless told otherwise (--num-prompts 0: all)."
    )
    parser.add_argument("file", metavar="FILE", nargs="?", default=argparse.SUPPRESS, help="the trace")
    group = parser.add_argument_group("trace")
    group.add_argument(
        "--speedup",
        nargs="+",
        action="extend",
        type=_speeds,
        default=argparse.SUPPRESS,
        metavar="X",
        help="2 replays twice as fast as recorded; several values make several runs (default: 1)",
    )
    group.add_argument(
        "--time-scale",
        "--mooncake-slowdown-factor",
        nargs="+",
        action="extend",
        type=_speeds,
        default=argparse.SUPPRESS,
        metavar="X",
        help="the other way round: 2 replays half as fast; several values make several runs",
    )
    group.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default=argparse.SUPPRESS,
        help="qwen: the first 1,000 requests of a Bailian trace, at the time scales 0.4 0.5 0.6 0.7 0.8 1.6; "
        "other options overrule it",
    )
    parser.add_argument(
        "--resume",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="go on with the replay in this folder; speeds that are finished are not measured again",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print what would be sent, and stop",
    )
    add_flags(parser, SweepConfig, "several servers")
    add_strict_flag(parser)
    add_point_flags(
        parser, listed=True, skip=options_of_others("trace") | {"dataset_name", "dataset_path", *SPEEDS}
    )


def _speeds(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, nor several with commas") from None


def run(args: argparse.Namespace) -> int:
    from prefixlab.bench.runs.point import outline
    from prefixlab.cli.bench_sweep import Keeper, begun, describe, judge, measure, resumed
    from prefixlab.core.errors import ConfigError

    given = vars(args)
    with contextlib.ExitStack() as resources:
        if "resume" in given:
            folder, points = resumed(args, VERB, resources)
        elif "file" not in given:
            raise ConfigError("bench trace needs a FILE: the trace to replay")
        else:
            points = planned_points(given)
            for point in points:
                outline(point.config)  # a file that cannot be read is told before any server is asked
            if "dry_run" in given:
                print(describe(points))
                print("\n".join(f"note: {note}" for note in notes_of(points)))
                return 0
            folder = begun(points, VERB, resources)

        class ReplayKeeper(Keeper):
            """One speed is shown as one run is, several side by side."""

            def as_text(self, results: list[PointResult], style: str) -> str:
                from prefixlab.bench.runs.files import as_text

                if len(points) > 1:
                    return super().as_text(results, style)
                return "".join(as_text(result, style) for result in results)

        results = measure(points, ReplayKeeper(folder, VERB))
    return judge(points, results)


def planned_points(given: dict[str, Any]) -> list[SweepPoint]:
    """One for each speed, and for each value of other options that were given several."""
    from prefixlab.bench.config.trace import PRESETS
    from prefixlab.bench.runs.point import outline
    from prefixlab.cli import bench_sweep
    from prefixlab.core.config import Values
    from prefixlab.core.errors import ConfigError

    settings = {name: value for name, value in given.items() if name not in OWN}
    settings |= {"dataset_name": "trace", "dataset_path": given["file"]}
    for name in SPEEDS:
        if name in settings:
            settings[name] = Values(speed for several in settings[name] for speed in several)
    if len(set(SPEEDS) & set(settings)) > 1:
        raise ConfigError("--speedup and --time-scale both say how fast: give one")
    for name, value in PRESETS.get(given.get("preset", ""), {}).items():
        if name not in SPEEDS or not set(SPEEDS) & set(settings):
            settings.setdefault(name, Values(value) if isinstance(value, tuple) else value)
    if not set(SPEEDS) & set(settings):
        settings["speedup"] = Values((1.0,))
    chosen = settings.get("num_prompts")
    if chosen in (0, (0,)):
        del settings["num_prompts"]
    points = bench_sweep.planned_points(argparse.Namespace(**settings))
    if points[0].config.target.is_embedded:
        said = []
        if chosen is None:
            settings["num_prompts"] = EMBEDDED_NUM_PROMPTS
            said.append(f"at most {EMBEDDED_NUM_PROMPTS} requests are sent (--num-prompts 0 sends all)")
        if "length_scale" not in settings:
            settings["length_scale"] = EMBEDDED_LENGTH_SCALE
            said.append(f"lengths are scaled by {EMBEDDED_LENGTH_SCALE:g} (--length-scale 1 leaves them)")
        if said:
            points = bench_sweep.planned_points(argparse.Namespace(**settings))
            outline(points[0].config)  # where the file cannot be read nothing else is said
            print(f"the embedded engine is small: {', '.join(said)}", file=sys.stderr)
    return points if "num_prompts" in given else [_with_all_there_are(point) for point in points]


def _with_all_there_are(point: SweepPoint) -> SweepPoint:
    """Of a number that nobody gave nothing is said where a trace has fewer requests."""
    from prefixlab.bench.runs.point import outline

    dataset = point.config.dataset
    if dataset.num_prompts is None or outline(point.config).num_requests >= dataset.num_prompts:
        return point
    everything = dataclasses.replace(dataset, num_prompts=None)
    return dataclasses.replace(point, config=dataclasses.replace(point.config, dataset=everything))


def notes_of(points: list[SweepPoint]) -> list[str]:
    """What was done to the trace, each note once."""
    from prefixlab.bench.runs.point import outline

    return list(dict.fromkeys(note for point in points for note in outline(point.config).workload.notes))
