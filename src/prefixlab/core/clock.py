"""Time is an argument. This is the only file that touches `time` (the load generator's socket loop apart).

Owns the Clock seam and its two implementations. Invariant: `now()` never goes back.
"""

from __future__ import annotations

import time
from typing import Protocol

from prefixlab.core.errors import ConfigError


class Clock(Protocol):
    """Where an object gets its time from. Seconds since an arbitrary start, never decreasing."""

    def now(self) -> float:
        """Current time in seconds."""
        ...


class WaitingClock(Clock, Protocol):
    """A clock that can also bring a moment about: by letting time pass, or by moving it on."""

    def wait_until(self, time_s: float) -> None:
        """Return when `now()` has reached `time_s`; at once if it has already."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def wait_until(self, time_s: float) -> None:
        """Sleeps, so it is about 0.1 ms late; spinning would take the interpreter from other threads."""
        while (left_s := time_s - time.monotonic()) > 0:
            time.sleep(left_s)


class VirtualClock:
    """Time that moves only when told: for tests and for the simulator."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        return self._now_s

    def advance(self, delta_s: float) -> None:
        """Move forward by `delta_s` seconds. Raises ConfigError on a negative step."""
        if delta_s < 0:
            raise ConfigError(f"virtual time cannot go back (by {-delta_s} s)")
        self._now_s += delta_s

    def advance_to(self, time_s: float) -> None:
        """Move forward to `time_s`. Raises ConfigError if that lies in the past."""
        self.advance(time_s - self._now_s)

    def wait_until(self, time_s: float) -> None:
        self._now_s = max(self._now_s, time_s)


def wall_time_s() -> float:
    """Seconds since the Unix epoch: for labels people read and for wire formats, never for intervals."""
    return time.time()


def thread_cpu_s() -> float:
    """What the calling thread has taken of a processor so far."""
    return time.thread_time()


def wall_time_label() -> str:
    """Local time as `YYYYmmdd-HHMMSS`, for names of run directories."""
    return time.strftime("%Y%m%d-%H%M%S")


def sleep(seconds: float) -> None:
    """Block this thread. For shells around the synchronous core; the core itself never sleeps."""
    time.sleep(max(0.0, seconds))
