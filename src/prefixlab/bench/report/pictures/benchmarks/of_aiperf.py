"""Benchmarks out of folders that Dynamo's scripts leave: NAME/cN/…/profile_export_aiperf.json.

Owns that layout. What is in a file is read by `compare/importers/aiperf.py`.

Invariants: N is a whole number and nothing but that; where the file says another concurrency it is the
file's, for that is what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prefixlab.bench.compare.importers.aiperf import RECORDS, RETOKENISED, SUMMARY
from prefixlab.bench.compare.run import Run
from prefixlab.bench.compare.side import read_runs
from prefixlab.bench.config.sweep import RESERVED_NAMES
from prefixlab.bench.metrics import intervals, latencies
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.pictures.benchmarks.benchmark import (
    OUTPUT,
    REQUESTS,
    TOKENS_PER_USER,
    Benchmark,
    Ends,
    Point,
    tokens_per_user,
)
from prefixlab.bench.report.pictures.provenance import Provenance

_LEVEL = re.compile(r"c([1-9][0-9]*)", re.ASCII)


def benchmarks_of_aiperf(path: Path) -> tuple[list[Benchmark], list[str]]:
    """All there are below `path`; and what was left out, in sentences.

    Raises:
        ConfigError: a file is no result of aiperf's.
    """
    points: dict[str, list[Point]] = {}
    notes: dict[str, list[str]] = {}
    left_out: list[str] = []
    for file in sorted(path.rglob(SUMMARY)):
        parts = file.relative_to(path).parts[:-1]
        if parts and parts[0].lower() in RESERVED_NAMES:
            continue
        place = next((at for at, part in enumerate(parts) if _LEVEL.fullmatch(part)), None)
        if place is None:
            left_out.append(f"{file.relative_to(path)}: none of its folders is a concurrency, as c16")
            continue
        name = "/".join(parts[:place]) or path.resolve().name
        (run,) = read_runs(str(file))
        named, measured = int(parts[place][1:]), run.key.get("max-concurrency")
        if not run.known.get(REQUESTS):
            left_out.append(f"{file.relative_to(path)}: no request succeeded")
            continue
        if isinstance(measured, int) and measured != named:
            notes.setdefault(name, []).append(
                f"{'/'.join(parts)} was measured at concurrency {measured}, and is drawn there"
            )
            named = measured
        points.setdefault(name, []).append(_point(run, named))
        notes.setdefault(name, []).extend(_notes(run))
    found = [
        Benchmark(
            name,
            tuple(sorted(of, key=lambda point: (point.concurrency, point.source))),
            has_itl=False,
            notes=tuple(dict.fromkeys(notes[name])),
        )
        for name, of in points.items()
    ]
    return found, left_out


def _point(run: Run, concurrency: int) -> Point:
    figures, ends = dict(run.known), dict[str, Ends]()
    if run.table is None:
        per_user, interval = _of_averages(run), None
    else:
        per_user, interval = tokens_per_user([run.table])
        ends |= _ends(run.table)
    if per_user is not None:
        figures[TOKENS_PER_USER] = per_user
    if interval is not None:
        ends[TOKENS_PER_USER] = (interval.low, interval.high)
    return Point(
        concurrency=concurrency,
        source=run.source,
        runs=(run,),
        figures=figures,
        ends=ends,
        planned=run.planned,
        failed=run.failed,
        provenance=Provenance("", "", run.client, "", ""),
        server=_words(
            [run.question.get("model"), run.circumstances.get("api"), run.circumstances.get("url")]
        ),
    )


def _of_averages(run: Run) -> float | None:
    """Σ output tokens ÷ Σ E2E: requests that take longer weigh more in it."""
    output, requests, e2e_ms = (run.known.get(key) for key in (OUTPUT, REQUESTS, "mean_e2el_ms"))
    return output / requests / e2e_ms * 1e3 if output and requests and e2e_ms else None


def _notes(run: Run) -> list[str]:
    notes = []
    if run.definitions[OUTPUT].text.endswith(RETOKENISED):
        notes.append("aiperf made tokens of the text again: counts are not the server's")
    if run.table is None:
        notes.append(f"no {RECORDS}: tok/s/user is Σ output tokens ÷ Σ end-to-end time, no interval")
    return notes


def _ends(table: RecordTable) -> dict[str, Ends]:
    """Of the latencies that are drawn."""
    order = np.argsort(table.sent_s, kind="stable")
    order = order[(table.ok & (table.num_arrivals > 0))[order]]
    found = {}
    for what, of in (("ttft", latencies.ttft_s), ("tpot", latencies.tpot_s)):
        values = of(table)[order]
        values = values[~np.isnan(values)]
        found[f"mean_{what}_ms"] = intervals.of_mean(values)
        found[f"p50_{what}_ms"] = intervals.of_percentile(values, 50.0)
    return {key: (1e3 * of.low, 1e3 * of.high) for key, of in found.items() if of is not None}


def _words(facts: Sequence[object]) -> str:
    return ", ".join(str(fact) for fact in facts if fact)
