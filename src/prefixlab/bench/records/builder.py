"""From a stream to a record: collects what a driver saw of one request, chunk by chunk.

Owns how totals and guesses about token counts are reconciled. Reads no clock: every chunk brings its stamp,
and chunks of one stamp are one arrival, since nobody can tell which of them came first.

Invariant: the record's counts sum to the total the server named, where it named one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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
    # One entry per chunk that brought tokens.
    _times_s: list[float] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)
    _reasoning: list[bool | None] = field(default_factory=list)
    _num_seen: int = 0
    _guessed: bool = False
    _total: int | None = None
    _num_reasoning_tokens: int | None = None
    _num_prompt_tokens: int | None = None
    _num_cached_tokens: int | None = None
    _finish_reason: str | None = None

    def sent(self, sent: Sent) -> None:
        self._sent = sent

    def first_byte(self, time_s: float) -> None:
        """When the answer began, where that was before its first chunk."""
        self._first_byte_s = time_s

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk. Totals win over what earlier chunks said."""
        arrival_s, total = chunk.arrival_s, chunk.num_output_tokens
        if self._first_byte_s is None:
            self._first_byte_s = arrival_s
        self._last_chunk_s = arrival_s
        if chunk.carries_tokens:
            # A chunk that does not say counts as one token, until a total says otherwise.
            self._guessed |= total is None
            brought = 1 if total is None else total - self._num_seen
            if brought > 0:
                self._times_s.append(arrival_s)
                self._counts.append(brought)
                self._reasoning.append(chunk.is_reasoning)
                self._num_seen += brought
        if total is not None:
            self._total = total
            if chunk.num_reasoning_tokens is not None:
                self._num_reasoning_tokens = chunk.num_reasoning_tokens
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
        if None in self._reasoning:
            self._reasoning = list(_carried_on(self._reasoning))
        corrected = self._total is not None and self._total != self._num_seen
        if corrected:
            self._spread_total()
        arrivals, counts = _by_stamp(self._times_s, self._counts)
        sent = self._sent
        record = replace(
            self.plan,
            outcome=outcome,
            sent_s=sent.sent_s if sent else None,
            connect_started_s=sent.connect_started_s if sent else None,
            connected_s=sent.connected_s if sent else None,
            first_byte_s=self._first_byte_s,
            first_content_s=self._first_content_s(),
            arrivals_s=tuple(arrivals),
            arrival_counts=tuple(counts),
            counts_estimated=corrected or (self._guessed and self._total is None),
            last_s=now_s if sent else None,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_reasoning_tokens=self._reasoning_tokens(),
            finish_reason=self._finish_reason,
            error=error,
            failure=failure or (Failure.SERVER_ERROR if outcome is Outcome.FAILED else None),
        )
        record.check()
        return record

    def _spread_total(self) -> None:
        """Content nobody could see (special tokens, half characters) came with the last chunk, or before."""
        assert self._total is not None
        if not self._times_s:
            self._times_s, self._reasoning = [self._last_chunk_s], [False]
        counts = spread(self._total, len(self._times_s))
        kept = [place for place, count in enumerate(counts) if count]
        self._times_s = [self._times_s[place] for place in kept]
        self._reasoning = [self._reasoning[place] for place in kept]
        self._counts = [counts[place] for place in kept]

    def _first_content_s(self) -> float | None:
        places = (place for place, reasons in enumerate(self._reasoning) if not reasons)
        first = next(places, None)
        return None if first is None else self._times_s[first]

    def _reasoning_tokens(self) -> int | None:
        """As the server said, else as its chunks were marked. No mark at all may mean that it marks none."""
        if self._num_reasoning_tokens is not None or not any(self._reasoning):
            return self._num_reasoning_tokens
        return sum(count for count, reasons in zip(self._counts, self._reasoning, strict=True) if reasons)


def _carried_on(marks: Sequence[bool | None]) -> Iterator[bool]:
    """Each mark, or where there is none that of what came before; at the start, of what comes next."""
    said = next((mark for mark in marks if mark is not None), False)
    for mark in marks:
        said = said if mark is None else mark
        yield said


def _by_stamp(times_s: Sequence[float], counts: Sequence[int]) -> tuple[Sequence[float], Sequence[int]]:
    if len(set(times_s)) == len(times_s):
        return times_s, counts
    merged: dict[float, int] = {}  # keeps the order in which the stamps came
    for time_s, count in zip(times_s, counts, strict=True):
        merged[time_s] = merged.get(time_s, 0) + count
    return list(merged), list(merged.values())


def spread(total: int, num_parts: int) -> list[int]:
    """`total` as `num_parts` whole numbers: 1 for the first, the others alike, larger ones early.

    A prompt's computation yields one token. Were the first chunk given more, ITL would have fewer gaps than
    tokens after the first, and its mean would exceed TPOT's.
    """
    if num_parts == 1 or total <= num_parts:
        return _evenly(total, num_parts)
    return [1, *_evenly(total - 1, num_parts - 1)]


def _evenly(total: int, num_parts: int) -> list[int]:
    edges = [-(-index * total // num_parts) for index in range(num_parts + 1)]
    return [high - low for low, high in itertools.pairwise(edges)]
