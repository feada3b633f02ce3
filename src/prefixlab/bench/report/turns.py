"""Sessions on paper: a row per turn, and a line about the sessions themselves.

Owns that layout, the keys of turns and sessions in results, and the columns of `turns.csv`. Turns count
from 0 everywhere, as records have them.

Invariant: what was not measured is n/a on the screen, null in JSON and empty in CSV, never 0.
"""

from __future__ import annotations

import csv
from io import StringIO
from typing import Any

from prefixlab.bench.metrics.turns import SessionFigures, TurnFigures, by_turn, has_turns, of_sessions
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.console import WIDTH, Row, section
from prefixlab.bench.report.figures import brief, milliseconds, number

_COLUMNS = ("turn", "ok", "prompt", "TTFT mean", "p50", "p99", "hit %", "expected")
_WIDTHS = (9, 8, 9, 10, 9, 9, 7, 9)


def turn_lines(table: RecordTable) -> list[str]:
    """The section of a block; nothing where no request follows another."""
    if not has_turns(table):
        return []
    rows = by_turn(table, grouped=True)
    return [
        *section("Sessions", _session_rows(of_sessions(table))),
        "Turns (TTFT in ms, prompt in tokens)".center(WIDTH, "-"),
        _in_columns(_COLUMNS),
        *(_in_columns(_cells(row)) for row in rows),
    ]


def turn_keys(table: RecordTable) -> dict[str, Any]:
    """Of a result; nothing where no request follows another."""
    if not has_turns(table):
        return {}
    sessions = of_sessions(table)
    duration = sessions.duration_s
    return {
        "num_sessions": sessions.planned,
        "begun_sessions": sessions.begun,
        "completed_sessions": sessions.completed,
        "mean_turns_done": sessions.mean_turns,
        "mean_session_ms": milliseconds(duration.mean),
        "median_session_ms": milliseconds(duration.median),
        "p99_session_ms": milliseconds(duration.p99),
        "turns": [_keys(row) for row in by_turn(table)],
    }


def turns_csv(table: RecordTable) -> str:
    """The keys of each turn as a row."""
    text = StringIO()
    rows = [_keys(row) for row in by_turn(table)]
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _session_rows(sessions: SessionFigures) -> list[Row]:
    duration = sessions.duration_s
    return [
        ("Sessions planned:", sessions.planned),
        ("Sessions begun:", sessions.begun),
        ("Sessions completed:", sessions.completed),
        ("Mean turns done:", sessions.mean_turns),
        ("Mean session duration (s):", duration.mean),
        ("Median session duration (s):", duration.median),
        ("P99 session duration (s):", duration.p99),
    ]


def _keys(row: TurnFigures) -> dict[str, Any]:
    return {
        "turn": row.first,
        "planned": row.planned,
        "completed": row.ok,
        "mean_prompt_tokens": row.mean_prompt_tokens,
        "mean_ttft_ms": milliseconds(row.ttft_s.mean),
        "median_ttft_ms": milliseconds(row.ttft_s.median),
        "p99_ttft_ms": milliseconds(row.ttft_s.p99),
        "hit_rate": row.hit_rate,
        "expected_hit_rate": row.expected_hit_rate,
    }


def _cells(row: TurnFigures) -> tuple[str, ...]:
    return (
        f"{row.first}" if row.first == row.last else f"{row.first} … {row.last}",
        f"{row.ok:,}",
        number(row.mean_prompt_tokens),
        *(brief(milliseconds(value)) for value in (row.ttft_s.mean, row.ttft_s.median, row.ttft_s.p99)),
        *(number(None if rate is None else 100 * rate, 2) for rate in (row.hit_rate, row.expected_hit_rate)),
    )


def _in_columns(cells: tuple[str, ...]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
