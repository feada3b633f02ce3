"""Trials of both verbs over every figure they look at: repeats that are 1 % apart, and single runs."""

from __future__ import annotations

import numpy as np
import pytest

from prefixlab.bench.compare.comparison import Comparison, compare
from prefixlab.bench.compare.gate import judge
from prefixlab.bench.compare.report import verdict
from tests.bench.compare.made import a_side, a_table

TRIALS = 30
NUM_FIGURES = 13


def trials(change: float, repeats: int = 3) -> list[Comparison]:
    return [trial(change, repeats, seed) for seed in range(TRIALS)]


def trial(change: float, repeats: int, seed: int) -> Comparison:
    rng = np.random.default_rng([seed, repeats])
    sides = [
        a_side(
            name,
            [
                a_table(40, seed=int(rng.integers(1 << 30)), slower=slower * rng.normal(1, 0.01), spread=0.01)
                for _ in range(repeats)
            ],
        )
        for name, slower in (("a", 1.0), ("b", 1 + change))
    ]
    return compare(*sides, margin=0.02, confidence=0.95, seed=0)


def single(change: float, seed: int) -> Comparison:
    a, b = (
        a_side(name, [a_table(1500, seed=2 * seed + number, slower=slower, spread=0.05)])
        for number, (name, slower) in enumerate((("a", 1.0), ("b", 1 + change)))
    )
    return compare(a, b, margin=0.02, confidence=0.95, seed=seed)


def held(comparison: Comparison, change: float) -> bool:
    """Whether every latency's interval holds the truth; what a throughput should be is not as plain."""
    found = [of for of in comparison.points[0].differences if not of.higher_is_better]
    assert len(found) == NUM_FIGURES - 1
    return all(of.low is not None and of.high is not None and of.low <= change <= of.high for of in found)


def codes(comparisons: list[Comparison]) -> list[str]:
    gates = [judge(comparison, lambda _: 0.05, strict=False) for comparison in comparisons]
    return ["failed" if gate.fails else "passed" if gate.passes else "undecided" for gate in gates]


def test_of_the_same_twice_hardly_ever_a_difference_is_found_and_no_gate_stops_it() -> None:
    found = trials(0.0)
    assert sum(held(one, 0.0) for one in found) >= 0.93 * TRIALS
    assert sum(one.finding in ("better", "worse", "mixed") for one in found) <= 0.07 * TRIALS
    assert codes(found).count("failed") == 0


def test_a_true_change_of_5_percent_is_found_in_most() -> None:
    found = trials(0.05)
    assert sum(held(one, 0.05) for one in found) >= 0.93 * TRIALS
    assert sum(one.finding == "worse" for one in found) >= 0.7 * TRIALS


def test_a_true_regression_of_10_percent_is_stopped_at_a_limit_of_5() -> None:
    assert codes(trials(0.10)).count("failed") >= 0.95 * TRIALS


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_three_repeats_cannot_tell_is_said_with_how_many_would(seed: int) -> None:
    found = trial(0.0, 3, seed)
    assert found.finding == "undecided" and "runs of each, if they differ as these do" in verdict(found)


def test_a_dozen_repeats_tell_that_there_is_no_difference() -> None:
    found = [trial(0.0, 12, seed).finding for seed in range(10)]
    assert found.count("no difference") >= 8


def test_single_runs_of_the_same_are_no_difference_and_pass() -> None:
    found = [single(0.0, seed) for seed in range(5)]
    assert all(held(one, 0.0) for one in found)
    assert [one.finding for one in found] == ["no difference"] * 5 and codes(found) == ["passed"] * 5


def test_single_runs_10_percent_apart_are_worse_and_stopped() -> None:
    found = [single(0.10, seed) for seed in range(5)]
    assert [one.finding for one in found] == ["worse"] * 5 and codes(found) == ["failed"] * 5
