from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.saturate.search import Answer, Probe, Search, answer, belief, next_load, quantile


def search(guess: float = 10.0, **fields: float) -> Search:
    return Search(**{"guess": guess, "spread": math.log(2), "tolerance": 0.05, "max_probes": 10, **fields})


def play(asked: Search, knee: float) -> tuple[list[Probe], Answer]:
    """Against a server that meets up to its knee, and says so beyond doubt."""
    probes: list[Probe] = []
    while (load := next_load(asked, probes)) is not None:
        good = load <= knee
        probes.append(Probe(load, 1.0 if good else 0.5, 1.0 if good else 0.0))
    return probes, answer(asked, probes)


def test_the_first_probe_goes_to_the_guess() -> None:
    assert next_load(search(7.0), []) == pytest.approx(7.0, rel=0.01)


def test_half_of_the_belief_lies_within_the_spread() -> None:
    asked = search(7.0, spread=math.log(3))
    weights = belief(asked, [])
    low, high = quantile(asked, weights, 0.25), quantile(asked, weights, 0.75)
    assert (low, high) == (pytest.approx(7 / 3, rel=0.2), pytest.approx(21, rel=0.2))


@pytest.mark.parametrize("knee", [0.5, 1.3, 9.0, 10.0, 11.0, 64.0, 300.0])
def test_a_knee_anywhere_is_found_within_the_tolerance(knee: float) -> None:
    probes, found = play(search(), knee)
    assert len(probes) <= 10
    assert found.load == pytest.approx(knee, rel=0.05)
    assert found.low is not None and found.high is not None
    assert found.low <= knee <= found.high


@given(st.floats(0.2, 500), st.floats(0.5, 2.0))
@settings(deadline=None, max_examples=60)
def test_what_is_sure_is_settled_and_right(knee: float, off: float) -> None:
    _, found = play(search(knee * off, max_probes=12), knee)
    assert found.settled
    assert found.load == pytest.approx(knee, rel=0.05)


@given(st.integers(1, 3_000))
@settings(deadline=None, max_examples=60)
def test_of_whole_loads_the_answer_is_whole(knee: int) -> None:
    asked = search(16.0, spread=math.log(4), whole=True, max_probes=20)
    probes, found = play(asked, knee)
    assert all(probe.load == int(probe.load) for probe in probes)
    assert found.settled
    assert found.load == pytest.approx(knee, rel=0.05, abs=1.0)


def test_a_small_whole_knee_is_found_exactly() -> None:
    _, found = play(search(16.0, spread=math.log(4), whole=True, max_probes=14), 3)
    assert found.load == 3


def test_where_nothing_meets_there_is_no_load() -> None:
    _, found = play(search(max_probes=6), 0.0)
    assert found.load is None and found.low is None
    assert found.high is not None and not found.settled


def test_where_everything_meets_there_is_no_upper_end() -> None:
    probes, found = play(search(max_probes=6), math.inf)
    assert found.high is None and found.load is not None
    assert all(later.load > earlier.load for earlier, later in pairwise(probes))


def test_an_unclear_probe_moves_nothing() -> None:
    asked = search()
    assert np.allclose(belief(asked, [Probe(10.0, 0.95, 0.5)]), belief(asked, []))


def test_one_probe_that_was_wrong_is_found_out() -> None:
    """It says of half the knee that it misses: the others outvote it."""
    asked, knee = search(10.0, max_probes=14), 10.0
    probes = [Probe(5.0, 0.9, 0.0)]
    while (load := next_load(asked, probes)) is not None:
        probes.append(Probe(load, 1.0, 1.0) if load <= knee else Probe(load, 0.1, 0.0))
    found = answer(asked, probes)
    assert found.load == pytest.approx(knee, rel=0.05)
    assert "although 5 did not" in found.oddities[0]


def test_a_noisy_knee_lies_in_the_interval_as_often_as_is_said() -> None:
    """200 servers whose share falls steeply at their knee, each probe a sample of 300 requests: found within
    5 % in at most 10 probes, and inside the interval, 19 times of 20 at least."""
    rng = np.random.default_rng(0)
    within = inside = 0
    for _ in range(200):
        knee = 10 * math.exp(rng.uniform(-1, 1))
        asked = search(knee * math.exp(rng.uniform(-0.7, 0.7)))
        probes: list[Probe] = []
        while (load := next_load(asked, probes)) is not None:
            share = 1 / (1 + 0.05 / 0.95 * (load / knee) ** 60)
            good = int(rng.binomial(300, share))
            centre = (good + 2) / 304
            score = (centre - 0.95) / math.sqrt(centre * (1 - centre) / 304)
            probes.append(Probe(load, good / 300, 0.5 * (1 + math.erf(score / math.sqrt(2)))))
        found = answer(asked, probes)
        assert len(probes) <= 10
        assert found.load is not None
        within += abs(found.load / knee - 1) <= 0.05
        inside += (found.low or 0) <= knee <= (found.high or math.inf)
    assert within >= 190
    assert inside >= 190


def test_the_same_probes_give_the_same_decision() -> None:
    probes = [Probe(10.0, 0.97, 0.9), Probe(20.0, 0.2, 0.0)]
    assert next_load(search(), probes) == next_load(search(), list(probes))


@pytest.mark.parametrize(("probability", "word"), [(0.99, "meets"), (0.5, "unclear"), (0.01, "misses")])
def test_a_probe_is_called_by_what_it_shows(probability: float, word: str) -> None:
    assert Probe(1.0, 0.9, probability).word == word
