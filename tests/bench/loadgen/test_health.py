"""The client's own figures: merged over workers, and carried from process to process."""

from __future__ import annotations

import pytest

from prefixlab.bench.loadgen.health import ClientHealth, NodeClock
from prefixlab.core.errors import ConfigError


def worker(stamps: str = "kernel", **figures: float) -> ClientHealth:
    health = ClientHealth(stamps=stamps)
    for name, value in figures.items():
        setattr(health, name, value)
    return health


def test_counts_are_summed_and_histograms_pooled() -> None:
    left, right = (
        worker(num_connects=2, peak_in_flight=3, cpu_s=0.5),
        worker(num_connects=5, peak_in_flight=4, cpu_s=1),
    )
    left.send_lag_s.extend([1.0, 2.0])
    right.send_lag_s.extend([3.0])
    left.merge(right)
    assert (left.num_connects, left.peak_in_flight, left.cpu_s, left.num_workers) == (7, 7, 1.5, 2)
    assert (left.send_lag_s.count, left.send_lag_s.mean) == (3, 2.0)


def test_workers_of_different_stamps_are_mixed_and_decoders_have_no_say() -> None:
    health = ClientHealth(num_workers=0)
    health.merge(worker("kernel"))
    health.merge(ClientHealth(num_workers=0, num_reads=9))
    assert (health.stamps, health.num_reads, health.num_workers) == ("kernel", 9, 1)
    health.merge(worker("process"))
    assert health.stamps == "mixed"


def test_machines_stand_side_by_side() -> None:
    health = worker()
    health.nodes = [NodeClock("a", 2, offset_s=-3.5, uncertainty_s=0.001)]
    other = worker()
    other.nodes = [NodeClock("b", 1, 0.0, 0.002, drift_s=0.1, drift_uncertainty_s=0.003, lost="power")]
    health.merge(other)
    assert [node.node for node in health.nodes] == ["a", "b"]
    assert ClientHealth.from_json(health.to_json()).nodes == health.nodes


@pytest.mark.parametrize(("drifts", "worst"), [((None, None), None), ((1.0, None), 1.0), ((2.0, -3.0), -3.0)])
def test_the_largest_drift_counts_whichever_way_it_goes(
    drifts: tuple[float | None, ...], worst: float | None
) -> None:
    left, right = (ClientHealth(clock_drift_ppm=ppm) for ppm in drifts)
    left.merge(right)
    assert left.clock_drift_ppm == worst


def test_health_survives_being_one_line_of_json() -> None:
    health = worker(num_reads=7, wall_s=1.25)
    health.read_lag_s.extend([0.001, 0.5, 0.0])
    line = health.to_json()
    again = ClientHealth.from_json(line)
    assert "\n" not in line
    assert again.to_json() == line
    assert again.read_lag_s.quantile(0.99) == health.read_lag_s.quantile(0.99)


@pytest.mark.parametrize("text", ["", "Traceback", "[]", "{}", '{"stamps": "kernel"}'])
def test_what_is_no_health_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a client's health"):
        ClientHealth.from_json(text)
