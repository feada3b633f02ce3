from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.workloads.arrivals import (
    CONSTANT,
    POISSON,
    ExponentialRamp,
    FloatArray,
    LinearRamp,
    Rate,
    Stages,
    Steady,
    arrivals,
    arrivals_within,
    parse_stages,
    ramp,
    ramp_bringing,
    read_schedule,
    unit_times,
)
from prefixlab.core.errors import ConfigError

SEED = (7,)


def integral(rate: object, until_s: FloatArray) -> FloatArray:
    """The slow twin of `when`: the rate summed up in small steps."""
    grid = np.linspace(0, float(until_s.max()), 200_001)
    middle = (grid[1:] + grid[:-1]) / 2
    if isinstance(rate, LinearRamp):
        at = rate.start_per_s + (rate.end_per_s - rate.start_per_s) * middle / rate.duration_s
    elif isinstance(rate, ExponentialRamp):
        at = rate.start_per_s * (rate.end_per_s / rate.start_per_s) ** (middle / rate.duration_s)
    else:
        assert isinstance(rate, Stages)
        ends = np.cumsum([seconds for _, seconds in rate.parts])
        rates = np.array([per_s for per_s, _ in rate.parts])
        at = rates[np.minimum(np.searchsorted(ends, middle, side="right"), len(rates) - 1)]
    summed = np.concatenate(([0.0], np.cumsum(at * np.diff(grid))))
    return np.interp(until_s, grid, summed)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (Steady(4), [0, 0.25, 0.5, 0.75, 1.0]),
        (LinearRamp(1, 1, 10), [0, 1, 2, 3, 4]),
        (LinearRamp(0, 2, 4), [0, 2, math.sqrt(8), math.sqrt(12), 4]),
        (LinearRamp(2, 0, 4), [0, 4 - math.sqrt(12), 4 - math.sqrt(8), 2, 4]),
        (ExponentialRamp(1, 1, 10), [0, 1, 2, 3, 4]),
        (ExponentialRamp(1, math.e, 1), [0, math.log(2), math.log(3), math.log(4), math.log(5)]),
        (Stages(((1, 2), (0, 5), (2, 10))), [0, 1, 7, 7.5, 8]),
        (Stages(((0, 1), (4, 1))), [1, 1.25, 1.5, 1.75, 2]),
    ],
)
def test_constant_arrivals_come_when_the_integral_of_the_rate_is_whole(
    rate: Rate, expected: list[float]
) -> None:
    assert rate.when(np.arange(5.0)) == pytest.approx(expected, abs=1e-9)


rates = st.floats(0.1, 50)
ramps = st.builds(LinearRamp, rates, rates, st.floats(1, 100)) | st.builds(
    ExponentialRamp, rates, rates, st.floats(1, 100)
)
stages = st.lists(st.tuples(st.just(0.0) | rates, st.floats(1, 20)), min_size=1, max_size=5).filter(
    lambda parts: any(rate for rate, _ in parts)
)


@settings(max_examples=60, deadline=None)
@given(rate=ramps | stages.map(lambda parts: Stages(tuple(parts))))
def test_a_rate_summed_up_to_an_arrival_is_its_number(rate: LinearRamp | ExponentialRamp | Stages) -> None:
    work = np.linspace(0, rate.total * 0.999, 50)
    times = rate.when(work)
    assert integral(rate, times) == pytest.approx(work, rel=1e-3, abs=rate.total * 1e-3)


@settings(max_examples=60, deadline=None)
@given(
    rate=ramps | stages.map(lambda parts: Stages(tuple(parts))) | rates.map(Steady),
    burstiness=st.sampled_from([0.25, POISSON, 4.0, CONSTANT]),
    seed=st.integers(0, 2**32),
    count=st.integers(1, 200),
)
def test_offsets_never_go_back_and_a_longer_run_begins_like_a_shorter_one(
    rate: Rate, burstiness: float, seed: int, count: int
) -> None:
    longer = arrivals(rate, burstiness, (seed,), limit=2 * count)
    shorter = arrivals(rate, burstiness, (seed,), limit=count)
    assert (np.diff(longer) >= 0).all() and (longer >= 0).all()
    assert np.array_equal(shorter, longer[: len(shorter)])


@pytest.mark.parametrize("burstiness", [0.25, POISSON, 4.0])
def test_random_arrivals_have_the_rate_asked_for_and_the_spread_of_their_burstiness(
    burstiness: float,
) -> None:
    gaps = np.diff(arrivals(Steady(20), burstiness, SEED, limit=100_000))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    # A gamma interval of shape b has a coefficient of variation of 1/sqrt(b).
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.03)


