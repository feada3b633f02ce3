from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.ab.schedule import is_balanced, order

ARMS = st.integers(2, 6)
SEEDS = st.integers(0, 2**40)


@settings(deadline=None)
@given(ARMS, SEEDS, st.integers(0, 50))
def test_in_every_round_every_arm_has_one_turn(num_arms: int, seed: int, number: int) -> None:
    assert sorted(order(number, num_arms, seed)) == list(range(num_arms))


@settings(deadline=None)
@given(ARMS, SEEDS)
def test_a_steady_drift_cancels_over_a_block(num_arms: int, seed: int) -> None:
    turns = [arm for number in range(2 * num_arms) for arm in order(number, num_arms, seed)]
    assert is_balanced(2 * num_arms, num_arms) and not is_balanced(num_arms, num_arms)
    times = {arm: [when for when, one in enumerate(turns) if one == arm] for arm in range(num_arms)}
    assert len({sum(of_arm) for of_arm in times.values()}) == 1


@settings(deadline=None)
@given(ARMS, SEEDS)
def test_in_a_block_every_arm_stands_at_every_place_twice(num_arms: int, seed: int) -> None:
    places = Counter(
        (arm, place)
        for number in range(2 * num_arms)
        for place, arm in enumerate(order(number, num_arms, seed))
    )
    assert set(places.values()) == {2} and len(places) == num_arms**2


@pytest.mark.parametrize("seed", range(4))
def test_two_arms_take_turns_as_abba(seed: int) -> None:
    a, b = order(0, 2, seed)
    assert [order(number, 2, seed) for number in range(4)] == [(a, b), (b, a), (b, a), (a, b)]


def test_the_seed_decides_which_arm_is_which() -> None:
    firsts = Counter(order(0, 3, seed) for seed in range(600))
    assert len(firsts) == 6 and min(firsts.values()) > 60
    assert order(7, 3, 1) == order(7, 3, 1)
