"""One answer, as the socket loop stored it, made into a record. No I/O.

Owns what an ending means in the words of a record, and to which arrival an event belongs: that of the read
that brought its last byte. Framing is `wire.py`'s, what makes an answer `events.py`'s, fields the dialect's,
counts the record builder's.

Invariant: every answer, whatever its bytes, becomes a record that passes `Record.check`; apart from arrivals
and merges, the record does not depend on how the bytes were cut into reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prefixlab.bench.loadgen.capture import NEVER, Answer, Ending
from prefixlab.bench.loadgen.decoding.body import Body, read_body
from prefixlab.bench.loadgen.decoding.clock import StampClock
from prefixlab.bench.loadgen.decoding.events import read_chunks
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.records.builder import RecordBuilder
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.targets.dialects import DIALECTS, AnswerError, quote
from prefixlab.core.target import Sent

FAILURES: dict[Ending, tuple[Failure, str]] = {
    Ending.CONNECT: (Failure.CONNECT, "could not connect"),
    Ending.CONNECT_TIMEOUT: (Failure.CONNECT_TIMEOUT, "no connection within the time-out"),
    Ending.DROPPED: (Failure.DROPPED, "the server broke off before a byte of the answer"),
    Ending.RESET: (Failure.RESET, "the connection was reset"),
    Ending.TRUNCATED: (Failure.TRUNCATED, "the server broke off inside the answer"),
    Ending.STALLED: (Failure.STALLED, "the server fell silent for longer than the read time-out"),
    Ending.TIMED_OUT: (Failure.TIMED_OUT, "not done within the time-out of the whole request"),
    Ending.GARBAGE: (Failure.GARBAGE, "the answer is not HTTP"),
    Ending.NO_TOKEN_IDS: (Failure.NO_TOKEN_IDS, "this turn cannot go on from the one before"),
}


class AnswerDecoder:
    """Of one worker's answers. What it learns about the client's health is in `health`.

    Args:
        start_ns: the run's start, from which a record's times count.
    """

    def __init__(self, job: Job, worker: int, start_ns: int, clock: StampClock) -> None:
        self.health = ClientHealth(num_workers=0)
        self._read = DIALECTS[job.dialect]().read
        self._worker = worker
        self._path = job.path
        host = f"[{job.host}]" if ":" in job.host else job.host
        self._url = f"{'https' if job.tls else 'http'}://{host}:{job.port}{job.path}"
        self._start_ns = start_ns
        self._clock = clock

    def decode(self, answer: Answer, template: Record) -> Record:
        """The record of `answer`; `template` is what was planned (`job.Templates`)."""
        intended_s = template.intended_s
        if answer.intended_ns != NEVER:
            intended_s = self._seconds(answer.intended_ns)
        plan = replace(
            template,
            intended_s=intended_s,
            client=self._worker,
            num_retries=answer.num_retries,
        )
        never_sent = answer.sent_ns == NEVER
        if answer.ending is Ending.UNSENT or (answer.ending is Ending.CANCELLED and never_sent):
            return plan
        builder = RecordBuilder(plan)
        latest_s = intended_s
        if not never_sent:
            sent = self._sent(answer, intended_s)
            builder.sent(sent)
            latest_s = sent.sent_s
        arrivals_s, from_kernel = self._arrivals(answer, latest_s)
        if arrivals_s:
            builder.first_byte(arrivals_s[0])
            latest_s = arrivals_s[-1]
        if answer.ending is not Ending.COMPLETE:
            latest_s = max(latest_s, self._seconds(answer.ended_ns))

        body = read_body(answer)
        failure: Failure | None = None
        error: str | None = None
        token_reads: list[int] = []
        if body.status == 200:
            whole = answer.ending is Ending.COMPLETE
            try:
                self._add_events(body, arrivals_s, builder, token_reads, whole=whole)
            except AnswerError as said:
                failure, error = said.failure, str(said)
        elif body.status is not None:
            failure, error = Failure.HTTP_STATUS, f"HTTP {body.status} from {self._path}: {quote(body.data)}"
        if failure is None and answer.ending in FAILURES:
            failure, words = FAILURES[answer.ending]
            error = f"{words} ({self._url})" + (f": {answer.detail}" if answer.detail else "")
        builder.plan = replace(
            plan,
            num_merged_reads=body.num_merged(token_reads),
            kernel_stamps=from_kernel,
            http_status=body.status if failure is Failure.HTTP_STATUS else None,
            worker=body.worker,
        )
        self.health.num_merged_reads += builder.plan.num_merged_reads
        if answer.ending is Ending.CANCELLED:
            return builder.finish(Outcome.CANCELLED, latest_s)
        outcome = Outcome.OK if failure is None else Outcome.FAILED
        return builder.finish(outcome, latest_s, failure=failure, error=error)

    def _seconds(self, monotonic_ns: int) -> float:
        return (monotonic_ns - self._start_ns) / 1e9

    def _sent(self, answer: Answer, intended_s: float) -> Sent:
        sent_s = max(intended_s, self._seconds(answer.sent_ns))
        if NEVER in (answer.connect_started_ns, answer.connected_ns):
            return Sent(sent_s)
        started_s = min(max(intended_s, self._seconds(answer.connect_started_ns)), sent_s)
        return Sent(sent_s, started_s, min(max(started_s, self._seconds(answer.connected_ns)), sent_s))

    def _arrivals(self, answer: Answer, not_before_s: float) -> tuple[list[float], bool]:
        """When each read's bytes arrived, never decreasing; and whether all of that is the kernel's word."""
        if not answer.lengths:
            return [], False
        process_ns = np.array(answer.process_ns, np.int64)
        stamps_ns, are_kernels = self._clock.to_monotonic(np.array(answer.kernel_ns, np.int64), process_ns)
        self.health.num_reads += len(stamps_ns)
        self.health.read_lag_s.extend((process_ns - stamps_ns)[are_kernels] / 1e9)
        times_s = np.maximum((stamps_ns - self._start_ns) / 1e9, not_before_s)
        return np.maximum.accumulate(times_s).tolist(), bool(are_kernels.all())

    def _add_events(
        self,
        body: Body,
        arrivals_s: Sequence[float],
        builder: RecordBuilder,
        token_reads: list[int],
        *,
        whole: bool,
    ) -> None:
        """Put what `body` holds into `builder`, and the reads that brought tokens into `token_reads`; see
        `read_chunks`."""
        add = builder.add
        asked = builder.plan.planned_output_tokens
        for chunk, place in read_chunks(body, arrivals_s, self._read, asked=asked, whole=whole):
            add(chunk)
            if chunk.carries_tokens:
                token_reads.append(place)
