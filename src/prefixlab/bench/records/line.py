"""A record as one JSON line: the form in which records are kept, appended as requests end.

Owns the keys and units of the line, and its version. Times are whole nanoseconds: `intended_ns` from the
run's start, the others from `intended_ns`, arrivals each from the one before (the first from `intended_ns`),
so that lines stay short and exact. What is None, or at its default, is left out.

Invariant: `decode(encode(record)) == record` up to a nanosecond in its times.
"""

from __future__ import annotations

import msgspec

from prefixlab.bench.records.record import Failure, Outcome, Record

VERSION = 1


class Line(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True, gc=False
):
    """See the module. `counts` is left out where every arrival brought one token."""

    v: int = 0
    id: str
    outcome: str
    intended_ns: int
    connect_started_ns: int | None = None
    connected_ns: int | None = None
    sent_ns: int | None = None
    first_byte_ns: int | None = None
    first_content_ns: int | None = None
    arrivals_ns: list[int] = []
    counts: list[int] | None = None
    counts_estimated: bool = False
    last_ns: int | None = None
    planned_prompt_tokens: int = 0
    planned_output_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens: int | None = None
    expected_cached_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    merged_reads: int = 0
    kernel_stamps: bool = False
    finish_reason: str | None = None
    failure: str | None = None
    http_status: int | None = None
    error: str | None = None
    retries: int = 0
    session_id: str | None = None
    turn: int | None = None
    client: int = 0
    segment: int = 0
    worker: str | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)


def encode(record: Record) -> bytes:
    """One line, with its newline."""
    intended_ns = round(record.intended_s * 1e9)

    def since(time_s: float | None) -> int | None:
        return None if time_s is None else round(time_s * 1e9) - intended_ns

    arrivals, before = [], intended_ns
    for arrival_s in record.arrivals_s:
        at = round(arrival_s * 1e9)
        arrivals.append(at - before)
        before = at
    single = all(count == 1 for count in record.arrival_counts)
    line = Line(
        v=VERSION,
        id=record.request_id,
        outcome=record.outcome.value,
        intended_ns=intended_ns,
        connect_started_ns=since(record.connect_started_s),
        connected_ns=since(record.connected_s),
        sent_ns=since(record.sent_s),
        first_byte_ns=since(record.first_byte_s),
        first_content_ns=since(record.first_content_s),
        arrivals_ns=arrivals,
        counts=None if single else list(record.arrival_counts),
        counts_estimated=record.counts_estimated,
        last_ns=since(record.last_s),
        planned_prompt_tokens=record.planned_prompt_tokens,
        planned_output_tokens=record.planned_output_tokens,
        output_tokens=record.num_output_tokens,
        prompt_tokens=record.num_prompt_tokens,
        expected_cached_tokens=record.num_expected_cached_tokens,
        cached_tokens=record.num_cached_tokens,
        reasoning_tokens=record.num_reasoning_tokens,
        merged_reads=record.num_merged_reads,
        kernel_stamps=record.kernel_stamps,
        finish_reason=record.finish_reason,
        failure=record.failure,
        http_status=record.http_status,
        error=record.error,
        retries=record.num_retries,
        session_id=record.session_id,
        turn=record.turn,
        client=record.client,
        segment=record.segment,
        worker=record.worker,
    )
    return _encoder.encode(line) + b"\n"


def decode_line(data: bytes) -> Line:
    """The line as it is. Raises msgspec.DecodeError for what is no line of ours (a torn one, say)."""
    return _decoder.decode(data)


def decode_lines(data: bytes) -> list[Line]:
    """Many lines at once, which is faster. Raises msgspec.DecodeError if one of them is none of ours."""
    return _decoder.decode_lines(data)


def decode(data: bytes) -> Record:
    """The record of one line. Raises msgspec.DecodeError for what is none."""
    line = decode_line(data)

    def at(since_ns: int | None) -> float | None:
        return None if since_ns is None else (line.intended_ns + since_ns) / 1e9

    arrivals, before = [], line.intended_ns
    for gap_ns in line.arrivals_ns:
        before += gap_ns
        arrivals.append(before / 1e9)
    return Record(
        request_id=line.id,
        outcome=Outcome(line.outcome),
        intended_s=line.intended_ns / 1e9,
        sent_s=at(line.sent_ns),
        connect_started_s=at(line.connect_started_ns),
        connected_s=at(line.connected_ns),
        first_byte_s=at(line.first_byte_ns),
        first_content_s=at(line.first_content_ns),
        arrivals_s=tuple(arrivals),
        arrival_counts=tuple(line.counts or (1,) * len(arrivals)),
        counts_estimated=line.counts_estimated,
        last_s=at(line.last_ns),
        planned_prompt_tokens=line.planned_prompt_tokens,
        planned_output_tokens=line.planned_output_tokens,
        num_prompt_tokens=line.prompt_tokens,
        num_expected_cached_tokens=line.expected_cached_tokens,
        num_cached_tokens=line.cached_tokens,
        num_reasoning_tokens=line.reasoning_tokens,
        num_merged_reads=line.merged_reads,
        kernel_stamps=line.kernel_stamps,
        finish_reason=line.finish_reason,
        failure=None if line.failure is None else Failure(line.failure),
        http_status=line.http_status,
        error=line.error,
        num_retries=line.retries,
        session_id=line.session_id,
        turn=line.turn,
        client=line.client,
        segment=line.segment,
        worker=line.worker,
    )
