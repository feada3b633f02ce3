"""From a stream to a record: collects what a driver saw of one request, chunk by chunk.

Owns how totals and guesses about token counts are reconciled. Reads no clock: every chunk brings its stamp.

Invariant: the record's counts sum to the total the server named, where it named one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.core.target import Chunk, Sent


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

    def finish(
        self,
        outcome: Outcome,
        now_s: float,
        error: str | None = None,
        failure: Failure | None = None,
    ) -> Record:
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
            failure=failure or (Failure.SERVER_ERROR if outcome is Outcome.FAILED else None),
        )
        record.check()
        return record


def spread_evenly(total: int, num_parts: int) -> list[int]:
    """`total` as `num_parts` whole numbers that differ by at most one, larger ones as early as possible.

    The first is at least 1 when total is: the first chunk with content did bring a token.
    """
    edges = [-(-index * total // num_parts) for index in range(num_parts + 1)]
    return [high - low for low, high in itertools.pairwise(edges)]
