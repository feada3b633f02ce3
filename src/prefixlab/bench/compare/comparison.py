"""Two sides compared, point by point: which figures, in which definition, how different, and one verdict.

Owns what may be compared with what, the correction for looking at many figures, and the sentence on top. How
different one figure is, `difference.py` says; how it looks, `report.py`.

Invariant: every figure asked for is either a difference or refused with a reason, at every point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefixlab.bench.compare.difference import Difference, Finding, differ, level_for
from prefixlab.bench.compare.figures import (
    THROUGHPUT,
    Figure,
    default_figures,
    of_latency,
    of_throughput,
    sample_of,
    samples_of_pairs,
)
from prefixlab.bench.compare.run import Run
from prefixlab.bench.compare.series import Known, Sample
from prefixlab.bench.compare.side import Point, Side, differences, key_text
from prefixlab.core.errors import ConfigError

HEADLINES = (
    of_throughput(THROUGHPUT).key,
    *(of_latency(what, "mean").key for what in ("ttft", "tpot", "e2el")),
)
"""What "no difference" has to be shown of; tails take longer runs, and do not hold a verdict up."""
OF_HEADLINES = 0.8
"""Their part of the error allowed; all other figures share the rest. Were it shared alike, three repeats
could hardly tell anything of the means."""
FEWEST_PAIRS = 6
"""Repeats from which on their differences are known as well as the scatter on either side: of three, the t of
pairs is twice that of two sides."""
MIXED = "mixed"
_FAILED_MORE = 0.01


@dataclass(frozen=True, kw_only=True)
class PointComparison:
    """One point of both sides.

    Attributes:
        refused: why a figure is not compared, by its key.
        question: (setting, of A, of B) that make it another question; circumstances: that may be the cause.
        definitions: of the figures compared, by latency or throughput.
        failed: (failed, planned) of A and B; None where not told.
    """

    name: str
    a: Point
    b: Point
    differences: tuple[Difference, ...]
    refused: Mapping[str, str]
    question: tuple[tuple[str, Any, Any], ...]
    circumstances: tuple[tuple[str, Any, Any], ...]
    definitions: Mapping[str, str]
    failed: tuple[tuple[int, int] | None, tuple[int, int] | None]
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """See the module.

    Attributes:
        unmatched: points that only one side has, in words.
        confidence: of all intervals together; each has its own level.
    """

    a: Side
    b: Side
    points: tuple[PointComparison, ...]
    unmatched: tuple[str, ...]
    margin: float
    confidence: float
    seed: int

    @property
    def same_question(self) -> bool:
        return not any(point.question for point in self.points)

    @property
    def finding(self) -> str:
        """Of all points: a Finding's word, or MIXED."""
        found = [difference.finding for point in self.points for difference in point.differences]
        better, worse = Finding.BETTER in found, Finding.WORSE in found
        if better or worse:
            only = Finding.BETTER if better else Finding.WORSE
            return MIXED if better and worse else str(only.value)
        headlines = [of.finding for of in self.headlines]
        same = headlines and all(finding is Finding.SAME for finding in headlines)
        return str((Finding.SAME if same else Finding.UNDECIDED).value)

    @property
    def headlines(self) -> list[Difference]:
        """Those of HEADLINES that were compared; all there are, if none of them was."""
        every = [difference for point in self.points for difference in point.differences]
        return [of for of in every if of.figure in HEADLINES] or every


def compare(
    a: Side,
    b: Side,
    *,
    figures: Sequence[Figure] = (),
    margin: float,
    confidence: float,
    seed: int,
) -> Comparison:
    """B against A.

    Args:
        figures: to be compared; all of `default_figures` that both sides have if there are none.
        confidence: of all intervals together.

    Raises:
        ConfigError: there is not one point, or not one figure, that both sides have.
    """
    pairs, unmatched = _matched(a, b)
    if not pairs:
        raise ConfigError(f"{a.name} and {b.name} have no point in common: {'; '.join(unmatched)}")
    wanted = list(figures) or default_figures()
    comparable = [_comparable(wanted, *pair) for pair in pairs]
    if not any(chosen for chosen, _ in comparable):
        reasons = "; ".join(f"{key}: {why}" for key, why in comparable[0][1].items())
        raise ConfigError(f"{a.name} and {b.name} have no figure that can be compared ({reasons})")
    level_of = levels([figure.key for chosen, _ in comparable for figure in chosen], confidence)
    points = [
        _point(*pair, chosen, refused, level_of=level_of, margin=margin, seed=seed)
        for pair, (chosen, refused) in zip(pairs, comparable, strict=True)
    ]
    return Comparison(
        a=a,
        b=b,
        points=tuple(points),
        unmatched=tuple(unmatched),
        margin=margin,
        confidence=confidence,
        seed=seed,
    )


def levels(figures: Sequence[str], confidence: float) -> Mapping[str, float]:
    """Of each interval, by figure, for all of them (one of each point) to hold at once (weighted Bonferroni).
    Where there are headlines only, or none, they have all of the error allowed."""
    num_headlines = sum(figure in HEADLINES for figure in figures)
    mixed = 0 < num_headlines < len(figures)
    parts = {
        True: (OF_HEADLINES if mixed else 1.0, num_headlines),
        False: (1 - OF_HEADLINES if mixed else 1.0, len(figures) - num_headlines),
    }
    found = {}
    for figure in figures:
        part, number = parts[figure in HEADLINES]
        found[figure] = level_for(number, 1 - part * (1 - confidence))
    return found


