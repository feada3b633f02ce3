"""Kernel stamps put on the monotonic clock: the wall clock's offset, as the loop sampled it through the run.

Owns the conversion, and what counts as a step of the wall clock. Both clocks are slewed alike, so what moves
their offset is steps, and the blur of taking a sample.

Invariant: no stamp is later than the moment the process read it.
"""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

from prefixlab.bench.loadgen.capture import ClockSample

Nanoseconds = npt.NDArray[np.int64]

_MAX_SLEW = 500e-6
_SLACK_NS = 50_000
_WIDE_NS = 20_000
"""A sample that took longer (the process was put aside inside it) is not good enough to convert by."""
_MIN_DRIFT_SPAN_NS = 1_000_000_000


class StampClock:
    """See the module. Samples are added as they are read; a stamp is converted once it is covered by one."""

    def __init__(self) -> None:
        self._stretches: list[list[ClockSample]] = []
        """Samples in order of time; a step of the wall clock begins another stretch."""
        self._latest_ns = -1
        self._knots: tuple[int, int, npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None

    def add(self, sample: ClockSample) -> None:
        self._latest_ns = sample.monotonic_ns
        if not self._stretches or _is_step(self._stretches[-1][-1], sample):
            self._stretches.append([sample])
        elif sample.width_ns <= max(_WIDE_NS, self._stretches[-1][-1].width_ns):
            self._stretches[-1].append(sample)
        self._knots = None

    def covers(self, monotonic_ns: int) -> bool:
        """Whether a sample was taken at that moment or later, so that a step before it is known."""
        return self._latest_ns >= monotonic_ns

    @property
    def num_steps(self) -> int:
        return max(0, len(self._stretches) - 1)

    @property
    def drift_ppm(self) -> float | None:
        """The largest of a stretch without a step, by magnitude; None if all were shorter than a second."""
        drifts = []
        for stretch in self._stretches:
            span_ns = stretch[-1].monotonic_ns - stretch[0].monotonic_ns
            if span_ns >= _MIN_DRIFT_SPAN_NS:
                drifts.append((stretch[-1].offset_ns - stretch[0].offset_ns) / span_ns * 1e6)
        return max(drifts, key=abs, default=None)

    def to_monotonic(
        self, kernel_ns: Nanoseconds, process_ns: Nanoseconds
    ) -> tuple[Nanoseconds, npt.NDArray[np.bool_]]:
        """Arrival times of reads, and which of them are the kernel's; the others are the process's.

        Args:
            kernel_ns: the kernel's stamps, 0 where it gave none. Shape (n,).
            process_ns: when the process had read. Shape (n,).
        """
        if not self._stretches or not kernel_ns.any():
            return process_ns, np.zeros(len(process_ns), bool)
        stamps = kernel_ns - self._offset_at(process_ns)
        stamps = kernel_ns - self._offset_at(stamps)  # the offset when the data came, not when it was read
        usable = kernel_ns != 0
        for before, after in pairwise(self._stretches):
            low, high = before[-1].monotonic_ns, after[0].monotonic_ns
            usable &= (process_ns < low) | (stamps > high)
        return np.where(usable, np.minimum(stamps, process_ns), process_ns), usable

    def _offset_at(self, monotonic_ns: Nanoseconds) -> Nanoseconds:
        # Relative to the first sample: the times themselves do not fit a float's 53 bits.
        if self._knots is None:
            samples = list(chain.from_iterable(self._stretches))
            times = np.array([sample.monotonic_ns for sample in samples], np.int64)
            offsets = np.array([sample.offset_ns for sample in samples], np.int64)
            origin, base = int(times[0]), int(offsets[0])
            self._knots = origin, base, (times - origin).astype(float), (offsets - base).astype(float)
        origin, base, times_from, offsets_from = self._knots
        offsets_at = np.interp((monotonic_ns - origin).astype(float), times_from, offsets_from)
        offsets_ns: Nanoseconds = base + np.rint(offsets_at).astype(np.int64)
        return offsets_ns


def _is_step(before: ClockSample, after: ClockSample) -> bool:
    slewed_ns = _MAX_SLEW * (after.monotonic_ns - before.monotonic_ns)
    explained_ns = slewed_ns + before.width_ns + after.width_ns + _SLACK_NS
    return abs(after.offset_ns - before.offset_ns) > explained_ns
