"""When turns go, by the sources themselves: any plan of sessions, answered in any order."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.capture import Answer, Ending
from prefixlab.bench.loadgen.compose import NoTokenIdsError
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.loadgen.sessions.source import ClosedSessions, OpenSessions
from prefixlab.bench.loadgen.sockets.pacing import NOT_YET_NS, Source, Turn
from prefixlab.bench.loadgen.sockets.plan_file import PlanRows

START = 1000


class Made:
    """Turns that are their row's number; what answers were like, the test says."""

    def __init__(self) -> None:
        self.says = "ok"

    def making(self, row: int, answer: Answer, continuing: Sequence[int]) -> Generator[None, None, bool]:
        says = self.says
        return self._making(says)

    def _making(self, says: str) -> Generator[None, None, bool]:
        yield
        if says == "nameless":
            raise NoTokenIdsError
        return says == "ok"

    def payload(self, row: int) -> memoryview:
        return memoryview(b"%d" % row)


def rows_in(
    folder: Path, after: list[int], continues: list[bool], delay: list[int], due: list[int]
) -> PlanRows:
    plan = np.zeros(len(after), jobs.PLAN_ROW)
    plan["after"], plan["continues"] = np.array(after) + 1, continues
    plan["delay_ns"], plan["due_ns"] = delay, due
    (folder / jobs.PLAN_BYTES).write_bytes(b"")
    np.save(folder / jobs.PLAN_ROWS, plan)
    return PlanRows(folder, 0, Job(host="h", port=1, dialect="native", path="/"))


def work(source: Source) -> list[Answer]:
    """All that there is to do."""
    given_up: list[Answer] = []
    while source.is_busy:
        given_up += source.work()
    return given_up


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[int], list[bool], list[int], list[int]]:
    size = draw(st.integers(1, 14))
    after = [draw(st.integers(-1, row - 1)) for row in range(size)]
    continues = [before >= 0 and draw(st.booleans()) for before in after]
    times = st.lists(st.integers(0, 50), min_size=size, max_size=size)
    return after, continues, draw(times), draw(times)


def root_of(after: list[int], row: int) -> int:
    """The slow twin of `job.roots_of`."""
    while after[row] >= 0:
        row = after[row]
    return row


@settings(deadline=None, max_examples=100)
@given(plans(), st.booleans(), st.integers(1, 4), st.data())
def test_any_plan_ends_each_row_once_in_order_and_never_beyond_its_cap(
    tmp_path_factory: pytest.TempPathFactory,
    plan: tuple[list[int], list[bool], list[int], list[int]],
    open_loop: bool,
    cap: int,
    data: st.DataObject,
) -> None:
    after, continues, delay, due = plan
    folder = tmp_path_factory.mktemp("plan")
    made = Made()
    make = OpenSessions if open_loop else ClosedSessions
    source: Source = make(rows_in(folder, after, continues, delay, due), START, cap, made)
    now, stops_after = START, data.draw(st.integers(0, 2 * len(after)))
    in_flight: dict[int, Turn] = {}
    ended_ns: dict[int, int] = {}
    doomed: set[int] = set()
    endings: list[tuple[int, Ending]] = []
    for _ in range(stops_after):
        due_ns = source.next_due_ns()
        answers = bool(in_flight) and (due_ns == NOT_YET_NS or data.draw(st.booleans()))
        if source.is_busy and (data.draw(st.booleans()) or not (answers or due_ns != NOT_YET_NS)):
            endings += [(answer.index, answer.ending) for answer in source.work()]
        elif answers:
            row = data.draw(st.sampled_from(sorted(in_flight)))
            made.says = data.draw(st.sampled_from(["ok", "ok", "ok", "failed", "nameless"]))
            now += data.draw(st.integers(0, 30))
            del in_flight[row]
            ended_ns[row] = now
            endings.append((row, Ending.COMPLETE))
            source.done(Answer(row, Ending.COMPLETE, 0), now)
            continuing = {later for later, before in enumerate(after) if before == row and continues[later]}
            doomed |= continuing if made.says != "ok" else set()
        elif due_ns != NOT_YET_NS:
            now = max(now, due_ns)
            assert source.num_queued(now) >= (1 if open_loop else 0)
            turn = source.take()
            row = turn.index
            assert turn.intended_ns <= turn.ready_ns <= now, "never before its time"
            assert bytes(turn.payload) == b"%d" % row
            if after[row] >= 0:
                assert turn.intended_ns == ended_ns[after[row]] + delay[row]
            elif open_loop:
                assert turn.intended_ns == START + due[row]
            in_flight[row] = turn
        else:
            break
        taken = {*in_flight, *ended_ns}
        assert source.num_taken == len(taken)
        if open_loop:
            assert len(in_flight) <= cap
        else:
            gone = {row for row, _ in endings}
            begun = {root_of(after, row) for row in taken}
            under_way = {root_of(after, row) for row in range(len(after)) if row not in gone} & begun
            assert len(under_way) <= cap, "a slot is a session's until its last turn has ended"
            assert begun == set([row for row in range(len(after)) if after[row] < 0][: len(begun)])
    if data.draw(st.booleans()):
        endings += [(answer.index, answer.ending) for answer in work(source)]
        assert doomed <= {row for row, ending in endings if ending is not Ending.COMPLETE}
    assert not doomed & {*in_flight, *ended_ns}, "what continues a failure is never sent"
    left = [index for index, _ in source.remaining(now)]
    everything = [*(row for row, _ in endings), *in_flight, *left]
    assert sorted(everything) == list(range(len(after))), "each row ends once"
    if source.next_due_ns() == NOT_YET_NS and not in_flight and not source.is_busy:
        assert left == [], "what was not given up could have gone on"


def test_who_was_not_sent_because_names_are_missing_says_so_and_nothing_behind_it(tmp_path: Path) -> None:
    made = Made()
    rows = rows_in(tmp_path, [-1, 0, 1], [False, True, True], [0, 20, 0], [0, 0, 0])
    source = ClosedSessions(rows, START, 1, made)
    source.take()
    made.says = "nameless"
    source.done(Answer(0, Ending.COMPLETE, START), 1100)
    second, third = work(source)
    assert (second.index, second.ending, second.intended_ns) == (1, Ending.NO_TOKEN_IDS, 1120)
    assert "--backend openai-chat" in second.detail
    assert (third.index, third.ending, third.detail) == (2, Ending.UNSENT, "")
    assert (source.next_due_ns(), list(source.remaining(2000))) == (NOT_YET_NS, [])


def test_a_later_turn_that_is_due_waits_for_a_slot_where_requests_are_capped(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, [-1, 0, -1], [False, True, False], [0, 20, 0], [0, 0, 10])
    source = OpenSessions(rows, START, 1, Made())
    source.take()
    assert (source.next_due_ns(), source.num_queued(1010)) == (NOT_YET_NS, 1)
    source.done(Answer(0, Ending.COMPLETE, START), 1100)
    assert work(source) == []
    assert source.num_queued(1119) == 1
    assert source.num_queued(1120) == 2
    turn = source.take()
    assert (turn.index, turn.intended_ns, turn.ready_ns) == (2, 1010, 1100)
    source.done(Answer(2, Ending.COMPLETE, 1010), 1500)
    turn = source.take()
    assert (turn.index, turn.intended_ns, turn.ready_ns) == (1, 1120, 1500)
