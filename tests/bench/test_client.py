from __future__ import annotations

import asyncio

import pytest

from prefixlab.bench.loadgen.in_process import run_closed_loop, run_open_loop
from prefixlab.bench.records.record import Outcome, Record, check_complete
from prefixlab.core.clock import MonotonicClock
from tests.bench.helpers import ScriptedTarget, planned

CLOCK = MonotonicClock()


def test_closed_loop_keeps_so_many_in_flight_and_sends_in_order() -> None:
    target = ScriptedTarget(CLOCK, duration_s=0.002)
    plan = [planned(f"r{i}") for i in range(20)]
    records = asyncio.run(run_closed_loop(target, plan, max_concurrency=3, clock=CLOCK))
    check_complete(records, 20)
    assert target.peak_in_flight == 3
    assert target.started == [f"r{i}" for i in range(20)]
    assert all(record.outcome is Outcome.OK for record in records)


def test_fewer_requests_than_slots_is_fine() -> None:
    records = asyncio.run(
        run_closed_loop(ScriptedTarget(CLOCK), [planned("r")], max_concurrency=9, clock=CLOCK)
    )
    assert len(records) == 1


def test_a_failed_request_is_a_record_and_the_run_goes_on() -> None:
    target = ScriptedTarget(CLOCK, failing=["r1"])
    plan = [planned(f"r{i}") for i in range(3)]
    records = asyncio.run(run_closed_loop(target, plan, max_concurrency=1, clock=CLOCK))
    assert [record.outcome for record in records] == [Outcome.OK, Outcome.FAILED, Outcome.OK]
    assert records[1].error == "HTTP 503: queue is full"


def test_open_loop_counts_every_send_from_the_start_and_does_not_wait_for_answers() -> None:
    target = ScriptedTarget(CLOCK, duration_s=0.2)
    plan = [planned(f"r{i}", offset_s=0.005 * i) for i in range(5)]
    records = sorted(asyncio.run(run_open_loop(target, plan, clock=CLOCK)), key=lambda r: r.request_id)
    intended = [record.intended_s - records[0].intended_s for record in records]
    assert intended == pytest.approx([0.0, 0.005, 0.01, 0.015, 0.02])
    assert target.peak_in_flight == 5, "none waited for another"
    assert all(r.sent_s is not None and r.sent_s >= r.intended_s for r in records)


@pytest.mark.parametrize("open_loop", [False, True])
def test_a_cancelled_run_still_accounts_for_every_request(open_loop: bool) -> None:
    target = ScriptedTarget(CLOCK, duration_s=30.0)
    plan = [planned(f"r{i}", offset_s=0.0 if i < 2 else 60.0) for i in range(5)]
    kept: list[Record] = []

    async def interrupted() -> None:
        if open_loop:
            run = asyncio.create_task(run_open_loop(target, plan, clock=CLOCK, on_record=kept.append))
        else:
            run = asyncio.create_task(
                run_closed_loop(target, plan, max_concurrency=2, clock=CLOCK, on_record=kept.append)
            )
        while target.in_flight < 2:
            await asyncio.sleep(0.001)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(interrupted())
    check_complete(kept, 5)
    outcomes = [record.outcome for record in sorted(kept, key=lambda r: r.request_id)]
    assert outcomes == [Outcome.CANCELLED] * 2 + [Outcome.UNSENT] * 3
