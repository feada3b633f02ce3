from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.compare.bootstrap import FloatArray
from prefixlab.bench.compare.difference import (
    MARGIN,
    Difference,
    Finding,
    differ,
    finding_of,
    level_for,
    repeats_needed,
)
from prefixlab.bench.compare.series import Known, Percentile, Ratio, Sample, Series
from tests.bench.compare.test_bootstrap import alike


def mean(values: FloatArray) -> Series:
    return Ratio(values, np.ones(len(values)))


def median(values: FloatArray) -> Series:
    return Percentile(values, 50.0)


def latencies(num: int, seed: int, memory: float = 0.6) -> FloatArray:
    return np.exp(0.2 * alike(num, memory, seed))


def differ_in(
    make: Callable[[FloatArray], Series], a: FloatArray, b: FloatArray, **options: Any
) -> Difference:
    return differ("x", Sample(make(a)), Sample(make(b)), higher_is_better=False, **options)


@pytest.mark.parametrize(
    ("change", "low", "high", "finding"),
    [
        (0.05, 0.03, 0.07, Finding.WORSE),
        (-0.05, -0.07, -0.03, Finding.BETTER),
        (0.05, -0.01, 0.11, Finding.UNDECIDED),
        (0.005, -0.01, 0.015, Finding.SAME),
        (0.01, 0.005, 0.015, Finding.SAME),
        (0.015, 0.005, 0.025, Finding.UNDECIDED),
        (0.005, -0.02, 0.03, Finding.UNDECIDED),
        (0.05, None, None, Finding.UNDECIDED),
        (None, None, None, Finding.UNDECIDED),
    ],
)
def test_the_finding_follows_from_interval_and_margin(
    change: float | None, low: float | None, high: float | None, finding: Finding
) -> None:
    assert finding_of(change, low, high, 0.02, higher_is_better=False) is finding


def test_more_throughput_is_better() -> None:
    assert finding_of(0.05, 0.03, 0.07, 0.02, higher_is_better=True) is Finding.BETTER


@pytest.mark.parametrize("make", [mean, median])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(make: Callable[[FloatArray], Series]) -> None:
    held = 0
    for seed in range(40):
        found = differ_in(make, latencies(500, 2 * seed), 1.05 * latencies(500, 2 * seed + 1))
        assert found.low is not None and found.high is not None
        held += found.low <= 0.05 <= found.high
    assert 34 <= held <= 40


def test_a_true_change_is_found_and_none_is_invented() -> None:
    level = level_for(13)
    pairs = [(latencies(20_000, 2 * seed), latencies(20_000, 2 * seed + 1)) for seed in range(20)]
    slower = [differ_in(mean, a, 1.05 * b, level=level).finding for a, b in pairs]
    same = [differ_in(mean, a, b, level=level, margin=0.03).finding for a, b in pairs]
    assert slower.count(Finding.WORSE) >= 19
    assert same.count(Finding.SAME) >= 19


def test_pairs_know_what_a_prompt_costs_anyway() -> None:
    prompts = np.exp(np.random.default_rng(9).normal(size=500))
    a, b = prompts * latencies(500, 0, 0.0), prompts * latencies(500, 1, 0.0)
    alone, paired = (differ_in(mean, a, b, paired=paired) for paired in (False, True))
    assert alone.low is not None and alone.high is not None
    assert paired.low is not None and paired.high is not None
    assert paired.high - paired.low < (alone.high - alone.low) / 3
    assert "pairs of blocks" in paired.method


def test_three_repeats_on_each_side_count_as_one_value_each() -> None:
    sides = []
    for machine in ((1.0, 1.1, 0.9), (1.05, 0.95, 1.0)):
        runs = [factor * latencies(500, seed) for seed, factor in enumerate(machine)]
        sides.append(Sample(mean(np.concatenate(runs)), [mean(run) for run in runs]))
    found = differ("x", sides[0], sides[1], higher_is_better=False)
    assert found.method == "3 and 3 repeats" and found.num_values == (3, 3)
    assert found.low is not None and found.low < -0.1 < 0.1 < float(found.high or 0.0)


