from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from prefixlab.bench.metrics.goodput import Objectives
from prefixlab.bench.records.record import Failure, Outcome
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.saturate.evidence import FAILED, Outcomes, evidence, outcomes_of, probability_of
from tests.bench.helpers import ok_record, planned
from tests.bench.points import a_point

LENIENT = Objectives.parse(["ttft:60000"])
STRICT = Objectives.parse(["ttft:1"])


def strains(median: float, spread: float, count: int = 400, follow: float = 0.0, seed: int = 0) -> Outcomes:
    """Log-normal, each like the one before by `follow`."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=count)
    for number in range(1, count):
        noise[number] = follow * noise[number - 1] + math.sqrt(1 - follow**2) * noise[number]
    strain = median * np.exp(spread * noise)
    return Outcomes(strain <= 1, strain)


@pytest.mark.parametrize(
    ("median", "low", "high"),
    [(0.2, 0.999, 1.0), (0.5, 0.99, 1.0), (1.0, 0.0, 0.001), (2.0, 0.0, 0.001)],
)
def test_far_from_the_objective_a_probe_is_sure(median: float, low: float, high: float) -> None:
    assert low <= probability_of(strains(median, 0.2), 0.95) <= high


def test_at_the_objective_nobody_can_tell() -> None:
    """95 % of a log-normal lie below 1 where its median is e^(-1.645 spread)."""
    at = [probability_of(strains(math.exp(-1.645 * 0.2), 0.2, seed=seed), 0.95) for seed in range(40)]
    assert 0.3 < np.mean(at) < 0.7
    assert np.mean(np.array(at) > 0.95) <= 0.1


def test_neighbours_that_are_alike_do_not_make_a_probe_sure() -> None:
    """At the objective, each like the one before: independent ones would be sure, wrongly, far more often."""
    at = [
        probability_of(strains(math.exp(-1.645 * 0.2), 0.2, follow=0.9, seed=seed), 0.95)
        for seed in range(60)
    ]
    assert np.mean(np.array(at) > 0.95) <= 0.15
    assert np.mean(np.array(at) < 0.05) <= 0.15


def test_a_handful_of_requests_tells_little() -> None:
    assert 0.1 < probability_of(strains(0.8, 0.05, count=20), 0.95) < 0.9


def test_a_growing_queue_misses_whatever_the_share() -> None:
    point = a_point(open_loop=True)
    assert point.saturated
    assert evidence(point, 28.0, LENIENT, 0.95).probability == 0.0
    assert evidence(point, 28.0, LENIENT, 0.95).share == 1.0


def test_a_closed_loop_is_judged_by_its_share_alone() -> None:
    point = a_point()
    assert evidence(point, 4.0, LENIENT, 0.95).word == "meets"
    assert evidence(point, 4.0, STRICT, 0.95).word == "misses"


def test_failed_requests_are_not_good() -> None:
    """Three of ten, all along: whatever the latency of the others."""
    failed = {"failure": Failure.HTTP_STATUS, "http_status": 503, "error": "HTTP 503: full"}
    records = [
        ok_record(f"r{number}", intended_s=number / 10, arrivals_s=[number / 10 + 0.05])
        if number % 10 > 2
        else replace(planned(f"r{number}").unsent(number / 10), outcome=Outcome.FAILED, **failed)
        for number in range(400)
    ]
    outcomes = outcomes_of(RecordTable.of(records), LENIENT, open_loop=True)
    assert 0.6 < outcomes.good.mean() < 0.8
    assert probability_of(outcomes, 0.95) < 0.01
    all_of_them = Outcomes(np.zeros(200, np.bool_), np.full(200, FAILED))
    assert probability_of(all_of_them, 0.95) < 0.01


def test_the_ramp_does_not_count() -> None:
    """The first of a run meet an empty server, or each other."""
    slow = [ok_record(f"a{n}", arrivals_s=[2.0 + n / 100], last_s=3.0) for n in range(4)]
    quick = [
        ok_record(f"b{n}", intended_s=3.0 + n // 4, arrivals_s=[3.1 + n // 4], last_s=4.0 + n // 4)
        for n in range(40)
    ]
    outcomes = outcomes_of(RecordTable.of([*slow, *quick]), Objectives.parse(["ttft:500"]), open_loop=True)
    assert outcomes.good.all() and 20 < len(outcomes.good) < 44
    assert np.allclose(outcomes.strain, 0.2)


def test_of_no_request_nothing_is_expected() -> None:
    assert len(outcomes_of(RecordTable.of([]), LENIENT, open_loop=False).good) == 0
