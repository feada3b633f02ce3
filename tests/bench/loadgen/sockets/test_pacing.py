"""When requests go: in plan order and at their times, under caps, until told to stop."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.loadgen.capture import NEVER, Answer, Ending
from prefixlab.bench.loadgen.job import PLAN_ROW, Job, progress_path, read_job, rows_of
from prefixlab.bench.loadgen.progress import Counter, open_counters
from prefixlab.bench.loadgen.sockets.deadlines import GRAIN_NS, Deadlines
from prefixlab.bench.loadgen.sockets.pacing import NOT_YET_NS, ClosedLoop, OpenLoop
from prefixlab.bench.loadgen.sockets.plan_file import PlanRows
from tests.bench.loadgen.sockets.rig import MS, Peer, drive, each_request, lay_down, post, serving

DONE = Answer(0, Ending.COMPLETE, 0)


def rows(folder: Path, due_ns: list[int], worker: int = 0, num_workers: int = 1) -> PlanRows:
    bodies = [b"%d" % index for index in range(len(due_ns))]
    job = read_job(lay_down(folder, 1, bodies, due_ns=due_ns, num_workers=num_workers))
    return PlanRows(folder, worker, job)


# The sources by themselves -------------------------------------------------------------------------------


def test_open_loop_takes_rows_by_their_times_and_ties_in_plan_order(tmp_path: Path) -> None:
    plan = rows(tmp_path, [30, 10, 20, 10])
    source = OpenLoop(plan, 1000, None)
    turns = []
    while source.next_due_ns() != NOT_YET_NS:
        turns.append(source.take())
    assert [(turn.index, turn.intended_ns) for turn in turns] == [(1, 1010), (3, 1010), (2, 1020), (0, 1030)]
    assert bytes(turns[0].payload) == post(b"1")
    for turn in turns:
        turn.payload.release()
    plan.close()


def test_open_loop_queues_under_a_cap_and_is_ready_when_a_slot_is_free(tmp_path: Path) -> None:
    source = OpenLoop(rows(tmp_path, [0, 0, 0, 500]), 1000, 1)
    assert (source.take().ready_ns, source.next_due_ns(), source.num_queued(1000)) == (1000, NOT_YET_NS, 2)
    source.done(DONE, 1200)
    turn = source.take()
    assert (turn.intended_ns, turn.ready_ns, source.num_queued(1499)) == (1000, 1200, 1)
    source.done(DONE, 1300)
    source.take()
    source.done(DONE, 1400)
    turn = source.take()
    assert (turn.intended_ns, turn.ready_ns, source.num_queued(9999)) == (1500, 1500, 0)
    assert list(source.remaining(9999)) == []


def test_closed_loop_takes_the_plan_in_order_as_slots_come_free(tmp_path: Path) -> None:
    source = ClosedLoop(rows(tmp_path, [0] * 4), 1000, 2)
    assert [(source.take().index, source.next_due_ns()) for _ in range(2)] == [(0, 1000), (1, NOT_YET_NS)]
    source.done(DONE, 1700)
    turn = source.take()
    assert (turn.index, turn.intended_ns, turn.ready_ns) == (2, 1700, 1700)
    assert list(source.remaining(5000)) == [(3, 5000)], "it was never due"
    assert source.num_queued(5000) == 0


def test_workers_share_a_plan_row_by_row(tmp_path: Path) -> None:
    for worker, expected in ((0, [0, 2, 4]), (1, [1, 3])):
        plan = rows(tmp_path, [0] * 5, worker, 2)
        assert [plan.index(row) for row in range(len(plan))] == expected
        assert [bytes(plan.payload(row)) for row in range(len(plan))] == [post(b"%d" % i) for i in expected]


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(lambda shares: tuple(sorted(shares)[::-1])),
    st.integers(0, 40),
)
def test_rows_are_dealt_as_slots_are_so_that_workers_end_together(
    shares: tuple[int, ...], num_rows: int
) -> None:
    job = Job(host="h", port=1, dialect="chat", path="/", num_workers=len(shares), max_concurrency=shares)
    plan = np.zeros(num_rows, PLAN_ROW)
    dealt = [rows_of(job, worker, plan).tolist() for worker in range(len(shares))]
    assert sorted(row for mine in dealt for row in mine) == list(range(num_rows))
    rounds = num_rows / sum(shares)
    for mine, num_slots in zip(dealt, shares, strict=True):
        assert mine == sorted(mine)
        assert int(rounds) * num_slots <= len(mine) <= -(-num_rows // sum(shares)) * num_slots


# The loop ------------------------------------------------------------------------------------------------


def test_open_loop_sends_each_request_at_its_time(tmp_path: Path) -> None:
    def handle(peer: Peer, body: bytes) -> None:
        peer.answer()

    with serving(each_request(handle)) as server:
        due = [60 * MS, 0, 90 * MS, 30 * MS]
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 4, due_ns=due, max_concurrency=None))
    start_ns = min(answer.intended_ns for answer in seen.answers)
    assert [answer.intended_ns - start_ns for answer in seen.answers] == due
    assert all(answer.sent_ns >= answer.intended_ns for answer in seen.answers)
    sent = sorted(seen.answers, key=lambda answer: answer.sent_ns)
    assert [answer.index for answer in sent] == [1, 3, 0, 2]
    assert seen.health.send_lag_s.count == 4


@pytest.mark.parametrize("open_loop", [True, False])
def test_of_requests_that_are_due_at_one_moment_only_the_first_can_be_late(
    tmp_path: Path, open_loop: bool
) -> None:
    def handle(peer: Peer, body: bytes) -> None:
        peer.answer()

    with serving(each_request(handle)) as server:
        due = [0] * 5 + [30 * MS] * 3 if open_loop else None
        at_once = None if open_loop else 5
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 8, due_ns=due, max_concurrency=at_once))
    # In closed loop the other three go as slots become free, each at a moment of its own.
    assert seen.health.send_lag_s.count == (2 if open_loop else 4)


def test_open_loop_waits_for_nobody(tmp_path: Path) -> None:
    everyone_is_here = threading.Barrier(5)

    def handle(peer: Peer, body: bytes) -> None:
        everyone_is_here.wait(timeout=10)
        peer.answer()

    with serving(each_request(handle)) as server:
        due = [5 * MS * i for i in range(5)]
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 5, due_ns=due, max_concurrency=None))
    assert seen.endings == [Ending.COMPLETE] * 5
    assert (seen.health.peak_in_flight, seen.health.num_connects) == (5, 5)


def test_a_cap_makes_due_requests_queue_and_both_peaks_are_counted(tmp_path: Path) -> None:
    with serving(each_request(lambda peer, _: peer.answer())) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 6, due_ns=[0] * 6, max_concurrency=2))
    assert seen.endings == [Ending.COMPLETE] * 6
    assert (seen.health.peak_in_flight, seen.health.peak_queued) == (2, 4)


def test_closed_loop_intends_a_request_for_when_its_slot_came_free(tmp_path: Path) -> None:
    with serving(each_request(lambda peer, _: peer.answer())) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 4))
    for before, after in zip(seen.answers, seen.answers[1:], strict=False):
        assert before.sent_ns <= after.intended_ns <= before.ended_ns <= after.sent_ns


def test_after_the_stop_nothing_is_sent_and_what_is_in_flight_goes_on(tmp_path: Path) -> None:
    stop_ns = 100 * MS

    def slow(peer: Peer, body: bytes) -> None:
        threading.Event().wait(0.04)
        peer.answer()

    with serving(each_request(slow)) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 30, stop_after_ns=stop_ns))
    num_sent = sum(answer.sent_ns != NEVER for answer in seen.answers)
    assert 0 < num_sent < 30
    assert seen.endings == [Ending.COMPLETE] * num_sent + [Ending.UNSENT] * (30 - num_sent)


def test_counters_end_where_the_run_did(tmp_path: Path) -> None:
    def handle(peer: Peer, body: bytes) -> None:
        peer.begin_chunks()
        peer.chunk(b"data: 1\n\n")
        peer.end_chunks()

    with serving(each_request(handle)) as server:
        drive(lay_down(tmp_path, server.port, [b"x"] * 7, max_concurrency=3))
    counters = open_counters(progress_path(tmp_path, 0))
    seen = {counter: int(counters[counter]) for counter in Counter if counter < Counter.DECODED}
    assert seen == {
        Counter.DUE: 7,
        Counter.SENT: 7,
        Counter.FIRST: 7,
        Counter.PIECES: 0,
        Counter.ENDED: 7,
        Counter.IN_FLIGHT: 0,
        Counter.PEAK_IN_FLIGHT: 3,
        Counter.QUEUED: 0,
        Counter.PEAK_QUEUED: 0,
    }


def test_a_plan_of_nothing_ends_at_once(tmp_path: Path) -> None:
    assert drive(lay_down(tmp_path, 1, [])).answers == []


# Time-outs -----------------------------------------------------------------------------------------------

times = st.integers(0, 40 * GRAIN_NS)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["set", "clear", "due"]), st.integers(0, 5), times), max_size=40))
def test_time_outs_come_once_never_early_and_hardly_late(steps: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[int] = Deadlines(0)
    slow_twin: dict[int, int] = {}
    now = 0
    for what, thing, time in steps:
        if what == "set":
            deadlines.set(thing, time)
            slow_twin[thing] = time
        elif what == "clear":
            deadlines.clear(thing)
            slow_twin.pop(thing, None)
        else:
            now = max(now, time)
            due = deadlines.due(now)
            assert len(due) == len(set(due))
            assert all(slow_twin.pop(thing) <= now for thing in due)
    late = [thing for thing, time in slow_twin.items() if max(now, time) + GRAIN_NS <= now]
    assert late == []
    assert set(deadlines.due(now + 100 * GRAIN_NS)) == set(slow_twin)
