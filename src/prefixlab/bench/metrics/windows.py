"""How much went on when: requests in flight, busiest second, and the stretch of a run that is steady.

Owns the steady-state window. Closed loop: from when requests in flight first reach 90 % of their plateau to
when they last are there, so without the ramp and without the drain; the plateau is the level at or above
which they are for half of the time. Open loop: the last two thirds of the time in which requests arrive.
A request, and all its tokens, count by the share of its time that lies inside.

Invariants: times of different segments are never compared; no window, no figure (None, never 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefixlab.bench.records.table import BoolArray, RecordTable

FloatArray = npt.NDArray[np.float64]

FULL = 0.9
"""Share of the plateau from which on a closed loop counts as full."""

RAMP = 1 / 3
"""Of the time of an open loop's arrivals, in which it fills an empty server."""

FEWEST_SECONDS = 2
"""From which on there is a busiest one."""

_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of one segment, `start_s` ≤ t < `end_s`."""

    segment: int
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class SteadyState:
    """What was done inside the windows (one per segment that has one), per second of them."""

    windows: tuple[Window, ...]
    duration_s: float
    request_throughput: float
    input_throughput: float
    output_throughput: float

    @property
    def total_throughput(self) -> float:
        return self.input_throughput + self.output_throughput


def each_segment(table: RecordTable) -> Iterator[tuple[int, BoolArray]]:
    """(number, its rows) for every segment that has rows."""
    for segment in np.unique(table.segment).tolist():
        yield segment, table.segment == segment


def duration_s(table: RecordTable) -> float:
    """From the first intended start to the end of the last stream, summed over segments."""
    total = 0.0
    for _, rows in each_segment(table):
        ends = table.last_s[rows & ~np.isnan(table.last_s)]
        if len(ends):
            total += float(ends.max() - table.intended_s[rows].min())
    return total


def peak_concurrency(table: RecordTable) -> int:
    """Most requests sent and not yet ended at once, over all client processes."""
    return max((_peak(*in_flight(table, rows)) for _, rows in each_segment(table)), default=0)


def peak_queued(table: RecordTable) -> int:
    """Most requests due and not yet sent at once."""
    peak = 0
    for _, rows in each_segment(table):
        ends_s = table.last_s[rows & ~np.isnan(table.last_s)]
        due = rows & (table.intended_s <= ends_s.max(initial=-np.inf))
        sent_s = np.where(np.isnan(table.sent_s), np.inf, table.sent_s)
        peak = max(peak, _peak(*levels(table.intended_s[due], sent_s[due])))
    return peak


def in_flight(table: RecordTable, rows: BoolArray) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """(times, requests of `rows` in flight from each on), shapes (events,)."""
    sent = rows & ~np.isnan(table.sent_s) & ~np.isnan(table.last_s)
    return levels(table.sent_s[sent], table.last_s[sent])


def levels(start_s: FloatArray, end_s: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """(times, how many spans are open from each on), shapes (2 n,). At one instant ends come before starts:
    in closed loop the one makes room for the other."""
    times = np.concatenate([end_s, start_s])
    steps = np.repeat(np.array([-1, 1], dtype=np.int64), len(start_s))
    order = np.argsort(times, kind="stable")
    return times[order], np.cumsum(steps[order])


def busiest_second(table: RecordTable) -> float | None:
    """Most output tokens within one second, in seconds counted from the first request of each segment. None
    of segments of less than two: what a second holds that is not over may be less than the mean."""
    most = None
    for _, rows in each_segment(table):
        timed = rows & table.ok & (table.num_arrivals > 0)
        if not timed.any():
            continue
        start_s = float(table.sent_s[timed].min())
        long_s = float(table.last_arrival_s[timed].max()) - start_s
        if long_s >= FEWEST_SECONDS:
            num_seconds = int(long_s) + 1
            tokens = tokens_by_slice(table, timed, Window(0, start_s, start_s + num_seconds), num_seconds)
            most = max(most or 0.0, float(tokens.max()))
    return most


def tokens_by_slice(table: RecordTable, rows: BoolArray, window: Window, num_slices: int) -> FloatArray:
    """Output tokens of `rows` that arrived in each of the equal slices of `window`, shape (num_slices,)."""
    chosen = np.repeat(rows, table.num_arrivals)
    tokens = np.zeros(num_slices)
    for at in range(0, len(chosen), _BLOCK):  # by blocks: an array of slices is as large as the arrivals
        block = slice(at, at + _BLOCK)
        inside = chosen[block] & _inside(table.arrivals_s[block], window)
        which = (table.arrivals_s[block][inside] - window.start_s) * (num_slices / window.duration_s)
        places = np.minimum(which.astype(np.int64), num_slices - 1)
        tokens += np.bincount(places, table.counts[block][inside], minlength=num_slices)
    return tokens


def work_by_slice(
    table: RecordTable, rows: BoolArray, amounts: npt.NDArray[np.generic], window: Window, num_slices: int
) -> FloatArray:
    """The amounts of `rows` (shape (num rows,): tokens, or 1 for the request itself), each spread evenly from
    sending to end, that fall into each of the equal slices of `window`; shape (num_slices,).

    A whole request counts whole wherever it begins and ends, so a window that cuts through requests counts
    none too many and none too few. Counted by their ends, or tokens by their arrivals, those that are under
    way as a closed loop begins come in waves, and whether the window has one wave more is chance.
    """
    sent_s, last_s = table.sent_s[rows], table.last_s[rows]
    long_s = np.maximum(last_s - sent_s, 1e-9)
    edges_s = np.linspace(window.start_s, window.end_s, num_slices + 1)
    so_far = [float((np.clip((edge_s - sent_s) / long_s, 0.0, 1.0) * amounts).sum()) for edge_s in edges_s]
    return np.diff(so_far)


def steady_windows(table: RecordTable, *, open_loop: bool) -> list[Window]:
    """One per segment that has a steady stretch."""
    find = _between_intents if open_loop else _on_plateau
    return [window for segment, rows in each_segment(table) if (window := find(table, segment, rows))]


def steady_state(table: RecordTable, windows: list[Window]) -> SteadyState | None:
    duration = sum(window.duration_s for window in windows)
    if not duration:
        return None
    num_requests = num_input = num_output = 0.0
    for window in windows:
        rows = table.ok & (table.segment == window.segment)
        num_requests += float(work_by_slice(table, rows, np.ones(int(rows.sum())), window, 1).sum())
        num_input += float(work_by_slice(table, rows, table.prompt_tokens[rows], window, 1).sum())
        num_output += float(work_by_slice(table, rows, table.num_output_tokens[rows], window, 1).sum())
    return SteadyState(
        windows=tuple(windows),
        duration_s=duration,
        request_throughput=num_requests / duration,
        input_throughput=num_input / duration,
        output_throughput=num_output / duration,
    )


def _peak(times: FloatArray, level: npt.NDArray[np.int64]) -> int:
    return int(level.max(initial=0))


def _between_intents(table: RecordTable, segment: int, rows: BoolArray) -> Window | None:
    begun = table.intended_s[rows & ~np.isnan(table.sent_s)]
    if not len(begun) or begun.min() == begun.max():
        return None
    first_s, last_s = float(begun.min()), float(begun.max())
    return Window(segment, first_s + (last_s - first_s) * RAMP, last_s)


def _on_plateau(table: RecordTable, segment: int, rows: BoolArray) -> Window | None:
    """None where fewer requests begin after the plateau was reached than it holds: then it was all ramp."""
    times, level = in_flight(table, rows)
    plateau = _weighted_median(level[:-1], np.diff(times))
    if not plateau:
        return None
    full = np.flatnonzero(level >= FULL * plateau)
    # the last event at which it is full is followed by one at which it no longer is
    window = Window(segment, float(times[full[0]]), float(times[full[-1] + 1]))
    num_begun = int((table.sent_s[rows] > window.start_s).sum())
    return window if num_begun >= FULL * plateau and window.duration_s > 0 else None


def _weighted_median(values: npt.NDArray[np.int64], weights: FloatArray) -> int:
    """0 where nothing has weight."""
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weights[order])
    if not len(sums) or not sums[-1]:
        return 0
    return int(values[order][np.searchsorted(sums, sums[-1] / 2)])


def _inside(times: FloatArray, window: Window) -> BoolArray:
    return np.logical_and(times >= window.start_s, times < window.end_s)
