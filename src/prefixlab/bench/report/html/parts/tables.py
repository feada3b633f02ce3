"""The figures of every run in a row each; sessions turn by turn; failures by kind.

Owns columns. Invariant: a figure is as its summary tells it, with its interval where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefixlab.bench.ledger.check import first_failure
from prefixlab.bench.metrics.turns import by_turn, has_turns
from prefixlab.bench.report.html.entries import Entry
from prefixlab.bench.report.html.markup import Child, Markup, el, table
from prefixlab.bench.report.html.parts.headline import grade_of, verdict_of
from prefixlab.bench.report.html.words import NOTHING, number_at, percent, short, with_interval

_COLUMNS = (
    ("requests/s", "request_throughput"),
    ("output tokens/s", "output_throughput"),
    ("TTFT p50", "p50_ttft_ms"),
    ("TTFT p99", "p99_ttft_ms"),
    ("TPOT p50", "p50_tpot_ms"),
    ("TPOT p99", "p99_tpot_ms"),
    ("ITL p99", "p99_itl_ms"),
    ("E2E p50", "p50_e2el_ms"),
    ("E2E p99", "p99_e2el_ms"),
)


def figures(entries: Sequence[Entry]) -> Markup:
    """Every run in a row; figures that none of them has are left out."""
    heads = ("run", "ok / planned", "hit rate", "cache", "trust", *(head for head, _ in _COLUMNS), "goodput")
    rows: list[list[Child]] = []
    for entry in entries:
        summary = entry.summary
        ok, planned = number_at(summary, "completed"), number_at(summary, "planned")
        rows.append(
            [
                entry.name,
                f"{short(ok)} / {short(planned)}",
                percent(number_at(summary, "measured_hit_rate")),
                verdict_of(entry) or NOTHING,
                grade_of(entry) or NOTHING,
                *(with_interval(summary, key) for _, key in _COLUMNS),
                percent(number_at(summary, "goodput_share")),
            ]
        )
    told = [column for column in range(len(heads)) if any(row[column] != NOTHING for row in rows)]
    rows = [[row[column] for column in told] for row in rows]
    caption = "Latencies in ms; in brackets the 95 % interval, where there is one"
    return el(
        "section",
        el("h2", "Figures"),
        table(caption, [heads[column] for column in told], rows, classes="figures"),
        id="figures",
    )


def sessions(entries: Sequence[Entry]) -> Markup | None:
    """Turn by turn, of the runs in which one request follows another."""
    tables = []
    for entry in entries:
        if not has_turns(entry.run.table):
            continue
        rows = [
            [
                str(row.first) if row.first == row.last else f"{row.first} … {row.last}",
                f"{row.ok:,}",
                short(row.mean_prompt_tokens),
                *(short(None if at is None else at * 1e3) for at in (row.ttft_s.median, row.ttft_s.p99)),
                percent(row.hit_rate),
                percent(row.expected_hit_rate),
            ]
            for row in by_turn(entry.run.table, grouped=True)
        ]
        heads = ("turn", "ok", "prompt tokens", "TTFT p50, ms", "TTFT p99, ms", "hit rate", "expected")
        tables.append(table(f"{entry.name}: turn by turn", heads, rows))
    return el("section", el("h2", "Sessions"), tables, id="sessions") if tables else None


def failures(entries: Sequence[Entry]) -> Markup | None:
    """What requests ran into, with the server's own words for the first."""
    rows: list[list[Child]] = []
    for entry in entries:
        kinds = entry.summary.get("failures") or {}
        said = first_failure(entry.run.table) if kinds else None
        for number, (kind, count) in enumerate(kinds.items()):
            rows.append([entry.name, kind, f"{count:,}", el("code", said) if said and not number else ""])
    if not rows:
        return None
    heads = ("run", "kind", "requests", "first of the run")
    return el(
        "section",
        el("h2", "Failures"),
        table("Failed requests by what they ran into", heads, rows),
        id="failures",
    )
