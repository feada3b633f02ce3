"""What tests of calibration build again and again: comparisons, logged streams, records that fit them."""

from __future__ import annotations

from collections.abc import Sequence

from prefixlab.bench.calibrate.compare import NO_ERRORS, Comparison
from prefixlab.bench.calibrate.metronome import Stream
from prefixlab.bench.calibrate.store import Errors
from prefixlab.bench.loadgen.driver import Drive
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.records.record import Record
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record


def comparison(
    *,
    itl_p99_s: float = 0.0,
    late_p99_s: float = 0.0,
    lost: int = 0,
    tokens_per_s: float = 1000.0,
    streams: int = 10,
) -> Comparison:
    errors = Errors(count=100, bias_s=0.0, p50_s=0.0, p99_s=itl_p99_s, max_s=itl_p99_s)
    return Comparison(
        ttft=NO_ERRORS,
        itl=errors,
        true_ttft_s=(0.1, 0.1),
        true_itl_s=(0.01, 0.01),
        tokens_per_s=tokens_per_s,
        streams=streams,
        late_p99_s=late_p99_s,
        merged_share=0.0,
        num_compared=50,
        num_not_comparable=lost,
        health=ClientHealth(),
    )


def stream(name: str, *, arrived_ns: int, written_ns: Sequence[int]) -> Stream:
    return Stream(name, arrived_ns, written_ns[0], list(written_ns))


def drive(*records: Record) -> Drive:
    return Drive(RecordTable.of(records), duration_s=1.0)


def record(
    name: str, *, sent_s: float, arrivals_s: Sequence[float], counts: Sequence[int] | None = None
) -> Record:
    return ok_record(name, sent_s=sent_s, arrivals_s=arrivals_s, counts=counts)
