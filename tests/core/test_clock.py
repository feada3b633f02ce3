from __future__ import annotations

import pytest

from prefixlab.core.clock import MonotonicClock, VirtualClock
from prefixlab.core.errors import ConfigError


def test_virtual_time_moves_only_when_told() -> None:
    clock = VirtualClock(5.0)
    assert clock.now() == clock.now() == 5.0
    clock.advance(1.5)
    clock.advance_to(10.0)
    assert clock.now() == 10.0


def test_virtual_time_never_goes_back() -> None:
    clock = VirtualClock(5.0)
    with pytest.raises(ConfigError, match="cannot go back"):
        clock.advance_to(4.0)


def test_the_machine_clock_does_not_go_back() -> None:
    clock = MonotonicClock()
    stamps = [clock.now() for _ in range(1000)]
    assert stamps == sorted(stamps)


def test_waiting_moves_virtual_time_on_and_never_back() -> None:
    clock = VirtualClock(5.0)
    clock.wait_until(7.5)
    clock.wait_until(6.0)
    assert clock.now() == 7.5


def test_waiting_on_the_machine_clock_does_not_end_early() -> None:
    clock = MonotonicClock()
    until_s = clock.now() + 0.003
    clock.wait_until(until_s)
    assert clock.now() >= until_s
    clock.wait_until(until_s - 1.0)
