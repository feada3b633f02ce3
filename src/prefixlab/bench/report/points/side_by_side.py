"""The points of a sweep side by side: a table for people, rows for files.

Owns which figures a row has. What was swept comes first; the mark of goodput last: a point passes when at
least 99 % of the requests that ended met every objective.

Invariant: a row's figures are its point's own; nothing is pooled over points.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.ledger.ledger import verdict_word
from prefixlab.bench.metrics.distribution import Distribution
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.report.figures import brief, milliseconds, number
from prefixlab.bench.report.points.block import shown_notes
from prefixlab.bench.report.points.keys import result_keys
from prefixlab.core.errors import ConfigError

GOOD_SHARE = 0.99


def passes(result: PointResult) -> bool | None:
    """None where no objectives were given, or nothing ended."""
    goodput = result.metrics.goodput
    return None if goodput is None or goodput.share is None else goodput.share >= GOOD_SHARE


def points_table(results: Sequence[PointResult]) -> Table:
    """One row per point. Latencies in milliseconds, TTFT and E2EL in open loop from the schedule."""
    swept = list(dict.fromkeys(name for result in results for name in result.settings.swept))
    any_open = any(result.settings.open_loop for result in results)
    any_hits = any(_reports_hits(result) for result in results)
    any_goodput = any(result.metrics.goodput for result in results)
    any_early = any(result.interrupted for result in results)
    title = "Points; latencies in ms" + (", in open loop from the schedule" if any_open else "")
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    columns = [name.removeprefix("--").replace("-", "\n") for name in swept]
    columns += ["req/s", "output\ntok/s", "in\nflight"]
    columns += [f"{name}\n{p}" for name in ("TTFT", "TPOT", "ITL", "E2EL") for p in ("p50", "p99")]
    columns += ["failed", *(["satu-\nrated"] if any_open else [])]
    columns += ["hit\n%", "ex-\npected", "cache\nverdict"] if any_hits else []
    columns += ["good\n%", "good-\nput"] if any_goodput else []
    columns += ["ended"] if any_early else []
    any_examined = any(result.diagnosis for result in results)
    columns += ["trust"] if any_examined else []
    for column in columns:
        # fold: where there is too little room, a figure goes on in the next line and is never cut
        table.add_column(escape(column), justify="right", overflow="fold")
    for result in results:
        cells = [_cell(result.settings.swept.get(name)) for name in swept] + _figures(result)
        if any_open:
            unknown = "cannot tell" if result.settings.open_loop else ""
            cells.append({True: "[red]yes[/]", False: "no", None: unknown}[_saturated(result)])
        if any_hits:
            cells += _hit_cells(result)
        if any_goodput:
            cells += _goodput_cells(result)
        if any_early:
            cells.append("[red]early[/]" if result.interrupted else "")
        if any_examined:
            cells.append("" if result.diagnosis is None else result.diagnosis.grade)
        table.add_row(*cells)
    return table


def notes_of_points(results: Sequence[PointResult]) -> list[str]:
    """Each note once, behind the points it is about; behind nothing where it is about all of them."""
    said: dict[str, list[str]] = {}
    for place, result in enumerate(results, 1):
        swept = result.settings.swept.items()
        name = ", ".join(f"{option.removeprefix('--')} {_plain(value)}" for option, value in swept)
        for note in shown_notes(result):
            said.setdefault(note, []).append(name or f"point {place}")
    return [
        note if len(points) == len(results) else f"{'; '.join(points)}: {note}"
        for note, points in said.items()
    ]


def write_csv(path: Path, results: Sequence[PointResult]) -> None:
    """One row per point: what was swept, then every figure that is a single value. ConfigError if the file
    cannot be written."""
    rows = [_flat(result) for result in results]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    try:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _flat(result: PointResult) -> dict[str, Any]:
    figures = result_keys(result)
    single = {key: value for key, value in figures.items() if not isinstance(value, dict | list)}
    said = {} if result.fidelity is None else {"fidelity": str(result.fidelity)}
    said |= {} if result.diagnosis is None else {"trust": result.diagnosis.grade}
    return {**result.settings.swept, **single, **said, "passes": passes(result)}


def _figures(result: PointResult) -> list[str]:
    metrics = result.metrics
    from_intent = result.settings.open_loop
    shown: list[Distribution] = [
        metrics.ttft_from_intent_s if from_intent else metrics.ttft_s,
        metrics.tpot_s,
        metrics.itl_s,
        metrics.e2e_from_intent_s if from_intent else metrics.e2e_s,
    ]
    return [
        number(metrics.request_throughput, 2),
        brief(metrics.output_throughput),
        brief(metrics.concurrency),
        *(brief(milliseconds(value)) for seconds in shown for value in (seconds.median, seconds.p99)),
        str(metrics.failed),
    ]


def _saturated(result: PointResult) -> bool | None:
    known = result.saturation is not None and not result.saturation.untold
    return result.saturated if known else None


def _reports_hits(result: PointResult) -> bool:
    return result.check.verdict not in (Verdict.NOT_REPORTED, Verdict.NOTHING_FINISHED)


def _hit_cells(result: PointResult) -> list[str]:
    """Measured of all that finished, expected of those of which is known what to expect."""
    check = result.check
    rates = [None if rate is None else 100 * rate for rate in (check.hit_rate, check.expected_hit_rate)]
    verdict = verdict_word(check, result.ledger)
    word = verdict.removesuffix(" than expected")
    if 0 < check.num_checked < check.num_finished:
        word += f" ({check.num_checked:,} of {check.num_finished:,})"
    return [*(number(rate, 1) for rate in rates), word]


def _goodput_cells(result: PointResult) -> list[str]:
    goodput = result.metrics.goodput
    if goodput is None or goodput.share is None:
        return ["n/a", ""]
    return [number(100 * goodput.share, 1), "[green]pass[/]" if passes(result) else "[red]fail[/]"]


def _cell(value: object) -> str:
    return "" if value is None else escape(_plain(value))


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
