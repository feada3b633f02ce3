"""Open loop at twice what a server can carry: what a client must not hide by waiting its turn."""

from __future__ import annotations

import numpy as np
import pytest

from prefixlab.bench.calibrate.metronome import Shape
from prefixlab.bench.calibrate.process import metronome
from prefixlab.bench.loadgen.driver import Drive
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.metrics.latencies import e2e_from_intent_s, e2e_s
from prefixlab.bench.metrics.saturation import saturation
from prefixlab.bench.records.record import check_complete
from prefixlab.bench.records.table import FloatArray
from prefixlab.bench.targets.dialects import CompletionsDialect
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.target import TargetRequest

SLOTS, NUM_TOKENS = 2, 5
SHAPE = Shape(ttft_ns=20_000_000, itl_ns=5_000_000, slots=SLOTS)
SERVICE_S = (SHAPE.ttft_ns + (NUM_TOKENS - 1) * SHAPE.itl_ns) / 1e9
CAPACITY = SLOTS / SERVICE_S  # 50 requests a second; less on a busy machine, never more
NUM_REQUESTS = 120


def plan(rate: float, num_requests: int) -> list[Planned]:
    ids = as_token_ids([1, 2, 3])
    return [
        Planned(
            TargetRequest(f"r{number}", NUM_TOKENS, prompt_token_ids=ids),
            num_prompt_tokens=3,
            offset_s=number / rate,
        )
        for number in range(num_requests)
    ]


@pytest.fixture(scope="module")
def drive() -> Drive:
    """At twice the capacity, with as many in flight as the server takes at once: who waits, waits here."""
    load = Load(open_loop=True, max_concurrency=SLOTS, num_workers=1)
    with metronome(SHAPE) as playing:
        driven = SocketDriver(playing.url, CompletionsDialect()).run(plan(2 * CAPACITY, NUM_REQUESTS), load)
    check_complete(driven.records, NUM_REQUESTS)
    return driven


def growth_s(values_s: FloatArray, drive: Drive) -> float:
    """Mean over the last third of the schedule, less that over the first."""
    order, third = np.argsort(drive.table.intended_s), NUM_REQUESTS // 3
    return float(values_s[order[-third:]].mean() - values_s[order[:third]].mean())


def test_latency_from_intent_grows_as_the_backlog_does(drive: Drive) -> None:
    schedule_s = NUM_REQUESTS / (2 * CAPACITY)
    # Two thirds of the schedule lie between, and half of what arrives then cannot be served.
    assert growth_s(e2e_from_intent_s(drive.table), drive) > schedule_s / 3 * 0.9


def test_latency_from_send_does_not(drive: Drive) -> None:
    from_intent_s = growth_s(e2e_from_intent_s(drive.table), drive)
    assert abs(growth_s(e2e_s(drive.table), drive)) < from_intent_s / 2
    assert np.median(e2e_s(drive.table)) < np.median(e2e_from_intent_s(drive.table)) / 2


def test_the_run_is_called_saturated(drive: Drive) -> None:
    verdict = saturation(drive.table)
    assert verdict is not None and verdict.saturated, verdict


def test_the_wait_is_seen_in_the_clients_queue(drive: Drive) -> None:
    assert drive.health.peak_in_flight == SLOTS
    assert drive.health.peak_queued > NUM_REQUESTS / 10
