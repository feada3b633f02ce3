"""Requests on their way, as columns small enough for a page: when each was queued, in prefill, in decode, in
which lane it is drawn; and how many there were of each at a time.

Owns lanes (requests in one lane never overlap, and there are as few lanes as requests were open at once), the
choice of lanes where all are too many, and sums over slices of time. Pure.

Segments are laid one after another: their times do not compare.

Invariant: what was left out is told (`num_left_out`); sums over slices are of all requests, drawn or not.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefixlab.bench.records.table import FloatArray, IntArray, RecordTable

NUM_SLICES = 600
"""Of time, in charts: about one for every other pixel."""
SHORTEST_TOKEN_SLICE_S, STEPS_IN_SLICE, FEWEST_SLICES = 0.25, 10, 4
FINEST_TICK_S = 1e-5
"""Times are whole ticks of 32 bits: at 10 µs half a day fits, and longer runs have longer ticks."""

Ticks = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Spans:
    """When each request that was sent was where. Shape (n,), in seconds from the first; in the table's order.

    Attributes:
        row: of the table.
        shift_s: added to the row's own times; shift_of: the same by segment.
        start_s, sent_s, first_s, end_s: due, sent, first token, end; without a token `first_s` is the end.
    """

    row: IntArray
    shift_s: FloatArray
    shift_of: Mapping[int, float]
    start_s: FloatArray
    sent_s: FloatArray
    first_s: FloatArray
    end_s: FloatArray

    @property
    def duration_s(self) -> float:
        return float(self.end_s.max(initial=0.0))


@dataclass(frozen=True)
class Lanes:
    """What is drawn, by start.

    Attributes:
        index: of `Spans`, shape (n,).
        lane: shape (n,).
        num_lanes: of those drawn.
        every: one lane of so many is drawn.
        num_left_out: requests.
        token_start: shape (n + 1,), into `token_s`.
        token_s: arrivals of those drawn; empty of all where there is no room for them.
        tokens_every: arrivals are of one drawn lane of so many.
    """

    index: IntArray
    lane: IntArray
    num_lanes: int
    every: int
    num_left_out: int
    token_start: IntArray
    token_s: FloatArray
    tokens_every: int


@dataclass(frozen=True)
class Slices:
    """Over equal slices of time: means of how many requests were where, and output tokens per second."""

    middle_s: FloatArray
    queued: FloatArray
    prefill: FloatArray
    decode: FloatArray
    tokens_per_s: FloatArray


def spans_of(table: RecordTable) -> Spans:
    """Of every request that was sent."""
    rows = np.flatnonzero(~np.isnan(table.sent_s))
    end_s = np.fmax(np.fmax(table.last_s, table.last_arrival_s), table.sent_s)[rows]
    shift_s = np.zeros(len(rows))
    shift_of: dict[int, float] = {}
    so_far = 0.0
    for segment in np.unique(table.segment[rows]).tolist():
        of_it = table.segment[rows] == segment
        begin_s = float(np.fmin(table.intended_s, table.sent_s)[rows][of_it].min())
        shift_of[segment] = so_far - begin_s
        shift_s[of_it] = so_far - begin_s
        so_far += float(end_s[of_it].max()) - begin_s
    sent_s, first_s = table.sent_s[rows] + shift_s, table.first_arrival_s[rows] + shift_s
    end_s = end_s + shift_s
    return Spans(
        row=rows,
        shift_s=shift_s,
        shift_of=shift_of,
        start_s=np.fmin(table.intended_s[rows] + shift_s, sent_s),
        sent_s=sent_s,
        first_s=np.where(np.isnan(first_s), end_s, first_s),
        end_s=end_s,
    )


def lanes_of(table: RecordTable, spans: Spans, max_requests: int, max_tokens: int) -> Lanes:
    """At most about `max_requests` of them, and of their arrivals `max_tokens`: whole lanes are left out,
    evenly, so that what is drawn still looks as busy as it was."""
    order = np.argsort(spans.start_s, kind="stable")
    lane = _assigned(spans.start_s[order], spans.end_s[order])
    num_lanes = int(lane.max(initial=-1)) + 1
    every = max(1, -(-len(order) // max(1, max_requests)))
    drawn = lane % every == 0
    index, lane = order[drawn], lane[drawn] // every
    left_out = len(order) - len(index)
    if len(index) > 2 * max_requests:  # fewer lanes than `every`: the later ones are left out
        index, lane = index[:max_requests], lane[:max_requests]
        left_out = len(order) - len(index)
    lengths = table.num_arrivals[spans.row[index]]
    tokens_every = max(1, -(-int(lengths.sum()) // max(1, max_tokens)))
    lengths = np.where(lane % tokens_every == 0, lengths, 0)
    starts = np.zeros(len(index) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    if starts[-1] > 2 * max_tokens:
        starts = np.zeros(len(index) + 1, dtype=np.int64)
        lengths = np.zeros_like(lengths)
    places = np.repeat(table.arrival_start[spans.row[index]] - starts[:-1], lengths) + np.arange(starts[-1])
    token_s = table.arrivals_s[places] + np.repeat(spans.shift_s[index], lengths)
    return Lanes(
        index,
        lane,
        -(-num_lanes // every) if num_lanes else 0,
        every,
        left_out,
        starts,
        token_s,
        tokens_every,
    )


def _assigned(start_s: FloatArray, end_s: FloatArray) -> IntArray:
    """The lowest free lane of each, by ascending start."""
    lane = np.empty(len(start_s), dtype=np.int64)
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    num_lanes = 0
    for number, (start, end) in enumerate(zip(start_s.tolist(), end_s.tolist(), strict=True)):
        while busy and busy[0][0] < start + FINEST_TICK_S:  # the same instant, as far as it is drawn
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            mine = heapq.heappop(free)
        else:
            mine, num_lanes = num_lanes, num_lanes + 1
        lane[number] = mine
        heapq.heappush(busy, (end, mine))
    return lane


def slices_of(table: RecordTable, spans: Spans, num_slices: int = NUM_SLICES) -> Slices:
    edges_s = np.linspace(0.0, max(spans.duration_s, 1e-9), num_slices + 1)
    width_s = float(edges_s[1] - edges_s[0])
    shift_s = np.zeros(len(table))
    shift_s[spans.row] = spans.shift_s
    sent = np.zeros(len(table), np.bool_)
    sent[spans.row] = True
    of_tokens = np.repeat(sent, table.num_arrivals)
    at_s = (table.arrivals_s + np.repeat(shift_s, table.num_arrivals))[of_tokens]
    tokens, _ = np.histogram(at_s, edges_s, weights=table.counts[of_tokens])
    return Slices(
        middle_s=(edges_s[1:] + edges_s[:-1]) / 2,
        queued=_mean_open(spans.start_s, spans.sent_s, edges_s) / width_s,
        prefill=_mean_open(spans.sent_s, spans.first_s, edges_s) / width_s,
        decode=_mean_open(spans.first_s, spans.end_s, edges_s) / width_s,
        tokens_per_s=tokens / width_s,
    )


def num_token_slices(table: RecordTable, spans: Spans) -> int:
    """So many that each holds several steps of decoding: shorter ones would show a comb."""
    gaps_s = (table.last_arrival_s - table.first_arrival_s) / np.maximum(table.num_arrivals - 1, 1)
    gaps_s = gaps_s[gaps_s > 0]
    step_s = float(np.median(gaps_s)) if len(gaps_s) else 0.0
    width_s = max(spans.duration_s / NUM_SLICES, SHORTEST_TOKEN_SLICE_S, STEPS_IN_SLICE * step_s)
    return max(FEWEST_SLICES, int(spans.duration_s / width_s))


def _mean_open(start_s: FloatArray, end_s: FloatArray, edges_s: FloatArray) -> FloatArray:
    """Seconds of all spans within each slice, exactly: what had begun before an edge, less what had ended."""
    return np.diff(_elapsed(start_s, edges_s) - _elapsed(end_s, edges_s)).clip(0)


def _elapsed(since_s: FloatArray, edges_s: FloatArray) -> FloatArray:
    """Σ max(0, edge − since), for each edge."""
    ordered = np.sort(since_s)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    count = np.searchsorted(ordered, edges_s, "right")
    elapsed: FloatArray = count * edges_s - sums[count]
    return elapsed


def tick_for(duration_s: float) -> float:
    """The unit in which all times of a run fit."""
    return max(FINEST_TICK_S, duration_s / 2**31)


def in_ticks(seconds: FloatArray, tick_s: float) -> Ticks:
    return np.round(seconds / tick_s).clip(0).astype(np.uint32)
