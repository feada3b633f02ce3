"""The search as people and programs read it: a table of probes, and one sentence that answers.

Owns their words and keys. Invariant: an answer never goes without its interval, nor without how sure it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from prefixlab.bench.metrics.goodput import Objectives
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.report.points.keys import result_keys
from prefixlab.bench.saturate.run import Found
from prefixlab.bench.saturate.search import CONFIDENCE, Probe


def sentence(found: Found, objectives: Objectives) -> str:
    """The answer."""
    unit, answer, share = found.config.unit, found.answer, found.config.share
    what = f"{objectives} for {share:.3g} of requests"
    sure = f"{CONFIDENCE:.0%} sure"
    met = [probe.load for probe in found.probes if probe.word == "meets"]
    missed = [probe.load for probe in found.probes if probe.word == "misses"]
    if not found.probes:
        return "nothing was found out"
    if not met and not missed:
        return (
            f"cannot tell what it holds under {what}: no probe was clear. Longer ones are (--probe-duration)"
        )
    if not met:
        return f"holds less than {min(missed):.4g} {unit} under {what}; no probe met them"
    if not missed:
        return f"holds at least {max(met):.4g} {unit} under {what}; no probe missed them"
    assert answer.load is not None and answer.low is not None and answer.high is not None, "met and missed"
    value = f"{answer.load:.0f}" if found.config.whole else f"{answer.load:.4g}"
    text = f"holds {value} {unit} ({sure}: {answer.low:.4g} … {answer.high:.4g}) under {what}"
    if not answer.settled:
        text += f"; not sure to {found.config.tolerance:.0%} after {len(found.probes)} probes"
    return text


def as_text(found: Found, objectives: Objectives, width: int) -> str:
    text = StringIO()
    console = Console(file=text, width=width, highlight=False)
    console.print(_table(found))
    for note in notes(found):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(sentence(found, objectives), markup=False, soft_wrap=True)
    return text.getvalue()


def notes(found: Found) -> list[str]:
    """What the search has to add, and the probes' own notes, each once."""
    said: list[str] = list(found.answer.oddities) if found.probes else []
    if found.interrupted:
        said.append("interrupted: the answer is of the probes before")
    if found.gone:
        said.append(f"the server could not be asked any more: {found.gone}")
    common = [set(result.notes) for result in found.results]
    if common:
        said += [note for note in found.results[0].notes if all(note in notes for notes in common)]
    return said


def keys(found: Found, objectives: Objectives) -> dict[str, Any]:
    """For `summary.json` and --style json."""
    answer = found.answer if found.probes else None
    return {
        "find": found.config.find,
        "unit": found.config.unit,
        "objectives": str(objectives),
        "share": found.config.share,
        "tolerance": found.config.tolerance,
        "confidence": CONFIDENCE,
        "load": answer and answer.load,
        "low": answer and answer.low,
        "high": answer and answer.high,
        "settled": bool(answer and answer.settled),
        "answer": sentence(found, objectives),
        "capacity": found.capacity,
        "probes": [_probe_keys(probe, result) for probe, result in _pairs(found)],
        "notes": notes(found),
    }


def _pairs(found: Found) -> Iterable[tuple[Probe, PointResult]]:
    """A probe that was broken off has a result, and shows nothing."""
    return zip(found.probes, found.results, strict=False)


def _probe_keys(probe: Probe, result: PointResult) -> dict[str, Any]:
    summary = result_keys(result)
    names = ("completed", "failed", "request_throughput", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms")
    return {
        "load": probe.load,
        "share": probe.share,
        "probability": probe.probability,
        "verdict": probe.word,
        "saturated": result.saturated,
        **{name: summary.get(name) for name in names},
    }


def _table(found: Found) -> Table:
    table = Table(title="probes", title_justify="left")
    for name in (
        found.config.unit,
        "requests",
        "failed",
        "good %",
        "TTFT p50 ms",
        "TTFT p99 ms",
        "TPOT p50 ms",
    ):
        table.add_column(name, justify="right")
    table.add_column("objectives")
    for probe, result in _pairs(found):
        metrics = result.metrics
        table.add_row(
            f"{probe.load:g}",
            f"{metrics.planned:,}",
            f"{metrics.failed:,}",
            f"{probe.share:.1%}".rstrip("%"),
            _ms(
                metrics.ttft_from_intent_s.at(50.0) if result.settings.open_loop else metrics.ttft_s.at(50.0)
            ),
            _ms(
                metrics.ttft_from_intent_s.at(99.0) if result.settings.open_loop else metrics.ttft_s.at(99.0)
            ),
            _ms(metrics.tpot_s.at(50.0)),
            f"{probe.word} ({probe.probability:.0%})" + (", saturated" if result.saturated else ""),
        )
    return table


def _ms(seconds: float | None) -> str:
    return "n/a" if seconds is None else f"{seconds * 1e3:,.1f}"