def known(values: FloatArray) -> Sample:
    return Sample(Known(float(np.exp(np.log(values).mean()))), [Known(value) for value in values.tolist()])


@pytest.mark.parametrize("number", [3, 6])
@pytest.mark.parametrize("paired", [False, True])
def test_the_interval_of_repeats_holds_the_truth_about_as_often_as_it_says(number: int, paired: bool) -> None:
    held = 0
    for seed in range(400):
        runs = np.exp(np.random.default_rng([seed, number]).normal(0, 0.01, (2, number)))
        a, b = known(runs[0]), known(1.05 * runs[1])
        found = differ("x", a, b, higher_is_better=False, paired=paired, fewest_pairs=6)
        assert found.low is not None and found.high is not None
        held += found.low <= 0.05 <= found.high
    assert 0.93 <= held / 400 <= 0.97


def test_three_pairs_of_repeats_are_two_sides_and_six_are_pairs() -> None:
    methods = [
        differ("x", side, side, higher_is_better=False, paired=True, fewest_pairs=6).method
        for side in (known(np.linspace(1, 1.02, number)) for number in (3, 6))
    ]
    assert methods == ["3 and 3 repeats", "6 pairs of repeats"]


def test_how_many_repeats_would_tell_is_as_many_as_do() -> None:
    spread = np.array([0.99, 1.0, 1.01])
    found = differ("x", known(spread), known(spread), higher_is_better=False, level=0.99)
    assert found.finding is Finding.UNDECIDED
    number = repeats_needed(found, MARGIN)
    assert number is not None and 4 <= number <= 12
    scale = float(np.std(np.log(spread), ddof=1))
    for count, finding in ((number, Finding.SAME), (number - 1, Finding.UNDECIDED)):
        logs = np.linspace(-1, 1, count)
        more = known(np.exp(logs * scale / float(np.std(logs, ddof=1))))
        assert differ("x", more, more, higher_is_better=False, level=0.99).finding is finding


def test_of_blocks_nobody_knows_how_many_repeats_would_tell() -> None:
    assert repeats_needed(differ_in(mean, latencies(500, 0), latencies(500, 1)), MARGIN) is None


def test_two_repeats_are_too_few_and_blocks_serve() -> None:
    runs = [latencies(500, seed) for seed in range(2)]
    side = Sample(mean(np.concatenate(runs)), [mean(run) for run in runs])
    assert "blocks" in differ("x", side, side, higher_is_better=False).method


def test_a_queue_that_grows_has_no_interval() -> None:
    found = differ_in(mean, np.linspace(1, 10, 500), np.linspace(1, 11, 500))
    assert found.low is None and "trend" in found.method and found.finding is Finding.UNDECIDED


def test_a_dozen_requests_are_too_few() -> None:
    found = differ_in(mean, latencies(12, 0), latencies(12, 1))
    assert found.low is None and "too few" in found.method


def test_the_same_values_and_seed_give_the_same_interval() -> None:
    a, b = latencies(500, 0), latencies(500, 1)
    assert differ_in(mean, a, b, seed=3) == differ_in(mean, a, b, seed=3)
    assert differ_in(mean, a, b, seed=3).low != differ_in(mean, a, b, seed=4).low


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, 0.0), (None, 1.0), (1.0, None)])
def test_what_is_not_there_has_no_change(a: float | None, b: float | None) -> None:
    found = differ("x", Sample(Known(a)), Sample(Known(b)), higher_is_better=False)
    assert found.change is None and found.finding is Finding.UNDECIDED


def test_intervals_of_several_figures_are_wider() -> None:
    a, b = latencies(500, 0), latencies(500, 1)
    one, many = (differ_in(mean, a, b, level=level_for(count)) for count in (1, 13))
    assert many.level == pytest.approx(1 - 0.05 / 13)
    assert many.low is not None and one.low is not None and many.low < one.low


def test_a_hundred_thousand_requests_are_compared() -> None:
    a, b = latencies(100_000, 0), latencies(100_000, 1)
    found = differ_in(lambda values: Percentile(values, 99.0), a, b * 1.1)
    assert found.finding is Finding.WORSE
