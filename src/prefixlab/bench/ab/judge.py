"""Arms set against each other, figure by figure, in pairs. Pure.

Owns which arms are set against which, and which values are pairs: request i of a round in one arm and request
i of that round in the other, where both succeeded; of throughput, the rounds. What an interval is, is
`compare/difference.py`'s.

Invariant: a request that failed in one arm counts in neither; of throughput, only rounds that all arms ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.ab.arms import Arm, Role
from prefixlab.bench.compare.bootstrap import FEWEST_VALUES
from prefixlab.bench.compare.difference import Difference, differ
from prefixlab.bench.compare.figures import THROUGHPUTS, Figure, sample_of, samples_of_pairs
from prefixlab.bench.compare.series import FEWEST_BEYOND, FloatArray, Ratio, Sample
from prefixlab.bench.metrics.intervals import FEWEST_REPEATS, LEVEL
from prefixlab.bench.metrics.windows import duration_s
from prefixlab.bench.records.table import RecordTable

HITS, CODE_PATH, TOGETHER = "hits", "code path", "together"


@dataclass(frozen=True)
class Question:
    """What changes from arm `a` to arm `b`, by their numbers.

    Attributes:
        about: what the change is due to; the arms' names where nobody knows.
    """

    a: int
    b: int
    about: str


@dataclass(frozen=True)
class Answered:
    """A question with its figures, in the order asked for."""

    question: Question
    differences: tuple[Difference, ...]


def questions(arms: Sequence[Arm]) -> list[Question]:
    """Of the worth of a cache: what hits bring, what the code path costs, and both. Else the first arm
    against each other one."""
    by_role = {arm.role: number for number, arm in enumerate(arms)}
    if Role.HIT not in by_role:
        return [
            Question(0, number, f"{arms[number].name} against {arms[0].name}")
            for number in range(1, len(arms))
        ]
    hit, miss = by_role[Role.HIT], by_role[Role.MISS]
    found = [Question(miss, hit, HITS)]
    if (off := by_role.get(Role.OFF)) is not None:
        found += [Question(off, miss, CODE_PATH), Question(off, hit, TOGETHER)]
    return found


def answer(
    question: Question,
    rounds: Sequence[Sequence[RecordTable]],
    figures: Sequence[Figure],
    *,
    open_loop: bool,
    seed: int,
    per_start: int | None = None,
) -> Answered:
    """
    Args:
        rounds: of each arm a table for each round that all arms ended.
        per_start: rounds between one start of the servers and the next, if they were started anew.
    """
    a, b = rounds[question.a], rounds[question.b]
    size = per_start or max(1, len(a))
    starts = [slice(begin, begin + size) for begin in range(0, len(a), size)]
    return Answered(
        question, tuple(_differ(figure, a, b, starts, open_loop=open_loop, seed=seed) for figure in figures)
    )


def half_width(difference: Difference) -> float | None:
    """How far the interval reaches to either side; None where there is none."""
    if difference.low is None or difference.high is None:
        return None
    return (difference.high - difference.low) / 2


def too_few(figures: Sequence[Figure], num_rounds: int, chunk: int, num_arms: int) -> str | None:
    """Why so many rounds will leave figures without an interval, to be said before any is measured. It asks
    for whole blocks of the schedule."""
    num = num_rounds * chunk
    needed = {figure: _rounds_needed(figure, chunk) for figure in figures}
    short = [str(figure) for figure, rounds in needed.items() if rounds > num_rounds]
    if not short:
        return None
    block = 2 * num_arms
    return (
        f"{num_rounds} rounds are {num} requests of each arm: too few for an interval of {', '.join(short)}; "
        f"at least --rounds {math.ceil(max(needed.values()) / block) * block}"
    )


def _rounds_needed(figure: Figure, chunk: int) -> int:
    if figure.what in THROUGHPUTS:
        return FEWEST_REPEATS
    requests = FEWEST_VALUES
    if (percent := figure.percent) is not None:
        requests = max(requests, math.ceil(round(FEWEST_BEYOND / (min(percent, 100 - percent) / 100), 6)))
    return math.ceil(requests / chunk)


def _differ(
    figure: Figure,
    a: Sequence[RecordTable],
    b: Sequence[RecordTable],
    starts: Sequence[slice],
    *,
    open_loop: bool,
    seed: int,
) -> Difference:
    """A round is too short to have figures of its own: blocks of pairs say how sure the whole is, or figures
    of what came between two starts of the servers."""
    paired = True
    if figure.what in THROUGHPUTS:
        one, other = _throughput(figure, a, starts), _throughput(figure, b, starts)
    else:
        kept = [_answered_by_both(a[start], b[start]) for start in starts]
        sides = [pair[0] for pair in kept], [pair[1] for pair in kept]
        found = samples_of_pairs(figure, *sides, open_loop=open_loop)
        paired = found is not None
        one, other = found or (
            sample_of(figure, sides[0], open_loop=open_loop),
            sample_of(figure, sides[1], open_loop=open_loop),
        )
    return differ(
        figure.key,
        one,
        other,
        higher_is_better=figure.higher_is_better,
        paired=paired,
        level=LEVEL,
        seed=seed,
    )


def _answered_by_both(a: Sequence[RecordTable], b: Sequence[RecordTable]) -> tuple[RecordTable, RecordTable]:
    one, other = RecordTable.pool(a), RecordTable.pool(b)
    both = set(_answered(one)) & set(_answered(other))

    def kept(table: RecordTable) -> RecordTable:
        return table.select(np.array([name in both for name in table.request_id], dtype=np.bool_))

    return kept(one), kept(other)


def _answered(table: RecordTable) -> list[str]:
    rows = table.ok & (table.num_arrivals > 0)
    return [name for name, ok in zip(table.request_id, rows.tolist(), strict=True) if ok]


def _throughput(figure: Figure, rounds: Sequence[RecordTable], starts: Sequence[slice]) -> Sample:
    """Work over time, a pair being a round: within one nothing is steady."""
    done, taken_s = (np.array(values, dtype=np.float64) for values in zip(*map(_work, rounds), strict=True))
    column = list(THROUGHPUTS).index(figure.what)
    work: FloatArray = done[:, column]
    if len(starts) == 1 and len(rounds) < FEWEST_VALUES:  # too few for blocks
        starts = [slice(number, number + 1) for number in range(len(rounds))]
    return Sample(Ratio(work, taken_s), [Ratio(work[start], taken_s[start]) for start in starts])


def _work(table: RecordTable) -> tuple[tuple[float, ...], float]:
    """(what was done, in the order of THROUGHPUTS; in how many seconds) of a round."""
    ok = table.ok
    prompt, output = float(table.prompt_tokens[ok].sum()), float(table.num_output_tokens[ok].sum())
    return (float(ok.sum()), prompt, output, prompt + output), duration_s(table)
