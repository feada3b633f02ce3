"""An A/B as people and programs read it: one sentence for each question, a table, and what they stand on.

Owns their words and keys. Judges nothing.

Invariant: no difference goes without its interval, or without why there is none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from prefixlab.bench.ab.arms import Role
from prefixlab.bench.ab.judge import CODE_PATH, HITS, TOGETHER, Answered
from prefixlab.bench.ab.run import Turns, failed_in
from prefixlab.bench.ab.schedule import is_balanced
from prefixlab.bench.compare.difference import MARGIN, Difference, Finding
from prefixlab.bench.compare.figures import Figure, parse_figures
from prefixlab.bench.compare.report import change, interval
from prefixlab.bench.doctor.diagnosis import GRADES
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.report.points.keys import result_keys

_SHOWN_ORDERS = 6
_ABOUT = {
    HITS: "what hits are worth",
    CODE_PATH: "what the code path costs",
    TOGETHER: "both together",
}


def sentence(turns: Turns, answered: Answered) -> str:
    """The verdict on one question, by the first figure."""
    arms, question, of = turns.arms, answered.question, answered.differences[0]
    (figure,) = parse_figures(of.figure)
    sides = f"{arms[question.b].name} against {arms[question.a].name}"
    about = _ABOUT.get(question.about)
    head = f"{about} ({sides})" if about else sides
    if of.change is None or of.a is None or of.b is None:
        return f"{head}: {figure} was not measured on both sides"
    moved = f"{figure} {_amount(figure, of.b - of.a, sign=True)}, {of.change:+.1%}"
    if of.low is None or of.high is None:
        return f"{head}: {moved}; how sure that is, cannot be told: {of.method}"
    return f"{head}: {moved} (95%: {interval(of.low, of.high)}): {_finding(of)}{_others(answered)}"


def _others(answered: Answered) -> str:
    """What came of the other figures: those that moved by name, the rest counted."""
    others = answered.differences[1:]
    said = [
        f"{parse_figures(of.figure)[0]} {change(of.change)}: {of.finding.value}"
        for of in others
        if of.finding in (Finding.BETTER, Finding.WORSE)
    ]
    rest = Counter(of.finding.value for of in others if of.finding not in (Finding.BETTER, Finding.WORSE))
    said += [f"{count} {finding}" for finding, count in rest.items()]
    return f"; of the other {len(others)}: {', '.join(said)}" if said else ""


def trust(turns: Turns) -> str | None:
    """The worst grade of the arms, and why; None where the doctor looked at none."""
    graded = [
        (arm.name, result.diagnosis)
        for arm, result in zip(turns.arms, turns.results, strict=True)
        if result.diagnosis is not None
    ]
    if not graded:
        return None
    name, worst = max(graded, key=lambda one: GRADES.index(one[1].grade))
    page = f"{name}/{worst.page}" if worst.page else None
    others = ", ".join(f"{other} {of.grade}" for other, of in graded if other != name)
    return f"{replace(worst, page=page)} (arm {name}; {others})"


def notes(turns: Turns) -> list[str]:
    """What a reader should know: of the arms, then of all of them alike, each once."""
    said = list(turns.notes)
    for arm, result in zip(turns.arms, turns.results, strict=True):
        if doubt := _doubt(arm.role, result):
            said.append(f"{arm.name}: {doubt}")
    if not is_balanced(turns.num_rounds, len(turns.arms)):
        said.append(
            f"the schedule is balanced after a multiple of {2 * len(turns.arms)} rounds, and there were "
            f"{turns.num_rounds}: a drift of the machine may show as a difference"
        )
    said += [
        f"{name}: {count} requests failed; neither they nor their pairs count"
        for name, count in failed_in(turns).items()
    ]
    said += [
        f"{arms}: not in pairs, for the requests did not turn out alike (lengths of their answers, say)"
        for arms in _unpaired(turns)
    ]
    if turns.interrupted:
        said.append("interrupted: the figures are of the rounds before")
    if turns.gone:
        said.append(f"a server could not be asked any more: {turns.gone}")
    if len(turns.config.figures) > 1:
        said.append(
            f"each interval is at 95% for itself, and the verdict is about {turns.config.figures[0]}: of "
            "twenty intervals where nothing differs, one leaves out 0"
        )
    shared = [set(result.notes) for result in turns.results]
    said += [note for note in turns.results[0].notes if all(note in of_arm for of_arm in shared)]
    return list(dict.fromkeys(said))


def as_text(turns: Turns, width: int) -> str:
    text = StringIO()
    console = Console(file=text, width=width, highlight=False)
    answers = turns.answers()
    console.print(_arms_table(turns))
    for answered in answers:
        console.print(_differences_table(turns, answered))
    rounds = f"{turns.num_rounds} rounds of {_chunk(turns)} requests for each arm ({turns.why_ended})"
    lines = [f"{rounds}; turns by seed {turns.seed}: {_orders(turns)}"]
    lines += [f"note: {note}" for note in notes(turns)]
    lines += [line for line in [trust(turns)] if line]
    lines += [sentence(turns, answered) for answered in answers]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    return text.getvalue()


def keys(turns: Turns) -> dict[str, Any]:
    """For `summary.json` and --style json."""
    answers = turns.answers()
    return {
        "verdicts": [sentence(turns, answered) for answered in answers],
        "differences": [
            {
                "about": answered.question.about,
                "from": turns.arms[answered.question.a].name,
                "to": turns.arms[answered.question.b].name,
                **_difference_keys(of),
            }
            for answered in answers
            for of in answered.differences
        ],
        "arms": [
            {
                "name": arm.name,
                "role": arm.role.name.lower(),
                "grade": None if result.diagnosis is None else result.diagnosis.grade,
                **_arm_keys(result),
            }
            for arm, result in zip(turns.arms, turns.results, strict=True)
        ],
        "rounds": turns.num_rounds,
        "requests_per_round": _chunk(turns),
        "why_ended": turns.why_ended,
        "seed": turns.seed,
        "order": [[turns.arms[number].name for number in row] for row in turns.orders],
        "notes": notes(turns),
    }


def _difference_keys(of: Difference) -> dict[str, Any]:
    return {
        "figure": of.figure,
        "a": of.a,
        "b": of.b,
        "difference": None if of.a is None or of.b is None else of.b - of.a,
        "change": of.change,
        "low": of.low,
        "high": of.high,
        "level": of.level,
        "method": of.method,
        "num_values": list(of.num_values),
        "finding": of.finding.value,
    }


def _arm_keys(result: PointResult) -> dict[str, Any]:
    summary = result_keys(result)
    names = (
        *("completed", "failed", "cached_tokens", "expected_cached_tokens", "verdict"),
        *("mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "output_throughput"),
    )
    return {name: summary.get(name) for name in names}


def _unpaired(turns: Turns) -> list[str]:
    """Questions whose first figure has an interval, and not one of pairs."""
    return [
        f"{turns.arms[of.question.b].name} against {turns.arms[of.question.a].name}"
        for of in turns.answers(1)
        if of.differences[0].low is not None and "pairs" not in of.differences[0].method
    ]


def _doubt(role: Role, result: PointResult) -> str:
    """Why an arm may not show what it is there for; empty where it does."""
    check = result.check
    if role is Role.HIT and check.expected_cached_tokens == 0:
        return "nothing is shared, so nothing could hit (--shared-percent says how much is)"
    if role is Role.HIT and not check.cached_tokens:
        return f"no hit was reported, so that what hits are worth is not known ({_word(result)})"
    if role in (Role.MISS, Role.OFF) and check.cached_tokens:
        return f"{check.cached_tokens:,} tokens were served from a cache, and none should have been"
    if check.verdict not in (Verdict.CONSISTENT, Verdict.UNCHECKED) and role is not Role.OFF:
        return f"hits are not as expected: {_word(result)}"
    return ""


def _word(result: PointResult) -> str:
    return result.check.words if result.ledger is None else result.ledger.words


def _arms_table(turns: Turns) -> Table:
    table = Table(title="arms", title_justify="left")
    table.add_column("arm")
    for name in ("requests", "failed", "hits %", "expected %", "TTFT p50 ms", "TPOT p50 ms"):
        table.add_column(name, justify="right")
    table.add_column("hits are")
    for arm, result in zip(turns.arms, turns.results, strict=True):
        metrics, check = result.metrics, result.check
        table.add_row(
            arm.name,
            f"{metrics.planned:,}",
            f"{metrics.failed:,}",
            _percent(check.hit_rate),
            _percent(check.expected_hit_rate),
            _ms(metrics.ttft_s.median),
            _ms(metrics.tpot_s.median),
            _word(result),
        )
    return table


def _differences_table(turns: Turns, answered: Answered) -> Table:
    question = answered.question
    a, b = turns.arms[question.a].name, turns.arms[question.b].name
    about = _ABOUT.get(question.about)
    table = Table(title=f"{about}: {b} against {a}" if about else f"{b} against {a}", title_justify="left")
    table.add_column("figure")
    for name in (a, b, "difference", "change", "95% interval"):
        table.add_column(name, justify="right")
    table.add_column("finding")
    for of in answered.differences:
        (figure,) = parse_figures(of.figure)
        table.add_row(
            str(figure),
            *(_amount(figure, value) for value in (of.a, of.b)),
            "n/a" if of.a is None or of.b is None else _amount(figure, of.b - of.a, sign=True),
            change(of.change),
            interval(of.low, of.high),
            _finding(of) if of.low is not None else f"{of.finding.value}: {of.method}",
        )
    return table


def _finding(of: Difference) -> str:
    """A verdict; where 0 is inside the interval it says so, for that is what is asked of a code path."""
    if (
        of.finding is Finding.UNDECIDED
        and of.low is not None
        and of.high is not None
        and of.low <= 0 <= of.high
    ):
        return "undecided, 0 is inside"
    if of.finding is Finding.SAME:
        return f"{of.finding.value} beyond ±{MARGIN * 100:g}%"
    return str(of.finding.value)


def _chunk(turns: Turns) -> int:
    return len(turns.rounds[0][0])


def _orders(turns: Turns) -> str:
    names = [" ".join(turns.arms[number].name for number in row) for row in turns.orders[:_SHOWN_ORDERS]]
    return ", ".join(names) + (" …" if len(turns.orders) > _SHOWN_ORDERS else "")


def _amount(figure: Figure, value: float | None, *, sign: bool = False) -> str:
    return "n/a" if value is None else f"{value:{'+' if sign else ''}.4g} {figure.unit}"


def _ms(seconds: float | None) -> str:
    return "n/a" if seconds is None else f"{1e3 * seconds:.4g}"


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.1%}".rstrip("%")