def test_a_constant_rate_does_not_drift() -> None:
    offsets = arrivals(Steady(3), CONSTANT, SEED, limit=1_000_000)
    assert offsets[-1] == 999_999 / 3


def test_random_arrivals_are_not_stretched_to_end_on_time() -> None:
    lasts = {float(arrivals(Steady(10), POISSON, (seed,), limit=100)[-1]) for seed in range(20)}
    assert len(lasts) == 20


def test_another_seed_or_burstiness_gives_other_arrivals() -> None:
    first = unit_times(10, POISSON, (1, 0))
    assert not np.array_equal(first, unit_times(10, POISSON, (2, 0)))
    assert not np.array_equal(first, unit_times(10, 0.5, (1, 0)))
    assert np.array_equal(first, unit_times(10, POISSON, (1, 0)))


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_a_ramp_over_a_number_of_requests_sends_that_many_and_ends_at_its_last_rate(strategy: str) -> None:
    rate = ramp_bringing(300, strategy, 2, 10)
    offsets = arrivals(rate, CONSTANT, SEED, limit=300)
    assert len(offsets) == 300
    assert rate.way.total == pytest.approx(300)
    assert 1 / (offsets[1] - offsets[0]) == pytest.approx(2, rel=0.1)
    assert 1 / (offsets[-1] - offsets[-2]) == pytest.approx(10, rel=0.01)


def test_random_arrivals_along_a_ramp_are_all_there_the_last_ones_at_its_last_rate() -> None:
    counts = [
        len(arrivals(ramp_bringing(50, "linear", 1, 5), POISSON, (seed,), limit=50)) for seed in range(20)
    ]
    assert counts == [50] * 20
    assert ramp("linear", 1, 5, 10).when(np.array([30.0, 35.0, 40.0])) == pytest.approx([10, 11, 12])


def test_within_a_duration_as_many_arrive_as_the_rate_brings() -> None:
    assert len(arrivals_within(Steady(10), CONSTANT, SEED, 30.0)) == 300
    many = [len(arrivals_within(Steady(10), POISSON, (seed,), 30.0)) for seed in range(200)]
    # A Poisson count of mean 300: its standard error over 200 runs is 1.2.
    assert np.mean(many) == pytest.approx(300, abs=6)
    assert np.std(many) == pytest.approx(math.sqrt(300), rel=0.25)
    assert len(arrivals_within(Stages(((5, 10), (0, 10), (20, 1))), CONSTANT, SEED, math.inf)) == 70
    assert len(arrivals_within(Stages(((5, 10), (20, 10))), CONSTANT, SEED, 11.0)) == 70


def test_stages_are_read_from_words() -> None:
    assert parse_stages(["5:60", "0:10", "0.5:1e2"]) == ((5.0, 60.0), (0.0, 10.0), (0.5, 100.0))


@pytest.mark.parametrize("words", [["5"], ["5:"], ["a:b"], ["5:0"], ["-1:5"], ["inf:5"], ["0:5"], ["5:60,7"]])
def test_a_stage_that_is_none_is_refused_with_its_words(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"--stage.*{words[0]}"):
        parse_stages(words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0\n0.5\n\n2\n", [0, 0.5, 2]),
        ("1\n1\n", [1, 1]),
        ('{"timestamp": 500, "hash_ids": []}\n{"timestamp": 1750}', [0, 1.25]),
    ],
)
def test_a_schedule_is_read_from_offsets_or_timestamps(
    tmp_path: Path, text: str, expected: list[float]
) -> None:
    path = tmp_path / "schedule"
    path.write_text(text)
    assert read_schedule(path).tolist() == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no offset"),
        ("0\nsoon\n", ":2: neither"),
        ("1\n0.5\n", ":2: offsets start at 0 or later and never go back"),
        ("-1\n", ":1: offsets"),
        ("nan\n", ":1: offsets"),
        ('{"time": 1}', ":1: neither"),
        ('{"timestamp": 5}\n{"timestamp": 4}', ":2: offsets"),
    ],
)
def test_a_line_of_a_schedule_that_cannot_be_used_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "schedule"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_schedule(path)


def test_a_schedule_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--schedule .*missing cannot be read"):
        read_schedule(tmp_path / "missing")
