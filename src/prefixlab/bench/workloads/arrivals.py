"""When requests arrive: offsets from the run's start, as pure functions of parameters and a seed.

Owns arrival processes. Every one is a unit-rate process seen through a rate: `unit_times` says after how much
*work* (expected number of arrivals) each request comes, a `Rate` says when that much work has been reached.
So nothing accumulates from one interval to the next, and a ramp is exact: its times are the inverse of the
integral of its rate (the time-rescaling theorem; Daley and Vere-Jones, An Introduction to the Theory of Point
Processes, 7.4).

Invariant: offsets never decrease, start at or after 0, and depend on their arguments alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from prefixlab.core.errors import ConfigError

FloatArray = npt.NDArray[np.float64]
Key = tuple[int, ...]
"""What random numbers depend on: whole numbers ≥ 0."""

POISSON = 1.0
CONSTANT = math.inf
"""Values of `burstiness`; others are gamma, below 1 burstier than Poisson, above it smoother."""


class Rate(Protocol):
    """Requests per second over time."""

    @property
    def total(self) -> float:
        """Its integral over all time: how many requests it brings in all, on average."""
        ...

    def when(self, work: FloatArray) -> FloatArray:
        """The times at which its integral reaches `work` (each in 0 … total)."""
        ...


@dataclass(frozen=True, slots=True)
class Steady:
    """The same rate for ever."""

    per_s: float

    @property
    def total(self) -> float:
        return math.inf

    def when(self, work: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):  # inf: never
            return work / self.per_s


@dataclass(frozen=True, slots=True)
class LinearRamp:
    """From one rate to another in a straight line, over `duration_s`."""

    start_per_s: float
    end_per_s: float
    duration_s: float

    @property
    def total(self) -> float:
        return (self.start_per_s + self.end_per_s) / 2 * self.duration_s

    def when(self, work: FloatArray) -> FloatArray:
        # start·t + slope·t²/2 = work, in the form that neither cancels nor divides by a slope of 0.
        slope = (self.end_per_s - self.start_per_s) / self.duration_s
        root = np.sqrt(np.maximum(self.start_per_s**2 + 2 * slope * work, 0.0))
        return _divide(2 * work, self.start_per_s + root)


@dataclass(frozen=True, slots=True)
class ExponentialRamp:
    """From one rate to another, growing by the same factor every second, over `duration_s`."""

    start_per_s: float
    end_per_s: float
    duration_s: float

    @property
    def _growth(self) -> float:
        return math.log(self.end_per_s / self.start_per_s) / self.duration_s

    @property
    def total(self) -> float:
        if self.start_per_s == self.end_per_s:
            return self.start_per_s * self.duration_s
        return (self.end_per_s - self.start_per_s) / self._growth

    def when(self, work: FloatArray) -> FloatArray:
        if self.start_per_s == self.end_per_s:
            return work / self.start_per_s
        growth = self._growth
        # Rounding may carry the last arrival of a falling ramp past its end, where log1p has nothing to say.
        return np.log1p(np.maximum(growth * work / self.start_per_s, -1 + 1e-15)) / growth


@dataclass(frozen=True, slots=True)
class Stages:
    """One rate after another, each for its time. `parts`: (requests per second, seconds), a rate may be 0."""

    parts: tuple[tuple[float, float], ...]

    @property
    def total(self) -> float:
        return math.fsum(rate * seconds for rate, seconds in self.parts)

    def when(self, work: FloatArray) -> FloatArray:
        rates, seconds = (np.array(column, dtype=np.float64) for column in zip(*self.parts, strict=True))
        reached = np.concatenate(([0.0], np.cumsum(rates * seconds)))
        begins = np.concatenate(([0.0], np.cumsum(seconds)))
        # The last stage that begins at or before so much work: a stage of rate 0 is passed over.
        stage = np.minimum(np.searchsorted(reached, work, side="right") - 1, len(rates) - 1)
        return begins[stage] + _divide(work - reached[stage], rates[stage])


@dataclass(frozen=True, slots=True)
class Ramp:
    """A ramp, and then its last rate for ever: random arrivals do not all come while it lasts."""

    way: LinearRamp | ExponentialRamp

    @property
    def total(self) -> float:
        return math.inf if self.way.end_per_s else self.way.total

    def when(self, work: FloatArray) -> FloatArray:
        after = work - self.way.total
        late = self.way.duration_s + _divide(after, np.full_like(after, self.way.end_per_s))
        return np.where(after > 0, late, self.way.when(np.minimum(work, self.way.total)))


def ramp(strategy: str, start_per_s: float, end_per_s: float, duration_s: float) -> Ramp:
    """A `linear` or `exponential` ramp that takes `duration_s`."""
    kind = LinearRamp if strategy == "linear" else ExponentialRamp
    return Ramp(kind(start_per_s, end_per_s, duration_s))


def ramp_bringing(num_requests: int, strategy: str, start_per_s: float, end_per_s: float) -> Ramp:
    """The ramp that takes as long as `num_requests` need to arrive along it."""
    per_second_of_ramp = ramp(strategy, start_per_s, end_per_s, 1.0).way.total
    return ramp(strategy, start_per_s, end_per_s, num_requests / per_second_of_ramp)


def unit_times(count: int, burstiness: float, key: Key) -> FloatArray:
    """`count` arrivals of a process of rate 1, shape (count,).

    Intervals are gamma with shape `burstiness` and mean 1, as vLLM's client draws them; CONSTANT makes them
    all 1, beginning at 0. They are not stretched to add up to `count`: a Poisson process has a variance.
    """
    if math.isinf(burstiness):
        return np.arange(count, dtype=np.float64)
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence((*key, _bits(burstiness)))))
    return np.cumsum(draw.standard_gamma(burstiness, size=count) / burstiness)


def _bits(number: float) -> int:
    """A float as a whole number ≥ 0, to seed with."""
    return int(np.float64(number).view(np.uint64))


def arrivals(rate: Rate, burstiness: float, key: Key, *, limit: int) -> FloatArray:
    """The first `limit` arrivals, or as many as the rate brings, in seconds from the start."""
    work = unit_times(limit, burstiness, key)
    return rate.when(work[work < rate.total])


def arrivals_within(rate: Rate, burstiness: float, key: Key, duration_s: float) -> FloatArray:
    """All arrivals before `duration_s`, or before the rate ends; one of them must come.

    The same as the first ones of any longer run with the same key.
    """
    count = 64
    while True:
        offsets = arrivals(rate, burstiness, key, limit=count)
        if len(offsets) < count or offsets[-1] >= duration_s:
            return offsets[offsets < duration_s]
        count *= 2


def read_schedule(path: Path) -> FloatArray:
    """Offsets from a file: one per line in seconds, or JSON lines with `timestamp` in milliseconds from any
    start (Mooncake's format).

    Raises:
        ConfigError: the file, or a line of it, cannot be used; it names both.
    """
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"--schedule {path} cannot be read: it is no text") from None
    except OSError as error:
        raise ConfigError(f"--schedule {path} cannot be read: {error.strerror}") from None
    offsets: list[float] = []
    first_ms: float | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            if line.lstrip().startswith("{"):
                at_ms = msgspec.json.decode(line, type=_Stamped).timestamp
                first_ms = at_ms if first_ms is None else first_ms
                offset_s = (at_ms - first_ms) / 1e3
            else:
                offset_s = float(line)
        except (ValueError, msgspec.MsgspecError):
            raise ConfigError(
                f"{path}:{number}: neither an offset in seconds nor a JSON object with a timestamp: {line!r}"
            ) from None
        if not (math.isfinite(offset_s) and offset_s >= (offsets[-1] if offsets else 0.0)):
            raise ConfigError(f"{path}:{number}: offsets start at 0 or later and never go back: {line!r}")
        offsets.append(offset_s)
    if not offsets:
        raise ConfigError(f"--schedule {path} holds no offset")
    return np.array(offsets, dtype=np.float64)


class _Stamped(msgspec.Struct):
    timestamp: float


def parse_stages(words: Sequence[str]) -> tuple[tuple[float, float], ...]:
    """`["5:60", "20:30"]` → ((5.0, 60.0), (20.0, 30.0)). Raises ConfigError for anything else."""
    stages = []
    for word in words:
        rate, _, seconds = word.partition(":")
        try:
            stage = (float(rate), float(seconds))
        except ValueError:
            raise ConfigError(f"--stage takes RATE:SECONDS, as 10:60, not {word!r}") from None
        if not (0 <= stage[0] < math.inf and 0 < stage[1] < math.inf):
            raise ConfigError(f"--stage takes a rate of 0 or more and a time above 0, not {word!r}")
        stages.append(stage)
    if not any(rate for rate, _ in stages):
        raise ConfigError(f"--stage {' '.join(words)} brings no request")
    return tuple(stages)


def _divide(dividend: FloatArray, divisor: FloatArray) -> FloatArray:
    """0 where 0 is divided by 0: nothing arrived yet."""
    return np.divide(dividend, divisor, out=np.zeros_like(dividend), where=divisor > 0)
