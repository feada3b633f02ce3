"""What every Driver must do with requests that wait for each other: over HTTP in each dialect, in one process
and several, and without any socket."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from prefixlab.bench.loadgen.driver import Drive, Driver, Progress
from prefixlab.bench.loadgen.in_process import StreamDriver
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.records.record import Failure, Outcome, Record, check_complete
from prefixlab.bench.targets.dialects import DIALECTS
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.target import TargetRequest
from tests.bench.fake_server import FakeServer, answer_to, running
from tests.bench.helpers import ScriptedTarget

OUTPUT = 3
OPEN = Load(open_loop=True)


def closed(num_sessions: int, **fields: Any) -> Load:
    return Load(open_loop=False, max_concurrency=num_sessions, **fields)


class Subject:
    """A driver, and what it sent."""

    name: str
    takes_messages = False

    def driver(self, *, slow_s: float = 0.0, failing: str | None = None, names: bool = True) -> Driver:
        raise AssertionError

    def sent(self) -> list[Any]:
        """Prompts as they came, in order."""
        raise AssertionError

    def new(self, request_id: str, mark: int) -> TargetRequest:
        """A prompt of two tokens (or a message) that no other mark has."""
        if self.takes_messages:
            return TargetRequest(request_id, OUTPUT, messages=({"role": "user", "content": f"m{mark}"},))
        return TargetRequest(request_id, OUTPUT, prompt_token_ids=as_token_ids([mark, mark + 1]))

    def session(self, number: int, first_row: int, num_turns: int = 3, **fields: Any) -> list[Planned]:
        """Turns `s0t0`, `s0t1`, …, each going on from the one before."""
        turns = []
        for turn in range(num_turns):
            later = {"after": first_row + turn - 1, "continues": True} if turn else {}
            turns.append(
                Planned(
                    self.new(f"s{number}t{turn}", 100 * number + 10 * turn + 5),
                    2 + turn * (2 + OUTPUT),
                    session_id=f"s{number}",
                    turn=turn,
                    **(fields | later if turn else {k: v for k, v in fields.items() if k != "delay_s"}),
                )
            )
        return turns

    def sessions(self, num_sessions: int, num_turns: int = 3, **fields: Any) -> list[Planned]:
        return [
            turn
            for number in range(num_sessions)
            for turn in self.session(number, number * num_turns, num_turns, **fields)
        ]

    def whole(self, number: int, num_turns: int = 3) -> list[Any]:
        """The prompts that `session` must become, token by token."""
        prompts: list[Any] = []
        history: list[Any] = []
        for turn in range(num_turns):
            mark = 100 * number + 10 * turn + 5
            if self.takes_messages:
                history = [*history, {"role": "user", "content": f"m{mark}"}]
                prompts.append(history)
                history = [*history, {"role": "assistant", "content": "x" * OUTPUT}]
            else:
                history = [*history, mark, mark + 1]
                prompts.append(history)
                history = history + answer_to(history, OUTPUT)
        return prompts


class InProcess(Subject):
    name = "stream"

    def driver(self, *, slow_s: float = 0.0, failing: str | None = None, names: bool = True) -> Driver:
        clock = MonotonicClock()
        self.target = ScriptedTarget(
            clock, duration_s=slow_s, failing=[failing] if failing else [], names_tokens=names
        )
        return StreamDriver(self.target, clock)

    def sent(self) -> list[Any]:
        prompts = (self.target.asked[name].prompt_token_ids for name in self.target.started)
        return [ids.tolist() for ids in prompts if ids is not None]


class OverHttp(Subject):
    def __init__(self, dialect: str, server: FakeServer) -> None:
        self.name = dialect
        self.server = server
        self.takes_messages = dialect.startswith("chat")

    def driver(self, *, slow_s: float = 0.0, failing: str | None = None, names: bool = True) -> Driver:
        self.server.behaviour.first_event_s = slow_s
        self.server.behaviour.names_tokens = "always" if names else "never"
        self.server.failing_prompt = None if failing is None else self._opening(failing)
        return SocketDriver(self.server.url, DIALECTS[self.name](), model="fake")

    def _opening(self, request_id: str) -> Any:
        """What only the prompt of this turn ends with."""
        number, turn = map(int, request_id[1:].split("t"))
        return self.whole_end(100 * number + 10 * turn + 5)

    def whole_end(self, mark: int) -> Any:
        return {"role": "user", "content": f"m{mark}"} if self.takes_messages else mark + 1

    def sent(self) -> list[Any]:
        field = {"native": "input_ids", "completions": "prompt", "chat": "messages"}[self.name.split("-")[0]]
        return [body[field] for body in self.server.bodies]


def by_id(drive: Drive) -> dict[str, Record]:
    for record in drive.records:
        record.check()
    return {record.request_id: record for record in drive.records}


@pytest.fixture(scope="module")
def served() -> Iterator[FakeServer]:
    with running(FakeServer()) as server:
        yield server


@pytest.fixture
def server(served: FakeServer) -> FakeServer:
    served.reset()
    return served


@pytest.fixture(params=["stream", *DIALECTS])
def subject(request: pytest.FixtureRequest, server: FakeServer) -> Subject:
    return InProcess() if request.param == "stream" else OverHttp(request.param, server)


def outcomes(records: dict[str, Record], names: Sequence[str]) -> list[Outcome]:
    return [records[name].outcome for name in names]


@pytest.mark.parametrize("load", [closed(1), closed(2), OPEN, Load(open_loop=True, max_concurrency=1)])
def test_a_turn_is_sent_as_prompt_reply_and_what_is_new_token_by_token(subject: Subject, load: Load) -> None:
    plan = subject.sessions(2)
    drive = subject.driver().run(iter(plan), load)
    check_complete(drive.records, 6)
    records = by_id(drive)
    assert {record.outcome for record in records.values()} == {Outcome.OK}
    expected = [prompt for number in range(2) for prompt in subject.whole(number)]
    assert sorted(map(str, subject.sent())) == sorted(map(str, expected))
    assert [
        (r.session_id, r.turn, r.planned_prompt_tokens) for r in map(records.get, ("s1t0", "s1t2")) if r
    ] == [
        ("s1", 0, 2),
        ("s1", 2, 2 + 2 * (2 + OUTPUT)),
    ]


def test_a_turn_goes_at_the_end_of_the_one_before_and_its_think_time(subject: Subject) -> None:
    records = by_id(subject.driver(slow_s=0.01).run(subject.sessions(2, delay_s=0.05), closed(2)))
    for number in range(2):
        for turn in (1, 2):
            before, now = records[f"s{number}t{turn - 1}"], records[f"s{number}t{turn}"]
            assert now.intended_s == pytest.approx((before.last_s or 0) + 0.05, abs=2e-3)
            assert (now.sent_s or 0) >= now.intended_s


def test_first_turns_of_an_open_loop_go_by_the_clock(subject: Subject) -> None:
    plan = subject.session(0, 0) + subject.session(1, 3, offset_s=0.08)
    records = by_id(subject.driver(slow_s=0.03).run(plan, OPEN))
    assert [records[name].intended_s for name in ("s0t0", "s1t0")] == pytest.approx([0.0, 0.08])
    assert records["s0t1"].intended_s < 0.08 < records["s1t1"].intended_s


def test_in_closed_loop_a_slot_is_a_sessions_think_time_included(subject: Subject) -> None:
    records = by_id(subject.driver(slow_s=0.01).run(subject.sessions(3, 2, delay_s=0.03), closed(1)))
    order = sorted(records, key=lambda name: records[name].sent_s or 0)
    assert order == ["s0t0", "s0t1", "s1t0", "s1t1", "s2t0", "s2t1"]
    for before, after in (("s0t1", "s1t0"), ("s1t1", "s2t0")):
        assert records[after].intended_s == pytest.approx(records[before].last_s or 0, abs=5e-3)


def test_a_turn_that_failed_ends_its_session_and_no_other(subject: Subject) -> None:
    drive = subject.driver(failing="s0t1").run(subject.sessions(2, 4), closed(1))
    check_complete(drive.records, 8)
    records = by_id(drive)
    assert outcomes(records, ["s0t0", "s0t1", "s0t2", "s0t3"]) == [
        Outcome.OK,
        Outcome.FAILED,
        Outcome.UNSENT,
        Outcome.UNSENT,
    ]
    assert outcomes(records, [f"s1t{turn}" for turn in range(4)]) == [Outcome.OK] * 4


def test_a_turn_whose_prompt_is_fixed_goes_whatever_became_of_the_one_before(subject: Subject) -> None:
    plan = [
        Planned(subject.new("s0t0", 5), 2, session_id="s0"),
        Planned(subject.new("s0t1", 15), 2, session_id="s0", after=0, delay_s=0.03),
        Planned(subject.new("s0t2", 25), 2, session_id="s0", after=1),
    ]
    records = by_id(subject.driver(failing="s0t0").run(plan, closed(1)))
    assert outcomes(records, ["s0t0", "s0t1", "s0t2"]) == [Outcome.FAILED, Outcome.OK, Outcome.OK]
    before, now = records["s0t0"], records["s0t1"]
    assert now.intended_s == pytest.approx((before.last_s or 0) + 0.03, abs=5e-3)


def test_behind_one_failed_turn_what_continues_it_ends_and_what_is_fixed_goes(subject: Subject) -> None:
    plan = [
        Planned(subject.new("s0t0", 5), 2, session_id="s0"),
        Planned(subject.new("s0t1", 15), 7, session_id="s0", after=0, continues=True),
        Planned(subject.new("s0t2", 25), 2, session_id="s0", after=1),
        Planned(subject.new("s0t3", 35), 2, session_id="s0", after=0),
    ]
    records = by_id(subject.driver(failing="s0t0").run(plan, closed(1)))
    ended = [Outcome.FAILED, Outcome.UNSENT, Outcome.UNSENT, Outcome.OK]
    assert outcomes(records, ["s0t0", "s0t1", "s0t2", "s0t3"]) == ended


def test_several_turns_may_wait_for_one(subject: Subject) -> None:
    plan = [
        Planned(subject.new("root", 5), 2, session_id="s"),
        Planned(subject.new("a", 15), 7, session_id="s", after=0, continues=True),
        Planned(subject.new("b", 25), 7, session_id="s", after=0, continues=True),
        Planned(subject.new("next", 35), 2, session_id="t"),
    ]
    records = by_id(subject.driver(slow_s=0.02).run(plan, closed(1)))
    assert {record.outcome for record in records.values()} == {Outcome.OK}
    ends = [records[name].last_s or 0 for name in ("a", "b")]
    assert (records["next"].sent_s or 0) >= max(ends), (
        "a session keeps its slot until its last turn has ended"
    )


def test_after_the_stop_later_turns_are_unsent(subject: Subject) -> None:
    drive = subject.driver(slow_s=0.05).run(subject.sessions(2, delay_s=60.0), closed(1, stop_after_s=0.02))
    records = by_id(drive)
    assert outcomes(records, ["s0t0", "s0t1", "s1t0"]) == [Outcome.OK, Outcome.UNSENT, Outcome.UNSENT]
    check_complete(drive.records, 6)


def test_an_interrupt_in_think_time_ends_a_run_in_order(subject: Subject) -> None:
    raised = []

    def interrupt(progress: Progress) -> None:
        if progress.finished >= 2 and not raised:
            raised.append(True)
            signal.raise_signal(signal.SIGINT)

    drive = subject.driver().run(subject.sessions(3, delay_s=60.0), closed(2), on_progress=interrupt)
    assert drive.interrupted
    records = by_id(drive)
    assert (
        outcomes(records, ["s0t0", "s1t0", "s0t1", "s1t1", "s2t0"]) == [Outcome.OK] * 2 + [Outcome.UNSENT] * 3
    )
    check_complete(drive.records, 9)


def test_a_server_that_names_no_tokens_fails_the_turn_and_says_what_to_do(subject: Subject) -> None:
    records = by_id(subject.driver(names=False).run(subject.sessions(1), closed(1)))
    if subject.takes_messages:
        assert {record.outcome for record in records.values()} == {Outcome.OK}
        return
    assert outcomes(records, ["s0t0", "s0t1", "s0t2"]) == [Outcome.OK, Outcome.FAILED, Outcome.UNSENT]
    failed = records["s0t1"]
    assert (failed.failure, failed.sent_s) == (Failure.NO_TOKEN_IDS, None)
    assert "--backend openai-chat" in (failed.error or "")


# Over HTTP. ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_per_event", [1, 2])
def test_ids_are_understood_whether_events_tell_all_or_only_what_is_new(
    server: FakeServer, tokens_per_event: int
) -> None:
    subject = OverHttp("native", server)
    for names_tokens in ("always", "incremental"):
        server.reset()
        driver = subject.driver()
        server.behaviour.names_tokens, server.behaviour.tokens_per_event = names_tokens, tokens_per_event
        drive = driver.run(subject.sessions(1), closed(1))
        assert subject.sent() == subject.whole(0)
        assert drive.health.compose_s.count == 2


def test_names_of_tokens_are_asked_for_only_where_a_turn_goes_on(server: FakeServer) -> None:
    subject = OverHttp("completions", server)
    subject.driver().run([*subject.sessions(1), Planned(subject.new("alone", 905), 2)], closed(1))
    assert ["return_token_ids" in body for body in server.bodies] == [True, True, False, False]


@pytest.mark.parametrize("load", [closed(4, num_workers=2), Load(open_loop=True, num_workers=3)])
def test_several_processes_have_whole_sessions_each(server: FakeServer, load: Load) -> None:
    subject = OverHttp("completions", server)
    plan = [turn for turns in zip(*(subject.session(n, 0) for n in range(6)), strict=True) for turn in turns]
    plan = [_replaced(turn, row) for row, turn in enumerate(plan)]
    drive = subject.driver().run(plan, load)
    check_complete(drive.records, 18)
    assert {record.outcome for record in drive.records} == {Outcome.OK}
    expected = [prompt for number in range(6) for prompt in subject.whole(number)]
    assert sorted(subject.sent()) == sorted(expected)
    clients = {(record.session_id, record.client) for record in drive.records}
    assert len(clients) == 6 and len({client for _, client in clients}) == load.num_workers


def _replaced(turn: Planned, row: int) -> Planned:
    """The turn in a plan where six sessions take turns."""
    return turn if turn.after is None else replace(turn, after=row - 6)
