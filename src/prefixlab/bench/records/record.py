"""The record: what became of one request, written once, when it ended. Every number is a fold over records.

Owns the record and its words. Knows neither sockets nor metrics; a simulator writes the same record. Times
are seconds on the clock of whoever sent it.

Invariant: `intended ≤ sent ≤ first byte ≤ arrivals (never decreasing) ≤ last`, and every planned request ends
as exactly one record (`check` and `check_complete`).
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass


class Failure(enum.StrEnum):
    """What a failed request ran into, in one word that can be counted."""

    CONNECT = "connect"
    """No connection: refused, unreachable, name not found, TLS refused."""
    CONNECT_TIMEOUT = "connect_timeout"
    DROPPED = "dropped"
    """The connection was closed before a byte of the answer."""
    RESET = "reset"
    TRUNCATED = "truncated"
    """The answer ended before it was complete."""
    STALLED = "stalled"
    """The server fell silent for longer than the read time-out."""
    TIMED_OUT = "timed_out"
    """Not done within the time-out of the whole request."""
    HTTP_STATUS = "http_status"
    """Answered with a status other than 200; which one is in `http_status`."""
    GARBAGE = "garbage"
    """Not HTTP, not events, not JSON, or not what this API says."""
    SERVER_ERROR = "server_error"
    """Answered 200, and reported an error in the stream."""
    NO_TOKEN_IDS = "no_token_ids"
    """A turn was to continue an answer of which the server did not name the tokens. Never sent."""
    CLIENT = "client"
    """This client's own fault: a worker died."""


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
        first_byte_s: when the first bytes of the answer arrived, headers included.
        first_content_s: when the first token that is not reasoning arrived.
        arrivals_s: when tokens arrived, one entry per chunk that carried some.
        arrival_counts: how many tokens each of those brought; sums to `num_output_tokens`.
        counts_estimated: the server told only the total, and it was spread over the chunks.
        last_s: when the stream ended.
        planned_prompt_tokens: prompt length as the workload made it.
        planned_output_tokens: output length asked for.
        num_prompt_tokens: prompt length as the server counted it, if it said.
        num_expected_cached_tokens: by the hit oracle; None when the page size is unknown.
        num_cached_tokens: what the server reported. None is "did not say", which is not zero.
        num_reasoning_tokens: how many of the output tokens were reasoning; None where nobody can tell.
        num_merged_reads: reads that brought several chunks at once, so that one stamp covers them.
        kernel_stamps: whether arrivals are the kernel's stamps, not the moment this process looked.
        failure, http_status: of a failed request; `error` says it in the server's words.
        num_retries: attempts before the one recorded.
        client: which of this run's client processes sent it.
        segment: which stretch of a resumed run; times of different segments do not compare.
        worker: which of several servers answered, if known.
    """

    request_id: str
    outcome: Outcome
    intended_s: float
    sent_s: float | None = None
    connect_started_s: float | None = None
    connected_s: float | None = None
    first_byte_s: float | None = None
    first_content_s: float | None = None
    arrivals_s: tuple[float, ...] = ()
    arrival_counts: tuple[int, ...] = ()
    counts_estimated: bool = False
    last_s: float | None = None
    planned_prompt_tokens: int = 0
    planned_output_tokens: int = 0
    num_prompt_tokens: int | None = None
    num_expected_cached_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_reasoning_tokens: int | None = None
    num_merged_reads: int = 0
    kernel_stamps: bool = False
    finish_reason: str | None = None
    failure: Failure | None = None
    http_status: int | None = None
    error: str | None = None
    num_retries: int = 0
    session_id: str | None = None
    turn: int | None = None
    client: int = 0
    segment: int = 0
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
        failed = self.outcome is Outcome.FAILED
        assert (self.error is not None) == failed, f"{self.request_id}: error and outcome"
        assert (self.failure is not None) == failed, f"{self.request_id}: failure and outcome"


def check_complete(records: Collection[Record], planned: int) -> None:
    """AssertionError unless planned = ok + failed + cancelled + unsent, each request once."""
    assert len(records) == planned, f"{planned} requests planned, {len(records)} recorded"
    assert len({record.request_id for record in records}) == planned, "a request was recorded twice"
