"""Arms set against each other, figure by figure, in pairs. Pure.

Owns which arms are set against which, and which values are pairs: request i of a round in one arm and request
i of that round in the other, where both succeeded; of throughput, the rounds. What an interval is, is
`compare/difference.py`'s.

Invariant: a request that failed in one arm counts in neither; of throughput, only rounds that all arms ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.ab.arms import Arm, Role
from prefixlab.bench.compare.bootstrap import FEWEST_VALUES
from prefixlab.bench.compare.difference import Difference, differ
from prefixlab.bench.compare.figures import THROUGHPUTS, Figure, sample_of, samples_of_pairs
from prefixlab.bench.compare.series import FloatArray, Ratio, Sample
from prefixlab.bench.metrics.intervals import LEVEL
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
) -> Answered:
    """`rounds`: of each arm a table for each round that all arms ended."""
    a, b = rounds[question.a], rounds[question.b]
    return Answered(
        question, tuple(_differ(figure, a, b, open_loop=open_loop, seed=seed) for figure in figures)
    )


def half_width(difference: Difference) -> float | None:
    """How far the interval reaches to either side; None where there is none."""
    if difference.low is None or difference.high is None:
        return None
    return (difference.high - difference.low) / 2


def _differ(
    figure: Figure, a: Sequence[RecordTable], b: Sequence[RecordTable], *, open_loop: bool, seed: int
) -> Difference:
    paired = True
    if figure.what in THROUGHPUTS:
        one, other = _throughput(figure, a), _throughput(figure, b)
    else:
        pools = [RecordTable.pool(side) for side in (a, b)]
        both = set(_answered(pools[0])) & set(_answered(pools[1]))
        kept = [
            pool.select(np.array([name in both for name in pool.request_id], dtype=np.bool_))
            for pool in pools
        ]
        found = samples_of_pairs(figure, [kept[0]], [kept[1]], open_loop=open_loop)
        paired = found is not None
        one, other = found or (
            sample_of(figure, [kept[0]], open_loop=open_loop),
            sample_of(figure, [kept[1]], open_loop=open_loop),
        )
        # A round is too short to have figures of its own: blocks of pairs say how sure the whole is.
        one, other = Sample(one.whole), Sample(other.whole)
    return differ(
        figure.key,
        one,
        other,
        higher_is_better=figure.higher_is_better,
        paired=paired,
        level=LEVEL,
        seed=seed,
    )


def _answered(table: RecordTable) -> list[str]:
    rows = table.ok & (table.num_arrivals > 0)
    return [name for name, ok in zip(table.request_id, rows.tolist(), strict=True) if ok]


def _throughput(figure: Figure, rounds: Sequence[RecordTable]) -> Sample:
    """Work over time, a pair being a round: within one nothing is steady."""
    done, taken_s = (np.array(values, dtype=np.float64) for values in zip(*map(_work, rounds), strict=True))
    column = list(THROUGHPUTS).index(figure.what)
    work: FloatArray = done[:, column]
    of_each = [Ratio(work[n : n + 1], taken_s[n : n + 1]) for n in range(len(rounds))]
    return Sample(Ratio(work, taken_s), of_each if len(rounds) < FEWEST_VALUES else ())


def _work(table: RecordTable) -> tuple[tuple[float, ...], float]:
    """(what was done, in the order of THROUGHPUTS; in how many seconds) of a round."""
    ok = table.ok
    prompt, output = float(table.prompt_tokens[ok].sum()), float(table.num_output_tokens[ok].sum())
    return (float(ok.sum()), prompt, output, prompt + output), duration_s(table)
