"""What the client reported against what the metronome did, request by request and token by token. Pure.

Owns the definition of the client's error:

    TTFT error   (first arrival − sent) − (first write − arrival of the request at the metronome's machine)
    ITL error    ITL of a token as metrics define it − gap between its write and the write before it

Tokens that came under one stamp share the gap before it, and the error of that is the client's. Both errors
take only differences of stamps of one side, so the two sides need no common clock. What the network adds (a
few µs each way on loopback) counts against the client.

Invariant: a request enters the comparison whole or is counted as not comparable; none is left out in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefixlab.bench.calibrate.metronome import Stream
from prefixlab.bench.calibrate.store import Errors
from prefixlab.bench.loadgen.driver import Drive
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.table import CODE, RecordTable

FloatArray = npt.NDArray[np.float64]

NO_ERRORS = Errors(count=0, bias_s=0.0, p50_s=0.0, p99_s=0.0, max_s=0.0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run of the client against the metronome.

    Attributes:
        ttft, itl: the client's errors.
        true_ttft_s, true_itl_s: p50 and p99 of what the metronome did.
        tokens_per_s, streams: what the metronome delivered: tokens over the time from its first write to its
            last, and the most requests it was answering at once.
        late_p99_s: how late the metronome's writes were against its own schedule.
        merged_share: tokens that share the stamp of the one before them, of all.
        num_compared, num_not_comparable: requests; the latter failed, or did not bring all that was written.
        health: the client's own figures.
    """

    ttft: Errors
    itl: Errors
    true_ttft_s: tuple[float, float]
    true_itl_s: tuple[float, float]
    tokens_per_s: float
    streams: int
    late_p99_s: float
    merged_share: float
    num_compared: int
    num_not_comparable: int
    health: ClientHealth


def compare(drive: Drive, log: Sequence[Stream], itl_ns: int) -> Comparison:
    """Match records to streams by name and compare them."""
    streams = {stream.name: stream for stream in log}
    table = drive.table
    ttft_errors: list[float] = []
    itl_errors: list[FloatArray] = []
    true_ttfts: list[float] = []
    true_itls: list[FloatArray] = []
    merged = tokens = 0
    for row, name in enumerate(table.request_id):
        stream = streams.get(name)
        if stream is None or not _is_whole(table, row, stream):
            continue
        own = slice(table.arrival_start[row], table.arrival_start[row + 1])
        arrivals, counts = table.arrivals_s[own], table.counts[own]
        gaps = np.repeat(np.diff(arrivals) / counts[1:], counts[1:])
        true_ttft = (stream.written_ns[0] - stream.arrived_ns) / 1e9
        true_gaps = np.diff(stream.written_ns)[counts[0] - 1 :] / 1e9
        ttft_errors.append(float(arrivals[0] - table.sent_s[row]) - true_ttft)
        itl_errors.append(gaps - true_gaps)
        true_ttfts.append(true_ttft)
        true_itls.append(true_gaps)
        merged += int(counts.sum()) - len(counts)
        tokens += int(counts.sum())
    written = _joined([np.array(stream.written_ns) for stream in log])
    late = _joined([_lateness_s(stream, itl_ns) for stream in log])
    span_s = float(written.max() - written.min()) / 1e9 if written.size else 0.0
    return Comparison(
        ttft=errors(np.array(ttft_errors)),
        itl=errors(_joined(itl_errors)),
        true_ttft_s=_p50_p99(np.array(true_ttfts)),
        true_itl_s=_p50_p99(_joined(true_itls)),
        tokens_per_s=written.size / span_s if span_s else 0.0,
        streams=peak_streams(log),
        late_p99_s=_p50_p99(late)[1],
        merged_share=merged / tokens if tokens else 0.0,
        num_compared=len(ttft_errors),
        num_not_comparable=len(table) - len(ttft_errors),
        health=drive.health,
    )


def errors(signed_s: FloatArray) -> Errors:
    """Of signed errors in seconds, shape (n,)."""
    if not signed_s.size:
        return NO_ERRORS
    p50, p99, largest = np.percentile(np.abs(signed_s), [50, 99, 100]).tolist()
    bias = float(signed_s.mean())
    return Errors(count=signed_s.size, bias_s=bias, p50_s=p50, p99_s=p99, max_s=largest)


def peak_streams(log: Sequence[Stream]) -> int:
    """The most requests that had a token written and one still to come, or were about to, at once."""
    begun = [stream.arrived_ns for stream in log if stream.written_ns]
    ended = [stream.written_ns[-1] for stream in log if stream.written_ns]
    times = np.array(begun + ended, dtype=np.int64)
    steps = np.repeat([1, -1], [len(begun), len(ended)])
    in_order = steps[np.lexsort((steps, times))]  # at one moment the ends come first
    return int(np.cumsum(in_order).max(initial=0))


def _is_whole(table: RecordTable, row: int, stream: Stream) -> bool:
    """The request succeeded and brought every token that was written, counted and not guessed."""
    counts = table.counts[table.arrival_start[row] : table.arrival_start[row + 1]]
    ok = table.outcome[row] == CODE[Outcome.OK] and not table.counts_estimated[row]
    return bool(ok and len(counts) and counts.sum() == len(stream.written_ns))


def _lateness_s(stream: Stream, itl_ns: int) -> FloatArray:
    due_ns = stream.due_ns + itl_ns * np.arange(len(stream.written_ns))
    late: FloatArray = (np.array(stream.written_ns, dtype=np.int64) - due_ns) / 1e9
    return late


def _joined(pieces: Sequence[npt.NDArray[np.generic]]) -> FloatArray:
    return np.concatenate([np.zeros(0), *pieces])


def _p50_p99(values: FloatArray) -> tuple[float, float]:
    if not values.size:
        return 0.0, 0.0
    p50, p99 = np.percentile(values, [50, 99]).tolist()
    return p50, p99
