"""`prefixlab bench prefix-ratio`: what it is worth that a growing part of every prompt is shared.

Owns the verb: its flags and defaults, which are those of Dynamo's `prefix_ratio_benchmark.py`, what is
printed where, the exit code. A ratio is a point of a sweep, so the runs and their folders are those of
`bench sweep`.

Invariant: what was measured is shown and kept, also when the sweep ends early.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefixlab.bench.metrics.point import PointResult
    from prefixlab.bench.records.run_dir import RunDir
    from prefixlab.bench.runs.sweep import SweepPoint
    from prefixlab.cli.main import Parser

SUMMARY = (
    "sweep the part of prompts that is shared: ratio, expected and measured hit rate, TTFT, ITL, throughput"
)
VERB = "bench prefix-ratio"
OWN = ("prefix_ratios", "dry_run")
TABLE_WIDTH = 160


def configure(parser: Parser) -> None:
    from prefixlab.bench.config import prefix_ratio as defaults
    from prefixlab.cli.bench_point import add_point_flags, add_strict_flag, options_of_others
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\nEach prompt is one of --num-prefix-prompts prefixes of int(isl·R) tokens, chosen at "
        "random, and int(isl·(1-R)) tokens of its own. The ratio is of lengths: of these R·100 % the cache "
        "can serve only what is no prefix's first time, in whole pages. Lengths are exact unless "
        f"--isl-stddev or --osl-stddev say otherwise. Defaults: --isl {defaults.DEFAULT_ISL}, --osl "
        f"{defaults.DEFAULT_OSL}, --requests {defaults.DEFAULT_REQUESTS}, --concurrency "
        f"{defaults.DEFAULT_CONCURRENCY}, --seed {defaults.DEFAULT_SEED}, one more for each further ratio. "
        "Every ratio starts from a cold cache, as "
        "far as the server can be emptied.\n\nSeveral --url are asked at the same time: each gets its part "
        "of the requests (what is left over goes to the first) and of the concurrency (at least 1), and "
        "percentiles are of all requests together. Without a server an embedded engine is started and "
        "measured."
    )
    add_flags(parser, defaults.PrefixRatioSweep, "sweep")
    add_strict_flag(parser)
    parser.add_argument(
        "--requests",
        dest="num_prompts",
        type=int,
        metavar="INT",
        default=argparse.SUPPRESS,
        help="requests of each ratio, as --num-prompts",
    )
    parser.add_argument(
        "--output-dir",
        dest="run_dir",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="folder for results_summary.json, prefix_ratio_performance.png and all else, as --run-dir",
    )
    parser.add_argument(
        "--resume",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="go on with the sweep in this folder; ratios that are finished are not measured again",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the ratios and their cost, and stop",
    )
    add_point_flags(
        parser, skip=options_of_others("prefix-ratio") | {"dataset_name", "prefix_ratio", "fixed_schedule"}
    )


def run(args: argparse.Namespace) -> int:
    from prefixlab.bench.runs.point import outline
    from prefixlab.cli.bench_sweep import Keeper, begun, describe, judge, measure, resumed

    with contextlib.ExitStack() as resources:
        if "resume" in args:
            folder, points = resumed(args, VERB, resources)
        else:
            points = planned_points(vars(args))
            if "dry_run" in args:
                print(describe(points))
                for point in points:
                    print("\n".join(f"note: {note}" for note in outline(point.config).workload.notes))
                return 0
            folder = begun(points, VERB, resources)

        class RatioKeeper(Keeper):
            """Adds the summary and the picture that users of Dynamo's benchmark look for."""

            def as_text(self, results: list[PointResult], style: str) -> str:
                return ratios_text(points, results)

            def show(self, results: list[PointResult], style: str, *, left: list[str]) -> None:
                if self.folder is not None:
                    keep(self.folder, points, results)
                super().show(results, style, left=left)

        results = measure(points, RatioKeeper(folder, VERB))
    return judge(points, results)


def planned_points(given: dict[str, Any]) -> list[SweepPoint]:
    """One for each ratio, with the seed one higher each time."""
    from prefixlab.bench.config import prefix_ratio as defaults
    from prefixlab.bench.config.sweep import LOAD_OPTIONS, point_name, shown
    from prefixlab.bench.runs.sweep import SweepPoint
    from prefixlab.cli.bench_point import given_settings, point_config
    from prefixlab.core.config import resolve
    from prefixlab.core.errors import ConfigError

    settings = {name: value for name, value in given.items() if name not in OWN}
    settings["dataset_name"] = "prefix-ratio"
    settings.setdefault("random_input_len", defaults.DEFAULT_ISL)
    settings.setdefault("random_output_len", defaults.DEFAULT_OSL)
    settings.setdefault("num_prompts", defaults.DEFAULT_REQUESTS)
    if not set(LOAD_OPTIONS) & set(settings):
        settings["max_concurrency"] = defaults.DEFAULT_CONCURRENCY
    settings["metric_percentiles"] = "25,75," + settings.get("metric_percentiles", "90,95,99")
    seed = settings.pop("seed", defaults.DEFAULT_SEED)
    points = []
    for number, ratio in enumerate(resolve(defaults.PrefixRatioSweep, given, {}).ratios()):
        own = {"prefix_ratio": ratio}
        namespace = argparse.Namespace(**settings, **own, seed=seed + number)
        config = point_config(given_settings(namespace))
        points.append(SweepPoint(point_name(number, None, own), shown(None, own), config))
    if len(points) > 1 and points[0].config.report.result_filename is not None:
        raise ConfigError("--result-filename is one file, and there are several points: use --output-file")
    return points


def ratios_text(points: list[SweepPoint], results: list[PointResult]) -> str:
    from io import StringIO

    from rich.console import Console

    from prefixlab.bench.report.points.side_by_side import notes_of_points
    from prefixlab.bench.report.prefix_ratio import ratio_points, ratio_table

    text = StringIO()
    console = Console(file=text, width=TABLE_WIDTH, highlight=False)
    console.print(ratio_table(ratio_points([point.config for point in points], results)))
    for note in notes_of_points(results):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    return text.getvalue()


def keep(folder: RunDir, points: list[SweepPoint], results: list[PointResult]) -> None:
    """`results_summary.json` and the picture."""
    from prefixlab.bench.report.environment import machine_name
    from prefixlab.bench.report.pictures.prefix_ratio import PICTURE, write_prefix_ratio_plot
    from prefixlab.bench.report.pictures.provenance import Provenance
    from prefixlab.bench.report.prefix_ratio import SUMMARY, ratio_points, summary_keys

    ratios = ratio_points([point.config for point in points], results)
    folder.write_json(SUMMARY, summary_keys(ratios))
    model = results[0].settings.model or results[0].settings.backend
    title = f"{model}, asked from {machine_name()}"
    write_prefix_ratio_plot(folder.path / PICTURE, ratios, title=title, provenance=Provenance.now())
