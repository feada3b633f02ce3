"""`SUMMARY.txt` beside the pictures: what was found, in the shape Dynamo's has, and what that leaves out.

Owns the text. Dynamo's lines come first, as they are; below them every point with its intervals, failures,
repeats and goodput, the benchmarks compared, definitions, and where all of it comes from.

Invariant: nothing that is in the folder and not in the pictures goes unmentioned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prefixlab.bench.compare.comparison import PointComparison, compare
from prefixlab.bench.compare.difference import MARGIN, Difference
from prefixlab.bench.compare.figures import of_latency, of_throughput
from prefixlab.bench.compare.side import Point as Compared
from prefixlab.bench.compare.side import Side
from prefixlab.bench.metrics.intervals import LEVEL
from prefixlab.bench.report.figures import number
from prefixlab.bench.report.pictures.benchmarks.benchmark import (
    OUTPUT,
    REQUESTS,
    TOKENS_PER_USER,
    TPOT,
    TTFT_MEAN,
    TTFT_P99,
    Benchmark,
    Point,
    ends_of,
    itl_word,
)
from prefixlab.bench.report.pictures.benchmarks.chosen import Chosen
from prefixlab.bench.report.pictures.benchmarks.figures import FILES
from prefixlab.bench.report.pictures.provenance import Provenance, joined
from prefixlab.core.errors import ConfigError

SUMMARY = "SUMMARY.txt"
SEED = 0
"""Of the draws behind the comparison's intervals."""
Rows = Sequence[Sequence[str]]


def summary_text(chosen: Chosen, data_dir: Path, output_dir: Path, provenance: Provenance) -> str:
    """See the module."""
    benchmarks = chosen.benchmarks
    lines = [
        "Benchmark Results Summary",
        "=" * 30,
        "",
        f"Results directory: {data_dir}",
        f"Plots generated: {output_dir}",
        "",
        "Deployment Types Found:",
        *(_found(benchmark) for benchmark in benchmarks),
        "",
        "Generated Plots:",
        *(f"  - {file}" for file in FILES),
        "",
        "Points (latencies in ms; in brackets 95 % intervals; n/a: not measured):",
        *(line for benchmark in benchmarks for line in _points(benchmark, itl_word(benchmarks))),
        *_comparisons(benchmarks),
        "",
        "Definitions:",
        *(f"  {line}" for line in _definitions(benchmarks)),
        "",
        "Provenance:",
        *(line for benchmark in benchmarks for line in _provenance(benchmark)),
        f"  plotted: {provenance.line}",
    ]
    if chosen.left_out:
        lines += ["", "Left out:", *(f"  {sentence}" for sentence in chosen.left_out)]
    return "\n".join(lines) + "\n"


def _found(benchmark: Benchmark) -> str:
    levels = benchmark.levels
    return f"  {benchmark.name}: {len(levels)} concurrency levels ({levels[0]}-{levels[-1]})"


# Points. --------------------------------------------------------------------------------------------------


def _points(benchmark: Benchmark, itl: str) -> Iterator[str]:
    devices = benchmark.num_devices
    shown = "number of devices not known"
    if devices:
        shown = f"{devices} device{'' if devices == 1 else 's'} ({benchmark.devices_from})"
    yield f"  {benchmark.name}: {shown}"
    unit = "gpu" if devices else "server"
    heads = ["concurrency", "requests", "failed", "repeats", "req/s", "output tok/s", "mean TTFT", "p99 TTFT"]
    heads += [f"p50 {itl.upper()}", f"mean {itl.upper()}", "tok/s/user", f"tok/s/{unit}"]
    rows = [heads]
    for point in benchmark.points:
        output = benchmark.output_per_device(point) if devices else point.figures.get(OUTPUT)
        rows.append(
            [
                f"{point.concurrency}",
                _count(point.planned),
                _count(point.failed),
                f"{len(point.runs)}",
                _figure(point, REQUESTS, 2),
                _figure(point, OUTPUT, 1),
                _figure(point, TTFT_MEAN, 1),
                _figure(point, TTFT_P99, 1),
                _figure(point, f"median_{itl}_ms", 2),
                _figure(point, f"mean_{itl}_ms", 2),
                _figure(point, TOKENS_PER_USER, 1),
                number(output, 1),
            ]
        )
    yield from _columns(rows)
    for point in benchmark.points:
        if point.errors:
            told = ", ".join(f"{count:,} {word}" for word, count in point.errors.items())
            yield f"    failed at concurrency {point.concurrency}: {told}"
        if point.goodput:
            yield f"    goodput at concurrency {point.concurrency}: {point.goodput}"
    yield from (f"    note: {note}" for note in benchmark.notes)


