"""The record: what became of one request, written once, when it ended. Every number is a fold over records.

Owns the record and the builder that makes one from a stream. Knows neither sockets nor metrics; a simulator
writes the same record. Times are seconds on the clock of whoever sent it.

Invariant: `intended ≤ sent ≤ first byte ≤ arrivals (never decreasing) ≤ last`, and every planned request ends
as exactly one record (`check` and `check_complete`).
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from prefixlab.core.target import Chunk, Sent


class Outcome(enum.Enum):
    """How a planned request ended. Only OK counts in latencies and throughput."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Sent, then given up by us."""
    UNSENT = "unsent"
    """Planned, and the run ended before its turn."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request.

    Attributes:
        intended_s: when it should have been sent: its place in the schedule, or when its turn came.
        sent_s: when its first byte was written. None if it never was.
        connect_started_s, connected_s: the connection opened for it; None when an open one was reused.
        first_byte_s: when the first chunk of the answer arrived, tokens or not.
        arrivals_s: when tokens arrived, one entry per chunk that carried some.
        arrival_counts: how many tokens each of those brought; sums to `num_output_tokens`.
        counts_estimated: the server told only the total, and it was spread over the chunks.
        last_s: when the stream ended.
        planned_prompt_tokens: prompt length as the workload made it.
        planned_output_tokens: output length asked for.
        num_prompt_tokens: prompt length as the server counted it, if it said.
        num_expected_cached_tokens: by the hit oracle; None when the page size is unknown.
        num_cached_tokens: what the server reported. None is "did not say", which is not zero.
        worker: which of several servers answered, if known.
    """

    request_id: str
    outcome: Outcome
    intended_s: float
    sent_s: float | None = None
    connect_started_s: float | None = None
    connected_s: float | None = None
    first_byte_s: float | None = None
    arrivals_s: tuple[float, ...] = ()
    arrival_counts: tuple[int, ...] = ()
    counts_estimated: bool = False
    last_s: float | None = None
    planned_prompt_tokens: int = 0
    planned_output_tokens: int = 0
    num_prompt_tokens: int | None = None
    num_expected_cached_tokens: int | None = None
    num_cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    session_id: str | None = None
    turn: int | None = None
    worker: str | None = None

    @property
    def num_output_tokens(self) -> int:
        return sum(self.arrival_counts)

    @property
    def prompt_tokens(self) -> int:
        """Prompt length as the server counted it, or as planned where it did not say."""
        return self.planned_prompt_tokens if self.num_prompt_tokens is None else self.num_prompt_tokens

    def check(self) -> None:
        """AssertionError if times run backwards or parts disagree: that would be a bug of ours."""
        times = [self.intended_s, self.connect_started_s, self.connected_s, self.sent_s, self.first_byte_s]
        known = [t for t in (*times, *self.arrivals_s, self.last_s) if t is not None]
        assert known == sorted(known), f"{self.request_id}: times run backwards: {known}"
        assert len(self.arrivals_s) == len(self.arrival_counts), (
            f"{self.request_id}: an arrival without a count"
        )
        assert all(count > 0 for count in self.arrival_counts), (
            f"{self.request_id}: an arrival without a token"
        )
        if self.outcome is Outcome.OK:
            assert self.sent_s is not None and self.last_s is not None, (
                f"{self.request_id}: ok, but not complete"
            )
        assert (self.error is not None) == (self.outcome is Outcome.FAILED), (
            f"{self.request_id}: error and outcome"
        )


@dataclass(slots=True)
class RecordBuilder:
    """Collects one stream; `finish` makes the record. What was known beforehand is in `plan`."""

    plan: Record
    """An UNSENT record: what is returned, as it is, if nothing ever happens."""
    _sent: Sent | None = None
    _first_byte_s: float | None = None
    _last_chunk_s: float = 0.0
    _arrivals_s: list[float] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)
    _num_seen: int = 0
    _guessed: bool = False
    _total: int | None = None
    _num_prompt_tokens: int | None = None
    _num_cached_tokens: int | None = None
    _finish_reason: str | None = None

    def sent(self, sent: Sent) -> None:
        self._sent = sent

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk. Totals win over what earlier chunks said."""
        if self._first_byte_s is None:
            self._first_byte_s = chunk.arrival_s
        self._last_chunk_s = chunk.arrival_s
        if chunk.num_output_tokens is not None:
            self._total = chunk.num_output_tokens
        if chunk.carries_tokens:
            # A chunk that does not say counts as one token, until a total says otherwise.
            self._guessed |= chunk.num_output_tokens is None
            brought = 1 if chunk.num_output_tokens is None else chunk.num_output_tokens - self._num_seen
            if brought > 0:
                self._arrivals_s.append(chunk.arrival_s)
                self._counts.append(brought)
                self._num_seen += brought
        if chunk.num_prompt_tokens is not None:
            self._num_prompt_tokens = chunk.num_prompt_tokens
        if chunk.num_cached_tokens is not None:
            self._num_cached_tokens = chunk.num_cached_tokens
        if chunk.finish_reason is not None:
            self._finish_reason = chunk.finish_reason

    def finish(self, outcome: Outcome, now_s: float, error: str | None = None) -> Record:
        """The record of what was collected, checked."""
        arrivals, counts, corrected = self._arrivals_s, self._counts, False
        if self._total is not None and self._total != self._num_seen:
            # Content nobody could see (special tokens, half characters) came with the last chunk, or before.
            arrivals = arrivals or [self._last_chunk_s]
            spread = list(zip(arrivals, spread_evenly(self._total, len(arrivals)), strict=True))
            arrivals = [time for time, count in spread if count]
            counts = [count for _, count in spread if count]
            corrected = True
        sent = self._sent
        record = replace(
            self.plan,
            outcome=outcome,
            sent_s=sent.sent_s if sent else None,
            connect_started_s=sent.connect_started_s if sent else None,
            connected_s=sent.connected_s if sent else None,
            first_byte_s=self._first_byte_s,
            arrivals_s=tuple(arrivals),
            arrival_counts=tuple(counts),
            counts_estimated=corrected or (self._guessed and self._total is None),
            last_s=now_s if sent else None,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            finish_reason=self._finish_reason,
            error=error,
        )
        record.check()
        return record


def spread_evenly(total: int, num_parts: int) -> list[int]:
    """`total` as `num_parts` whole numbers that differ by at most one, larger ones as early as possible.

    The first is at least 1 when total is: the first chunk with content did bring a token.
    """
    edges = [-(-index * total // num_parts) for index in range(num_parts + 1)]
    return [high - low for low, high in itertools.pairwise(edges)]


def check_complete(records: Collection[Record], planned: int) -> None:
    """AssertionError unless planned = ok + failed + cancelled + unsent, each request once."""
    assert len(records) == planned, f"{planned} requests planned, {len(records)} recorded"
    assert len({record.request_id for record in records}) == planned, "a request was recorded twice"
