"""Kernel stamps put on the monotonic clock: the wall clock's offset, as the loop sampled it through the run.

Owns the conversion, and what counts as a step of the wall clock. Both clocks are slewed alike, so what moves
their offset is steps, and the blur of taking a sample.

Invariant: no stamp is later than the moment the process read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefixlab.bench.loadgen.capture import ClockSample

Nanoseconds = npt.NDArray[np.int64]

_MAX_SLEW = 500e-6
_SLACK_NS = 50_000
_WIDE_NS = 20_000
"""A sample that took longer (the process was put aside inside it) is not good enough to convert by."""
_SPACING_NS = 1_000_000_000
_MIN_DRIFT_SPAN_NS = 1_000_000_000


class StampClock:
    """See the module. Samples are added as they are read; a stamp is converted once it is covered by one."""

    def __init__(self) -> None:
        self._kept: list[ClockSample] = []
        """Those to convert by, so few that a day of them costs nothing."""
        self._latest_ns = -1
        self._sure: ClockSample | None = None
        """The latest that is good enough to tell a step."""
        self._stretch_start: ClockSample | None = None
        self._steps_ns: list[tuple[int, int]] = []
        """Spans in which the wall clock jumped."""
        self._drifts_ppm: list[float] = []
        """Of stretches that a step has ended."""
        self._knots: _Knots | None = None

    def add(self, sample: ClockSample) -> None:
        self._latest_ns = sample.monotonic_ns
        if self._sure is None or self._stretch_start is None:
            self._begin_stretch(sample)
        elif _is_step(self._sure, sample):
            self._steps_ns.append((self._sure.monotonic_ns, sample.monotonic_ns))
            self._drifts_ppm += _drift_ppm(self._stretch_start, self._sure)
            self._keep(self._sure)  # the offset holds up to here, and is not to lean towards the next
            self._begin_stretch(sample)
        elif sample.width_ns <= max(_WIDE_NS, self._stretch_start.width_ns):
            self._sure = sample
            if sample.monotonic_ns - self._kept[-1].monotonic_ns >= _SPACING_NS:
                self._keep(sample)

    def covers(self, monotonic_ns: int) -> bool:
        """Whether a sample was taken at that moment or later, so that a step before it is known."""
        return self._latest_ns >= monotonic_ns

    @property
    def num_steps(self) -> int:
        return len(self._steps_ns)

    @property
    def drift_ppm(self) -> float | None:
        """The largest of a stretch without a step, by magnitude; None if all were shorter than a second."""
        drifts = list(self._drifts_ppm)
        if self._stretch_start is not None and self._sure is not None:
            drifts += _drift_ppm(self._stretch_start, self._sure)
        return max(drifts, key=abs, default=None)

    def to_monotonic(
        self, kernel_ns: Nanoseconds, process_ns: Nanoseconds
    ) -> tuple[Nanoseconds, npt.NDArray[np.bool_]]:
        """Arrival times of reads, and which of them are the kernel's; the others are the process's.

        Args:
            kernel_ns: the kernel's stamps, 0 where it gave none. Shape (n,).
            process_ns: when the process had read. Shape (n,).
        """
        if not self._kept or not kernel_ns.any():
            return process_ns, np.zeros(len(process_ns), bool)
        stamps = kernel_ns - self._offset_at(process_ns)
        stamps = kernel_ns - self._offset_at(stamps)  # the offset when the data came, not when it was read
        usable = kernel_ns != 0
        for low, high in self._steps_ns:
            usable &= (process_ns < low) | (stamps > high)
        return np.where(usable, np.minimum(stamps, process_ns), process_ns), usable

    def _begin_stretch(self, sample: ClockSample) -> None:
        self._stretch_start = self._sure = sample
        self._keep(sample)

    def _keep(self, sample: ClockSample) -> None:
        self._kept.append(sample)
        self._knots = None

    def _offset_at(self, monotonic_ns: Nanoseconds) -> Nanoseconds:
        if self._knots is None:
            self._knots = _Knots.of(self._kept)
        return self._knots.offset_at(monotonic_ns)


@dataclass(frozen=True, slots=True)
class _Knots:
    """Samples as `numpy.interp` takes them: relative to the first, since the times do not fit in a float."""

    origin_ns: int
    base_ns: int
    times: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.float64]

    @classmethod
    def of(cls, samples: Sequence[ClockSample]) -> _Knots:
        origin_ns, base_ns = samples[0].monotonic_ns, samples[0].offset_ns
        times = np.array([sample.monotonic_ns - origin_ns for sample in samples], np.float64)
        offsets = np.array([sample.offset_ns - base_ns for sample in samples], np.float64)
        return cls(origin_ns, base_ns, times, offsets)

    def offset_at(self, monotonic_ns: Nanoseconds) -> Nanoseconds:
        at = (monotonic_ns - self.origin_ns).astype(np.float64)
        moved_ns: Nanoseconds = np.rint(np.interp(at, self.times, self.offsets)).astype(np.int64)
        return moved_ns + self.base_ns


def _is_step(before: ClockSample, after: ClockSample) -> bool:
    slewed_ns = _MAX_SLEW * (after.monotonic_ns - before.monotonic_ns)
    explained_ns = slewed_ns + before.width_ns + after.width_ns + _SLACK_NS
    return abs(after.offset_ns - before.offset_ns) > explained_ns


def _drift_ppm(first: ClockSample, last: ClockSample) -> list[float]:
    """Of the stretch between two samples; none if it is too short to tell."""
    span_ns = last.monotonic_ns - first.monotonic_ns
    return [(last.offset_ns - first.offset_ns) / span_ns * 1e6] if span_ns >= _MIN_DRIFT_SPAN_NS else []
