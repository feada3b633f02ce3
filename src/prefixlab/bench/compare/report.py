"""A comparison, and a gate's ruling, as text and as JSON.

Owns the sentence on top and what stands below it. Judges nothing.

Invariant: nothing is said that the JSON does not hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from prefixlab.bench.compare.comparison import HEADLINES, MIXED, Comparison, PointComparison
from prefixlab.bench.compare.difference import Difference, Finding, repeats_needed
from prefixlab.bench.compare.figures import parse_figures
from prefixlab.bench.compare.gate import Gate, Ruled, Ruling
from prefixlab.bench.compare.series import ONLY_KNOWN
from prefixlab.bench.compare.side import Side

_SHOWN = 3
_CHANGED = (Finding.BETTER, Finding.WORSE)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """What makes it another question, verdict, notes, a table per point, and what the figures stand on."""
    _question_first(console, comparison)
    _say(console, verdict(comparison))
    _warn(console, comparison)
    for point in comparison.points:
        table = _table(point.name, ("figure", "A", "B", "change", "interval", "finding"))
        for of in point.differences:
            word = of.finding.value if of.low is not None else f"{of.finding.value}: {of.method}"
            table.add_row(*_figures(of), change(of.change), interval(of.low, of.high), word)
        console.print(table)
    _say_the_rest(console, comparison)


def show_gate(console: Console, gate: Gate, comparison: Comparison) -> None:
    """The same, against limits."""
    _question_first(console, comparison)
    _say(console, ruling(gate))
    _warn(console, comparison)
    for point in dict.fromkeys(row.point for row in gate.rows):
        table = _table(point, ("figure", "A", "B", "change", "interval", "limit", "ruling"))
        for row in (row for row in gate.rows if row.point == point):
            of = row.difference
            word = row.ruling.value if of.low is not None else f"{row.ruling.value}: {of.method}"
            limit = f"{'-' if of.higher_is_better else '+'}{row.limit:.1%}"
            table.add_row(*_figures(of), change(of.change), interval(of.low, of.high), limit, word)
        console.print(table)
    _say_the_rest(console, comparison)


def verdict(comparison: Comparison) -> str:
    """One sentence."""
    found = [(point, of) for point in comparison.points for of in point.differences]
    changed = {
        finding: [_told(point, of) for point, of in found if of.finding is finding] for finding in _CHANGED
    }
    unsure = [_name(point, of) for point, of in found if of.finding is Finding.UNDECIDED]
    several = f" at {len(comparison.points)} points" if len(comparison.points) > 1 else ""
    if comparison.finding == MIXED:
        better, worse = (_listed(changed[finding]) for finding in _CHANGED)
        return f"mixed{several}: B is better in {better}; worse in {worse}"
    if comparison.finding in {finding.value for finding in _CHANGED}:
        return f"B is {comparison.finding}{several}: {_listed(changed[Finding(comparison.finding)])}"
    if comparison.finding == Finding.SAME.value:
        tail = f"; too noisy to tell: {_listed(unsure)}" if unsure else ""
        return f"no difference beyond ±{comparison.margin * 100:g}%{several}{tail}"
    open_ones = [(point, of) for point, of in found if of.finding is Finding.UNDECIDED]
    open_ones = [(point, of) for point, of in open_ones if of.figure in HEADLINES] or open_ones
    headlines = [_name(point, of) for point, of in open_ones]
    return (
        f"undecided{several}: too noisy, or too short, to tell whether there is a difference of "
        f"{comparison.margin * 100:g}% in {_listed(headlines)}; "
        f"{_would_tell([of for _, of in open_ones], comparison.margin)}"
    )


def _would_tell(undecided: Sequence[Difference], margin: float) -> str:
    """What it takes, of figures that are undecided."""
    if all(of.method == ONLY_KNOWN for of in undecided):
        return "three runs of each or more would tell, or their requests"
    if not any("repeats" in of.method for of in undecided):
        return "longer runs would tell, and three or more of each whether runs differ"
    needed = [repeats_needed(of, margin) for of in undecided if "repeats" in of.method]
    counts = [count for count in needed if count is not None]
    if len(counts) < len(needed):
        return "more runs of each, or longer and quieter ones, would tell"
    return f"about {max(counts)} runs of each, if they differ as these do, or longer ones would tell"


def ruling(gate: Gate) -> str:
    """One sentence: which figure failed, by how much, how sure."""
    open_rows = [f"{_row_name(row)} ({_reach(row)})" for row in gate.undecided]
    unsure = f"; undecided: {_listed(open_rows)}" if open_rows else ""
    if gate.failed or gate.failures:
        told = [
            f"{_row_name(row)} is {_worse(row)} (surely {row.at_least:.1%}), and {row.limit:.1%} is allowed"
            for row in gate.failed
        ]
        return f"gate failed: {'; '.join([*gate.failures, *told])}{unsure}"
    if gate.strict and gate.undecided:
        return f"gate failed, being strict: not shown to be within the limit: {_listed(open_rows)}"
    if not gate.decided:
        return f"nothing can be judged: not one of {len(gate.rows)} figures is decided: {_listed(open_rows)}"
    counts = Counter(row.ruling for row in gate.rows)
    shown = f"{counts[Ruling.PASSED]} of {len(gate.rows)} figures shown to be within their limits"
    return f"gate passed: {shown}{unsure}"


def as_json(comparison: Comparison, gate: Gate | None = None) -> str:
    data: dict[str, Any] = {
        "finding": comparison.finding,
        "verdict": verdict(comparison),
        "same_question": comparison.same_question,
        "margin": comparison.margin,
        "confidence": comparison.confidence,
        "seed": comparison.seed,
        "a": _side_json(comparison.a),
        "b": _side_json(comparison.b),
        "points": [_point_json(point) for point in comparison.points],
        "unmatched": comparison.unmatched,
    }
    if gate is not None:
        data |= {
            "passes": gate.passes,
            "ruling": ruling(gate),
            "strict": gate.strict,
            "failures": gate.failures,
            "figures": [
                {
                    "point": row.point or None,
                    "figure": row.difference.figure,
                    "limit": row.limit,
                    "regression": row.regression,
                    "at_least": row.at_least,
                    "at_most": row.at_most,
                    "ruling": row.ruling.value,
                }
                for row in gate.rows
            ],
        }
    return msgspec.json.format(msgspec.json.encode(data, enc_hook=str), indent=2).decode() + "\n"


def change(share: float | None) -> str:
    return "n/a" if share is None else f"{share:+.1%}"


def interval(low: float | None, high: float | None) -> str:
    return "n/a" if low is None or high is None else f"{change(low)} … {change(high)}"


def question_of(comparison: Comparison) -> str | None:
    """What makes it two questions, in words; None where it is one."""
    told = dict.fromkeys(
        f"{name}: A {a}, B {b}" for point in comparison.points for name, a, b in point.question
    )
    return "; ".join(told) or None


def _question_first(console: Console, comparison: Comparison) -> None:
    """Nobody should read a verdict before knowing what it is of."""
    if question := question_of(comparison):
        _say(console, f"WARNING: not the same question: {question}")


def _warn(console: Console, comparison: Comparison) -> None:
    for note in dict.fromkeys(note for point in comparison.points for note in point.notes):
        _say(console, f"note: {note}")
    for one in comparison.unmatched:
        _say(console, f"note: not compared: {one}")


def _say_the_rest(console: Console, comparison: Comparison) -> None:
    num_figures = sum(len(point.differences) for point in comparison.points)
    level_of = {
        "headlines" if of.figure in HEADLINES else "other figures": of.level
        for point in comparison.points
        for of in point.differences
    }
    each = ", ".join(f"{what} at {level:.2%}" for what, level in level_of.items())
    for title, lines in {
        "Not compared": _unique(
            f"{key}: {why}" for point in comparison.points for key, why in point.refused.items()
        ),
        "What else differs": _unique(
            f"{name}: A {a}, B {b}" for point in comparison.points for name, a, b in point.circumstances
        ),
        "What was compared": _unique(
            f"{what}: {text}" for point in comparison.points for what, text in point.definitions.items()
        ),
        "How sure": [
            f"intervals of {each}, so that all {num_figures} hold at {comparison.confidence * 100:g}% "
            f"(Bonferroni); no difference: within ±{comparison.margin * 100:g}%",
            *_methods(comparison),
            *_hints(comparison),
        ],
        "From": [f"A: {_described(comparison.a)}", f"B: {_described(comparison.b)}"],
    }.items():
        if lines:
            _say(console, f"{title}:")
            for line in lines:
                _say(console, f"  {line}")


def _methods(comparison: Comparison) -> list[str]:
    """How the intervals were made, most frequent first."""
    counted = Counter(of.method for p in comparison.points for of in p.differences if of.low is not None)
    return [f"{method}: {count} of the intervals" for method, count in counted.most_common(_SHOWN)]


def _hints(comparison: Comparison) -> list[str]:
    """What would make it surer."""
    methods = {of.method for point in comparison.points for of in point.differences}
    hints = []
    if ONLY_KNOWN in methods:
        hints.append(
            "where only the figure is known, save the requests too (vLLM --save-detailed, SGLang "
            "--output-details, aiperf's profile_export.jsonl), or compare three results of each"
        )
    if any("blocks" in method for method in methods):
        hints.append(
            "blocks know what changes within a run, not from one run to the next, as a busier machine: "
            "three runs of each do"
        )
    return hints


def _described(side: Side) -> str:
    runs = [run for point in side.points for run in point.runs]
    clients = ", ".join(dict.fromkeys(run.client for run in runs))
    sources = list(dict.fromkeys(run.source for run in runs))
    where = sources[0] if len(sources) == 1 else side.name
    points = f"{len(side.points)} points, " if len(side.points) > 1 else ""
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{where} ({clients}; {points}{count})"


def _figures(of: Difference) -> tuple[str, str, str]:
    figure = parse_figures(of.figure)[0]
    return f"{figure} ({figure.unit})", _value(of.a), _value(of.b)


def _value(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.2f}"


def _name(point: PointComparison, of: Difference) -> str:
    return f"{parse_figures(of.figure)[0]}{f' at {point.name}' if point.name else ''}"


def _told(point: PointComparison, of: Difference) -> str:
    return f"{_name(point, of)} {change(of.change)} ({interval(of.low, of.high)})"


def _row_name(row: Ruled) -> str:
    return f"{parse_figures(row.difference.figure)[0]}{f' at {row.point}' if row.point else ''}"


def _worse(row: Ruled) -> str:
    return f"{row.regression:.1%} worse" if row.regression is not None else "not known"


def _reach(row: Ruled) -> str:
    if row.at_most is None or row.at_least is None:
        return row.difference.method
    return f"between {-row.at_least:.1%} better and {row.at_most:.1%} worse"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def _table(title: str, headers: Sequence[str]) -> Table:
    table = Table(title=title or None, title_justify="left")
    for number, header in enumerate(headers):
        last = number == len(headers) - 1
        table.add_column(
            header, justify="left" if last or not number else "right", no_wrap=not last, overflow="fold"
        )
    return table


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "runs": [
            {"source": run.source, "client": run.client, "point": dict(run.key), "planned": run.planned}
            for point in side.points
            for run in point.runs
        ],
    }


def _point_json(point: PointComparison) -> dict[str, Any]:
    return {
        "point": dict(point.a.key) or None,
        "differences": [
            {
                "figure": of.figure,
                "a": of.a,
                "b": of.b,
                "change": of.change,
                "low": of.low,
                "high": of.high,
                "level": of.level,
                "method": of.method,
                "values": of.num_values,
                "higher_is_better": of.higher_is_better,
                "finding": of.finding.value,
            }
            for of in point.differences
        ],
        "refused": point.refused,
        "question": [{"setting": name, "a": a, "b": b} for name, a, b in point.question],
        "circumstances": [{"setting": name, "a": a, "b": b} for name, a, b in point.circumstances],
        "definitions": point.definitions,
        "failed": point.failed,
        "notes": point.notes,
    }
