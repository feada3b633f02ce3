from __future__ import annotations

import signal
import threading

import pytest

from prefixlab.bench.loadgen.driver import Drive, Progress
from prefixlab.bench.loadgen.in_process import StreamDriver
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.records.record import Failure, Outcome, Record, check_complete
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.errors import ConfigError
from tests.bench.helpers import ScriptedTarget, planned

CLOCK = MonotonicClock()


def closed(
    max_concurrency: int | None = None, *, stop_after_s: float | None = None, retries: int = 0
) -> Load:
    return Load(False, max_concurrency, stop_after_s=stop_after_s, retries=retries)


def opened(max_concurrency: int | None = None, *, stop_after_s: float | None = None) -> Load:
    return Load(True, max_concurrency, stop_after_s=stop_after_s)


def drive(target: ScriptedTarget, plan: list[Planned], load: Load) -> Drive:
    return StreamDriver(target, CLOCK).run(plan, load)


def by_id(drive: Drive) -> list[Record]:
    return sorted(drive.records, key=lambda record: record.request_id)


def test_closed_loop_keeps_so_many_in_flight_and_sends_in_order() -> None:
    target = ScriptedTarget(CLOCK, duration_s=0.002)
    done = drive(target, [planned(f"r{i}") for i in range(20)], closed(3))
    check_complete(done.records, 20)
    assert target.peak_in_flight == done.health.peak_in_flight == 3
    assert target.started == [f"r{i}" for i in range(20)]
    assert all(record.outcome is Outcome.OK for record in done.records)
    assert not done.interrupted


@pytest.mark.parametrize("slots", [9, None])
def test_closed_loop_with_a_slot_for_every_request_sends_them_all_at_once(slots: int | None) -> None:
    target = ScriptedTarget(CLOCK, duration_s=0.05)
    assert len(drive(target, [planned(f"r{i}") for i in range(4)], closed(slots)).table) == 4
    assert target.peak_in_flight == 4


def test_a_turn_comes_when_the_answer_before_it_ended() -> None:
    done = drive(ScriptedTarget(CLOCK, duration_s=0.01), [planned(f"r{i}") for i in range(3)], closed(1))
    first, second, third = by_id(done)
    assert first.last_s is not None and second.last_s is not None
    assert first.last_s <= second.intended_s < second.last_s <= third.intended_s


def test_times_count_from_the_start_of_the_run() -> None:
    done = drive(ScriptedTarget(CLOCK, duration_s=0.02), [planned("r")], closed(1))
    (record,) = done.records
    assert 0 <= record.intended_s < 5, "seconds into the run, not of a clock that started with the machine"
    assert done.duration_s == record.last_s


def test_a_failed_request_is_a_record_and_the_run_goes_on() -> None:
    target = ScriptedTarget(CLOCK, failing=["r1"])
    done = drive(target, [planned(f"r{i}") for i in range(3)], closed(1))
    assert [record.outcome for record in done.records] == [Outcome.OK, Outcome.FAILED, Outcome.OK]
    assert done.records[1].error == "HTTP 503: queue is full"
    assert done.records[1].failure is Failure.SERVER_ERROR


def test_a_failure_is_tried_again_only_where_the_load_says_so_and_counted() -> None:
    target = ScriptedTarget(CLOCK, failing=["r"], num_failures=2)
    (record,) = drive(target, [planned("r")], closed(1, retries=2)).records
    assert (record.outcome, record.num_retries, target.started) == (Outcome.OK, 2, ["r"] * 3)

    target = ScriptedTarget(CLOCK, failing=["r"])
    done = drive(target, [planned("r")], closed(1, retries=1))
    assert (done.records[0].outcome, done.records[0].num_retries) == (Outcome.FAILED, 1)
    assert done.health.num_retries == 1


def test_an_answer_that_breaks_off_is_not_asked_for_again() -> None:
    target = ScriptedTarget(CLOCK, breaking=["r"])
    (record,) = drive(target, [planned("r")], closed(1, retries=3)).records
    assert (record.outcome, record.num_retries, record.num_output_tokens) == (Outcome.FAILED, 0, 1)
    assert target.started == ["r"]


