"""What was judged of the runs, laid out: B against A, the cache's ledger, how far each can be trusted.

Owns the layout. Judges nothing: comparisons are `bench/compare`'s, ledger and doctor are read from the runs.

Invariant: what was not judged is not shown; a comparison that cannot be made says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefixlab.bench.compare.comparison import Comparison, PointComparison, compare
from prefixlab.bench.compare.difference import MARGIN, Difference, Finding
from prefixlab.bench.compare.side import open_side
from prefixlab.bench.metrics.intervals import LEVEL
from prefixlab.bench.records.run_dir import object_in
from prefixlab.bench.report.html.entries import Entry
from prefixlab.bench.report.html.markup import Child, Markup, el, folded, table
from prefixlab.bench.report.html.parts.headline import DOCTOR_FILE, badge, grade_of, verdict_of
from prefixlab.bench.report.html.words import NOTHING, figure_name, number_at, percent, plain, short
from prefixlab.core.errors import ConfigError

_MOODS = {
    "better": "good",
    "worse": "bad",
    "no difference": "calm",
    "undecided": "warn",
    "fine": "good",
    "caution": "warn",
    "bad": "bad",
    "unknown": "calm",
}
_TO_MEND = ("bad", "caution")
_UNSUSPICIOUS = (None, "consistent", "not checked", "not reported")
_WIDTH, _HEIGHT = 180, 18
"""Of the picture of an interval, in pixels."""


def comparison(entries: Sequence[Entry]) -> Markup | None:
    """Every folder against the first; nothing of a single one."""
    sources = list(dict.fromkeys(entry.source for entry in entries))
    if len(sources) < 2:
        return None
    parts: list[Child] = []
    for other in sources[1:]:
        try:
            found = compare(
                open_side(str(sources[0])), open_side(str(other)), margin=MARGIN, confidence=LEVEL, seed=0
            )
        except ConfigError as error:
            parts.append(el("p", f"Not compared: {error}"))
        else:
            names = (sources[0].name, other.name)
            parts.append(_compared(found, *names, _doubts(entries, (sources[0], other))))
    return el("section", el("h2", "Comparison"), parts, id="comparison")


def _doubts(entries: Sequence[Entry], sources: Sequence[Path]) -> list[str]:
    """Why the figures of a side are not to be praised: what its cache did, what the doctor says of it."""
    words = []
    for side, source in zip("AB", sources, strict=True):
        mine = [entry for entry in entries if entry.source == source]
        told = [
            *(f"cache: {word}" for entry in mine if (word := verdict_of(entry)) not in _UNSUSPICIOUS),
            *(f"trust: {grade}" for entry in mine if (grade := grade_of(entry)) in ("C", "F")),
        ]
        words += [f"{side} has {word}" for word in dict.fromkeys(told)]
    return words


def _compared(found: Comparison, a: str, b: str, doubts: Sequence[str]) -> Markup:
    verdict = [
        el("strong", b),
        " against ",
        el("strong", a),
        ": ",
        badge(found.finding, _mood(found.finding, doubted=bool(doubts))),
        [[" ", badge(f"but {words}", "warn")] for words in doubts],
    ]
    margin = f" Differences within ±{100 * found.margin:g} % are none; intervals hold at {100 * LEVEL:g} %."
    asked = (
        None
        if found.same_question
        else el("p", badge("The two were asked different questions", "warn"), " ", _questions(found.points))
    )
    return el(
        "div",
        el("p", verdict, el("br"), margin),
        asked,
        [_point(point, a, b, doubted=bool(doubts)) for point in found.points],
        [el("p", f"Not compared: {words}.") for words in found.unmatched],
    )


def _questions(points: Sequence[PointComparison]) -> str:
    asked = dict.fromkeys(f"{name}: {plain(a)} and {plain(b)}" for of in points for name, a, b in of.question)
    return "; ".join(asked)


def _point(point: PointComparison, a: str, b: str, *, doubted: bool) -> Markup:
    caption = f"B ({b}) against A ({a}){f', {point.name}' if point.name else ''}"
    notes = [el("li", note) for note in point.notes]
    rows = differences_table(caption, point.differences, doubted=doubted)
    return el("div", rows, el("ul", notes) if notes else None)


def differences_table(caption: str, differences: Sequence[Difference], *, doubted: bool = False) -> Markup:
    """B against A, a figure in each row."""
    edges = [abs(edge) for of in differences for edge in (of.low, of.high) if edge is not None]
    extent = max([*edges, 0.02])
    rows: list[list[Child]] = [
        [
            figure_name(of.figure),
            short(of.a),
            short(of.b),
            _signed(of.change),
            NOTHING if of.low is None else f"{_signed(of.low)} … {_signed(of.high)}",
            _picture(of, extent, doubted=doubted),
            _finding(of, doubted=doubted),
        ]
        for of in differences
    ]
    heads = ("figure", "A", "B", "change", "interval", f"-{percent(extent)} to +{percent(extent)}", "finding")
    return table(caption, heads, rows, classes="figures")


def _finding(of: Difference, *, doubted: bool) -> list[Child]:
    """With why it is undecided."""
    shown = badge(of.finding.value, _mood(of.finding.value, doubted=doubted))
    if of.finding is not Finding.UNDECIDED:
        return [shown]
    if of.low is None or of.high is None:
        why = of.method
    else:
        why = "0 is inside" if of.low <= 0 <= of.high else "the change itself is within the margin"
    return [shown, " ", el("span", why, class_="why")]


def _signed(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:+.1f} %".replace("-", "-")


def _picture(of: Difference, extent: float, *, doubted: bool) -> Markup:
    """The interval on a line with 0 in its middle; the cells beside it say the same."""

    def x(share: float) -> str:
        return f"{_WIDTH / 2 + max(-1.0, min(1.0, share / extent)) * (_WIDTH / 2 - 4):.1f}"

    middle = _HEIGHT // 2
    parts: list[Child] = [el("line", x1=_WIDTH // 2, x2=_WIDTH // 2, y1=0, y2=_HEIGHT, class_="zero")]
    if of.low is not None and of.high is not None:
        parts.append(el("line", x1=x(of.low), x2=x(of.high), y1=middle, y2=middle, class_="span"))
    if of.change is not None:
        parts.append(el("circle", cx=x(of.change), cy=middle, r=4, class_="at"))
    return el(
        "svg",
        parts,
        width=_WIDTH,
        height=_HEIGHT,
        aria_hidden="true",
        class_=f"interval {_mood(of.finding.value, doubted=doubted)}",
    )


def ledger(entries: Sequence[Entry]) -> Markup | None:
    """Hits as expected, as answers report them, as the server counts them; the cause where they differ."""
    told = [(entry, of) for entry in entries if isinstance(of := entry.summary.get("ledger"), dict)]
    if not told:
        return None
    rates = ("expected_hit_rate", "answers_hit_rate", "server_hit_rate")
    rows: list[list[Child]] = [
        [
            entry.name,
            badge(str(of.get("verdict")), "good" if of.get("consistent") else _mood(str(of.get("verdict")))),
            *(percent(number_at(of, rate)) for rate in rates),
            _because(of),
        ]
        for entry, of in told
    ]
    heads = ("run", "verdict", "expected", "answers", "server's counters", "evidence, and what to do")
    caption = "Cached ÷ prompt tokens, from every side that could be heard"
    return el("section", el("h2", "Did the cache do it?"), table(caption, heads, rows), id="ledger")


def _because(of: Mapping[str, Any]) -> list[Child]:
    words = [
        *(of.get("evidence") or ()),
        *([of["advice"]] if of.get("advice") else []),
        *(of.get("remarks") or ()),
    ]
    if of.get("candidates"):
        words.append(f"It may be: {', '.join(of['candidates'])}")
    return [el("p", str(text), class_="line") for text in words]


def doctor(entries: Sequence[Entry]) -> Markup | None:
    """The page of each run; of one alone, open."""
    told = [(entry, of) for entry in entries if (of := doctor_of(entry)) is not None]
    if not told:
        return None
    pages = [
        folded([f"{entry.name}: ", _grade(of)], _checks(entry.name, of), opened=len(told) == 1)
        for entry, of in told
    ]
    return el(
        "section",
        el("h2", "Can these figures be trusted?"),
        el("p", "A: nothing speaks against them. B: with what is said. C: only having read this. F: no."),
        pages,
        id="doctor",
    )


def doctor_of(entry: Entry) -> Mapping[str, Any] | None:
    """As its summary has it, or its own file."""
    found = entry.summary.get("doctor") or object_in(entry.run.path / DOCTOR_FILE)
    return found if isinstance(found, dict) and found.get("checks") else None


def _grade(of: Mapping[str, Any]) -> Markup:
    grade = str(of.get("grade"))
    mood = {"A": "good", "B": "good", "C": "warn"}.get(grade, "bad")
    return badge(f"grade {grade}", mood)


def _checks(name: str, of: Mapping[str, Any]) -> list[Child]:
    """What is to be mended, worst first and with what it makes wrong; the rest on demand."""
    worst_first = ("bad", "caution", "unknown", "fine")
    rank = {status: number for number, status in enumerate(worst_first)}
    checks = sorted(of["checks"], key=lambda check: rank.get(check["status"], len(rank)))

    def row(check: Mapping[str, Any]) -> list[Child]:
        status = str(check["status"])
        return [check["name"], badge(status, _mood(status)), check["figure"], check["limit"]]

    to_mend = [
        [*row(check), check["distorts"], check["remedy"]] for check in checks if check["status"] in _TO_MEND
    ]
    others = [row(check) for check in checks if check["status"] not in _TO_MEND]
    heads = ("check", "status", "found", "fine up to", "makes wrong", "what to do")
    shown = table(f"{name}: what speaks against it", heads, to_mend) if to_mend else None
    rest = folded(
        f"{len(others)} checks in which nothing was found",
        table(f"{name}: the other checks", heads[:4], others),
    )
    return [shown, rest if others else None]


def _mood(word: str, *, doubted: bool = False) -> str:
    """Nothing that is doubted is praised in green."""
    return "warn" if doubted and word == "better" else _MOODS.get(word, "warn")