def _matched(a: Side, b: Side) -> tuple[list[tuple[Point, Point]], list[str]]:
    """Points that set the same; one alone on either side is the other's, whatever it set."""
    if len(a.points) == len(b.points) == 1:
        return [(a.points[0], b.points[0])], []
    others = {key_text(point.key): point for point in b.points}
    pairs = [(point, others[key_text(point.key)]) for point in a.points if key_text(point.key) in others]
    ours = {key_text(one.key) for one, _ in pairs}
    unmatched = [
        f"only {side.name} has {point.name or 'a point of its own'}"
        for side in (a, b)
        for point in side.points
        if key_text(point.key) not in ours
    ]
    return pairs, unmatched


def _comparable(wanted: Sequence[Figure], a: Point, b: Point) -> tuple[list[Figure], dict[str, str]]:
    """(figures both sides have in one definition, why not of the others)."""
    chosen, refused = [], {}
    for figure in wanted:
        texts = [point.runs[0].definitions.get(figure.what) for point in (a, b)]
        if texts[0] is None or texts[1] is None:
            side = "A" if texts[0] is None else "B"
            refused[figure.key] = f"{side} ({(a if side == 'A' else b).runs[0].client}) has no {figure.what}"
        elif texts[0].text != texts[1].text:
            refused[figure.key] = f"not the same quantity: A is {texts[0].text}; B is {texts[1].text}"
        elif not any(_has_records(run, figure) or figure.key in run.known for run in (*a.runs, *b.runs)):
            refused[figure.key] = "neither side has it"
        else:
            chosen.append(figure)
    return chosen, refused


def _point(
    a: Point,
    b: Point,
    figures: Sequence[Figure],
    refused: Mapping[str, str],
    *,
    level_of: Mapping[str, float],
    margin: float,
    seed: int,
) -> PointComparison:
    found = []
    for figure in figures:
        pair = _pair(figure, a, b)
        one, other = pair or (_sample(figure, a), _sample(figure, b))
        found.append(
            differ(
                figure.key,
                one,
                other,
                higher_is_better=figure.higher_is_better,
                paired=pair is not None,
                fewest_pairs=FEWEST_PAIRS,
                level=level_of[figure.key],
                margin=margin,
                seed=seed,
            )
        )
    first, second = a.runs[0], b.runs[0]
    failed = (_failed(a), _failed(b))
    notes = [note for point in (a, b) for run in point.runs for note in run.notes]
    return PointComparison(
        name=a.name if key_text(a.key) == key_text(b.key) else "",
        a=a,
        b=b,
        differences=tuple(found),
        refused=refused,
        question=tuple(differences(first.question, second.question)),
        circumstances=tuple(differences(first.circumstances, second.circumstances)),
        definitions={figure.what: first.definitions[figure.what].text for figure in figures},
        failed=failed,
        notes=tuple(dict.fromkeys([*notes, *_failure_notes(*failed)])),
    )


def _sample(figure: Figure, point: Point) -> Sample:
    tables = [run.table for run in point.runs if _has_records(run, figure)]
    if len(tables) == len(point.runs):
        runs = [table for table in tables if table is not None]
        return sample_of(figure, runs, open_loop=point.runs[0].open_loop)
    known = [Known(run.known.get(figure.key)) for run in point.runs]
    values = [of.value for of in known if of.value is not None and of.value > 0]
    # Of repeats of which only figures are known nothing can be pooled: their geometric mean stands for them.
    middle = float(np.exp(np.mean(np.log(values)))) if len(values) == len(known) else None
    return Sample(Known(known[0].value if len(known) == 1 else middle), known)


def _pair(figure: Figure, a: Point, b: Point) -> tuple[Sample, Sample] | None:
    """Of sides that were asked the same by the same client, request for request."""
    runs = (*a.runs, *b.runs)
    tables = [[run.table for run in point.runs if run.table is not None] for point in (a, b)]
    known = all(_has_records(run, figure) for run in runs)
    if not known or len({run.client.partition(" ")[0] for run in runs}) > 1:
        return None
    return samples_of_pairs(figure, tables[0], tables[1], open_loop=a.runs[0].open_loop)


def _has_records(run: Run, figure: Figure) -> bool:
    return run.table is not None and run.definitions[figure.what].of_records


def _failed(point: Point) -> tuple[int, int] | None:
    """(failed, planned) of all repeats; None where not told."""
    counts = [(run.failed, run.planned) for run in point.runs]
    failed = [(one, of) for one, of in counts if one is not None and of is not None]
    if len(failed) < len(counts):
        return None
    return sum(one for one, _ in failed), sum(of for _, of in failed)


def fails_more(a: tuple[int, int] | None, b: tuple[int, int] | None) -> bool:
    """B failed more of its requests than A, by more than a hundredth of them and than chance (3 σ)."""
    if a is None or b is None or not a[1] or not b[1]:
        return False
    share = (a[0] + b[0]) / (a[1] + b[1])
    error = float(np.sqrt(share * (1 - share) * (1 / a[1] + 1 / b[1])))
    return b[0] / b[1] - a[0] / a[1] > max(_FAILED_MORE, 3 * error)


def _failure_notes(a: tuple[int, int] | None, b: tuple[int, int] | None) -> list[str]:
    if not ((a and a[0]) or (b and b[0])):
        return []
    told = [
        f"{side} {of[0]:,} of {of[1]:,}" if of else f"{side} unknown" for side, of in (("A", a), ("B", b))
    ]
    return [f"requests that failed: {', '.join(told)}; figures are of those that succeeded"]