def _columns(rows: Rows) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "    " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _count(amount: int | None) -> str:
    return "n/a" if amount is None else f"{amount:,}"


def _figure(point: Point, key: str, digits: int) -> str:
    value, ends = point.figures.get(key), ends_of(point, key)
    if value is None or ends is None:
        return number(value, digits)
    return f"{number(value, digits)} [{number(ends[0], digits)}-{number(ends[1], digits)}]"


# Comparison. ----------------------------------------------------------------------------------------------


def _comparisons(benchmarks: Sequence[Benchmark]) -> Iterator[str]:
    """Every other one against the first."""
    if len(benchmarks) < 2:
        return
    first, *others = benchmarks
    yield ""
    yield f"Compared with {first.name} (change, 95 % interval in % allowing for how many there are, finding):"
    itl = itl_word(benchmarks)
    figures = [of_throughput(OUTPUT), of_latency("ttft", "mean"), of_latency(itl, "mean")]
    for other in others:
        yield f"  {other.name}"
        common = [level for level in first.levels if level in other.levels]
        if not common:
            yield "    no concurrency in common"
            continue
        try:
            found = compare(
                _side(first, common),
                _side(other, common),
                figures=figures,
                margin=MARGIN,
                confidence=LEVEL,
                seed=SEED,
            )
        except ConfigError as error:
            yield f"    {error}"
            continue
        yield from (f"    {line}" for point in found.points for line in _compared(point))


def _side(benchmark: Benchmark, levels: Sequence[int]) -> Side:
    """Points of equal concurrency are repeats of each other here."""
    points = []
    for level in levels:
        runs = tuple(run for point in benchmark.points if point.concurrency == level for run in point.runs)
        points.append(Compared({"concurrency": level}, runs))
    return Side(benchmark.name, tuple(points))


def _compared(point: PointComparison) -> Iterator[str]:
    yield f"{point.name.replace('=', ' ')}: " + "; ".join(_difference(one) for one in point.differences)
    for key, reason in point.refused.items():
        yield f"  {key} is not compared: {reason}"
    if point.question:
        asked = ", ".join(f"{name} {a} and {b}" for name, a, b in point.question)
        yield f"  they were not asked the same: {asked}"


def _difference(one: Difference) -> str:
    if one.change is None:
        return f"{one.figure} n/a"
    between = ""
    if one.low is not None and one.high is not None:
        between = f" [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
    why = "" if between else f" ({one.method})"
    return f"{one.figure} {100 * one.change:+.1f} %{between} {one.finding.value}{why}"


# Definitions, provenance. ---------------------------------------------------------------------------------


def _definitions(benchmarks: Sequence[Benchmark]) -> Iterator[str]:
    yield "tok/s/user: output tokens of a request / its end-to-end time, mean over requests"
    if all(benchmark.num_devices for benchmark in benchmarks):
        yield "tok/s/gpu: output tokens/s of the whole run / number of devices"
    else:
        yield "tok/s/server: output tokens/s of the whole run; the picture is per server, since the number"
        yield "  of devices is not known of every benchmark"
    if itl_word(benchmarks) == TPOT:
        yield "TPOT, drawn as inter-token latency: (last token - first) / (output tokens - 1) of each request"
    else:
        yield "ITL: gap before a token, over all tokens of all requests"
    yield "req/s and tok/s: of requests that succeeded, first start to end of the last answer"


def _provenance(benchmark: Benchmark) -> Iterator[str]:
    points = benchmark.points
    told = {
        "measured": [joined([point.provenance for point in points])],
        "command": [point.provenance.command for point in points],
        "server": [point.server for point in points],
        "seed": [point.seed for point in points],
        "read from": [point.source for point in points],
    }
    yield f"  {benchmark.name}"
    for name, words in told.items():
        for word in dict.fromkeys(word for word in words if word):
            yield f"    {name}: {word}"