def test_open_loop_counts_every_send_from_the_start_and_does_not_wait_for_answers() -> None:
    target = ScriptedTarget(CLOCK, duration_s=0.3)
    done = drive(target, [planned(f"r{i}", offset_s=0.005 * i) for i in range(5)], opened())
    records = by_id(done)
    assert [record.intended_s for record in records] == pytest.approx([0.0, 0.005, 0.01, 0.015, 0.02])
    assert target.peak_in_flight == 5, "none waited for another"
    assert all(r.sent_s is not None and r.sent_s >= r.intended_s for r in records)
    assert done.health.peak_queued == 0


def test_open_loop_sends_by_time_whatever_the_order_of_the_plan() -> None:
    target = ScriptedTarget(CLOCK)
    drive(target, [planned("late", offset_s=0.05), planned("early", offset_s=0.0)], opened())
    assert target.started == ["early", "late"]


def test_a_cap_on_open_loop_makes_requests_wait_and_their_latency_from_intent_says_so() -> None:
    target = ScriptedTarget(CLOCK, duration_s=0.05)
    done = drive(target, [planned(f"r{i}") for i in range(6)], opened(2))
    assert target.peak_in_flight == done.health.peak_in_flight == 2
    assert done.health.peak_queued == 4
    assert target.started == [f"r{i}" for i in range(6)], "first due, first served"
    last = by_id(done)[-1]
    assert last.intended_s == 0.0
    assert last.sent_s is not None and last.sent_s > 0.09


@pytest.mark.parametrize("load", [closed(1, stop_after_s=0.1), opened(1, stop_after_s=0.1)])
def test_after_the_stop_nothing_is_sent_and_what_was_sent_may_end(load: Load) -> None:
    target = ScriptedTarget(CLOCK, duration_s=0.25)
    plan = [planned("a"), planned("b", offset_s=0.05), planned("c", offset_s=60.0)]
    done = drive(target, plan, load)
    assert [record.outcome for record in by_id(done)] == [Outcome.OK, Outcome.UNSENT, Outcome.UNSENT]
    assert target.started == ["a"]
    assert not done.interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("load", [closed(2), opened(), opened(2)])
def test_an_interrupted_run_still_accounts_for_every_request(load: Load, number: signal.Signals) -> None:
    target = ScriptedTarget(CLOCK, duration_s=30.0)
    plan = [planned(f"r{i}", offset_s=0.0 if i < 2 else 60.0) for i in range(5)]
    before = signal.getsignal(number)
    raised = []

    def interrupt(progress: Progress) -> None:
        if progress.in_flight == 2 and not raised:
            raised.append(number)
            signal.raise_signal(number)

    done = StreamDriver(target, CLOCK).run(plan, load, on_progress=interrupt)
    assert done.interrupted
    check_complete(done.records, 5)
    assert [r.outcome for r in by_id(done)] == [Outcome.CANCELLED] * 2 + [Outcome.UNSENT] * 3
    assert signal.getsignal(number) is before


def test_progress_adds_up_and_ends_with_everything_done() -> None:
    seen: list[Progress] = []
    target = ScriptedTarget(CLOCK, duration_s=0.5, failing=["r2"])
    StreamDriver(target, CLOCK).run([planned(f"r{i}") for i in range(3)], closed(3), on_progress=seen.append)
    assert any(progress.in_flight == 2 for progress in seen), "while the two that do not fail are under way"
    last = seen[-1]
    assert (last.planned, last.due, last.sent, last.first, last.finished) == (3, 3, 3, 2, 3)
    assert (last.tokens, last.failed, last.in_flight, last.queued, last.peak_in_flight) == (4, 1, 0, 0, 3)
    assert last.ttft_s is not None and last.itl_s is not None and last.ttft_s > 0 < last.itl_s


def test_a_plan_the_target_cannot_carry_is_an_error_of_the_plan() -> None:
    class IdsOnly(ScriptedTarget):
        def stream(self, request):  # type: ignore[no-untyped-def]
            raise ConfigError("token ids only")

    with pytest.raises(ConfigError, match="token ids only"):
        drive(IdsOnly(CLOCK), [planned("r")], closed(1))


def test_it_runs_outside_the_main_thread_too() -> None:
    done: list[Drive] = []
    thread = threading.Thread(
        target=lambda: done.append(drive(ScriptedTarget(CLOCK), [planned("r")], closed(1)))
    )
    thread.start()
    thread.join(30)
    assert done[0].records[0].outcome is Outcome.OK
