"""Two clocks compared by stamps exchanged, on exchanges made up."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.loadgen.machines.clocks import Exchange, Offset, estimate, node_clock

MS = 1_000_000


def exchange(offset_ns: int, there_ns: int, back_ns: int, at_ns: int = 0) -> Exchange:
    """Delays of the question and of the answer, to a clock that is `offset_ns` ahead of ours."""
    return Exchange(at_ns, at_ns + there_ns + offset_ns, at_ns + there_ns + back_ns)


@pytest.mark.parametrize(
    ("delays", "offset", "expected"),
    [
        ([(MS, MS)], 0, Offset(0, MS)),
        ([(MS, MS)], -7 * MS, Offset(-7 * MS, MS)),
        ([(2 * MS, 0)], 0, Offset(MS, MS)),  # as wrong as it can be, and it says so
        ([(0, 2 * MS)], 0, Offset(-MS, MS)),
        ([(9 * MS, MS), (MS, MS), (MS, 9 * MS)], 5, Offset(5, MS)),  # the narrowest wins
        ([(0, 0)], 86_400_000 * MS, Offset(86_400_000 * MS, 0)),
        ([(1, 0)], 0, Offset(1, 1)),
    ],
)
def test_the_narrowest_exchange_tells_the_offset(
    delays: list[tuple[int, int]], offset: int, expected: Offset
) -> None:
    assert estimate([exchange(offset, *pair) for pair in delays]) == expected


@given(
    st.integers(-(10**18), 10**18),
    st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 10**10)), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_the_truth_lies_within_the_uncertainty_whatever_the_delays(
    offset: int, delays: list[tuple[int, int]]
) -> None:
    found = estimate([exchange(offset, *pair, at_ns=7 * MS * i) for i, pair in enumerate(delays)])
    assert abs(found.offset_ns - offset) <= found.uncertainty_ns
    assert found.uncertainty_ns <= min(map(sum, delays)) / 2 + 1


def test_jitter_is_outlived_by_asking_often() -> None:
    rng = random.Random(1)
    jittery = [exchange(3 * MS, *(int(rng.expovariate(1 / MS)) for _ in range(2))) for _ in range(200)]
    found = estimate(jittery)
    assert found.uncertainty_ns < MS / 2
    assert abs(found.offset_ns - 3 * MS) <= found.uncertainty_ns


def test_the_drift_over_a_run_comes_with_its_own_error() -> None:
    clock = node_clock("n", 2, Offset(5_000_000_000, 2 * MS), Offset(5_004_000_000, MS))
    assert (clock.offset_s, clock.uncertainty_s) == (5.0, 0.002)
    assert (clock.drift_s, clock.drift_uncertainty_s) == (0.004, 0.003)


def test_a_machine_that_is_gone_has_no_drift() -> None:
    clock = node_clock("n", 2, Offset(0, MS), None, lost="n was lost: power")
    assert clock.drift_s is None
    assert clock.lost == "n was lost: power"
