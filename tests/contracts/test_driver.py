"""What every Driver must do: over HTTP in each dialect, here and in a fleet, and without any socket."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.loadgen.driver import Drive, Driver, Progress
from prefixlab.bench.loadgen.in_process import StreamDriver
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.records.line import decode
from prefixlab.bench.records.record import Failure, Outcome, Record, check_complete
from prefixlab.bench.targets.dialects import DIALECTS
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.target import TargetRequest
from tests.bench.fake_server import FakeServer, running
from tests.bench.helpers import ScriptedTarget

WORDS = " the" * 40
OPEN = Load(open_loop=True)
ONE_BY_ONE = Load(open_loop=False, max_concurrency=1)


def closed(max_concurrency: int, **fields: Any) -> Load:
    return Load(open_loop=False, max_concurrency=max_concurrency, **fields)


class Subject:
    """A driver, and a hand on what it drives."""

    name: str

    def driver(self, *, slow_s: float = 0.0, num_failures: int = 0) -> Driver:
        raise AssertionError

    @property
    def peak_in_flight(self) -> int:
        raise AssertionError

    def request(self, request_id: str, max_new_tokens: int = 4) -> TargetRequest:
        return TargetRequest(request_id, max_new_tokens, prompt_token_ids=as_token_ids(range(300, 340)))

    def plan(self, num_requests: int, *, gap_s: float = 0.0) -> list[Planned]:
        return [Planned(self.request(f"r{i}"), 40, offset_s=gap_s * i) for i in range(num_requests)]

    def run(self, plan: Sequence[Planned], load: Load, **driver: Any) -> list[Record]:
        """Its records, by id."""
        return by_id(self.driver(**driver).run(plan, load))


class InProcess(Subject):
    name = "stream"

    def driver(self, *, slow_s: float = 0.0, num_failures: int = 0) -> Driver:
        clock = MonotonicClock()
        failing = ["r0"] if num_failures else []
        self.target = ScriptedTarget(clock, duration_s=slow_s, failing=failing, num_failures=num_failures)
        return StreamDriver(self.target, clock)

    @property
    def peak_in_flight(self) -> int:
        return self.target.peak_in_flight


class OverHttp(Subject):
    def __init__(self, dialect: str, server: FakeServer) -> None:
        self.name = dialect
        self.server = server

    def driver(self, *, slow_s: float = 0.0, num_failures: int = 0, **fields: Any) -> Driver:
        self.server.behaviour.first_event_s = slow_s
        if num_failures:
            self.server.behaviour.fault, self.server.behaviour.num_faults = "status", num_failures
        return SocketDriver(self.server.url, DIALECTS[self.name](), model="fake", **fields)

    @property
    def peak_in_flight(self) -> int:
        return self.server.peak_in_flight

    def request(self, request_id: str, max_new_tokens: int = 4) -> TargetRequest:
        if self.name.startswith("chat"):
            return TargetRequest(request_id, max_new_tokens, messages=({"role": "user", "content": WORDS},))
        return super().request(request_id, max_new_tokens)


def by_id(drive: Drive) -> list[Record]:
    for record in drive.records:
        record.check()
    return sorted(drive.records, key=lambda record: record.request_id)


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


@pytest.fixture(params=DIALECTS)
def over_http(request: pytest.FixtureRequest, server: FakeServer) -> OverHttp:
    return OverHttp(request.param, server)


# Any driver. --------------------------------------------------------------------------------------------


def test_every_planned_request_is_one_record_with_times_from_the_runs_start(subject: Subject) -> None:
    plan = subject.plan(3)
    drive = subject.driver().run(iter(plan), closed(2))
    records = by_id(drive)
    check_complete(records, 3)
    for record, planned in zip(records, plan, strict=True):
        assert record.outcome is Outcome.OK
        assert (record.num_output_tokens, record.planned_prompt_tokens) == (4, 40)
        assert record.request_id == planned.request.request_id
        assert 0 <= record.intended_s <= (record.sent_s or 0) <= record.arrivals_s[0] < 60
    assert drive.duration_s == pytest.approx(max(record.last_s or 0.0 for record in records))
    assert not drive.interrupted
    assert len(drive.table) == 3


def test_nothing_planned_is_nothing_done(subject: Subject) -> None:
    drive = subject.driver().run([], OPEN)
    assert (len(drive.table), drive.duration_s, drive.interrupted) == (0, 0.0, False)


def test_a_closed_loop_keeps_so_many_in_flight_and_turns_come_in_the_plans_order(subject: Subject) -> None:
    records = subject.run(subject.plan(5), closed(2), slow_s=0.02)
    assert subject.peak_in_flight == 2
    sent = [record.sent_s or 0.0 for record in records]
    assert sent == sorted(sent)
    turns = sorted(record.intended_s for record in records)
    ends = sorted(record.last_s or 0.0 for record in records)
    for turn, end in zip(turns[2:], ends, strict=False):  # who waited was given the slot of one that ended
        assert turn > end - 1e-6


def test_an_open_loop_sends_by_the_clock_whatever_became_of_the_others(subject: Subject) -> None:
    records = subject.run(subject.plan(4, gap_s=0.01), OPEN, slow_s=0.3)
    assert [record.intended_s for record in records] == pytest.approx([0.0, 0.01, 0.02, 0.03])
    assert subject.peak_in_flight > 1
    assert all((record.sent_s or 0) >= record.intended_s for record in records)


def test_a_failed_request_is_a_record_and_the_run_goes_on(subject: Subject) -> None:
    records = subject.run(subject.plan(3), ONE_BY_ONE, num_failures=1)
    assert [record.outcome for record in records] == [Outcome.FAILED, Outcome.OK, Outcome.OK]
    assert "queue is full" in (records[0].error or "")
    assert records[0].failure is not None


def test_a_failure_is_tried_again_where_the_load_says_so_and_counted(subject: Subject) -> None:
    drive = subject.driver(num_failures=1).run(subject.plan(2), closed(1, retries=2))
    records = by_id(drive)
    assert [(record.outcome, record.num_retries) for record in records] == [(Outcome.OK, 1), (Outcome.OK, 0)]
    assert drive.health.num_retries == 1


def test_after_the_stop_nothing_is_sent_and_what_was_sent_may_end(subject: Subject) -> None:
    plan = [Planned(subject.request("a"), 40), Planned(subject.request("b"), 40, offset_s=60.0)]
    records = subject.run(plan, Load(open_loop=True, stop_after_s=0.05), slow_s=0.2)
    assert [record.outcome for record in records] == [Outcome.OK, Outcome.UNSENT]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_run_in_order(subject: Subject, number: signal.Signals) -> None:
    raised = []

    def interrupt(progress: Progress) -> None:
        if progress.in_flight == 2 and not raised:
            raised.append(number)
            signal.raise_signal(number)

    before = signal.getsignal(number)
    drive = subject.driver(slow_s=25.0).run(subject.plan(4), closed(2), on_progress=interrupt)
    assert drive.interrupted
    outcomes = [record.outcome for record in by_id(drive)]
    assert outcomes == [Outcome.CANCELLED] * 2 + [Outcome.UNSENT] * 2
    assert signal.getsignal(number) is before


def test_records_appear_as_lines_in_the_folder(subject: Subject, tmp_path: Path) -> None:
    drive = subject.driver(num_failures=1).run(subject.plan(3), ONE_BY_ONE, folder=tmp_path)
    lines = [line for path in tmp_path.glob("records-*.jsonl") for line in path.read_bytes().splitlines()]
    assert [(r.request_id, r.outcome) for r in map(decode, lines)] == [
        (r.request_id, r.outcome) for r in drive.records
    ]


def test_progress_ends_with_everything_done(subject: Subject) -> None:
    seen: list[Progress] = []
    subject.driver(num_failures=1).run(subject.plan(3), ONE_BY_ONE, on_progress=seen.append)
    last = seen[-1]
    assert (last.planned, last.sent, last.finished, last.failed, last.tokens) == (3, 3, 3, 1, 8)
    assert (last.in_flight, last.queued, last.peak_in_flight) == (0, 0, 1)
    assert last.ttft_s is not None  # ITL need not be: all tokens of a fast answer may come in one read


# Any API over HTTP. -------------------------------------------------------------------------------------


def test_counts_finish_reason_and_cached_tokens_come_through(over_http: OverHttp) -> None:
    _, second = over_http.run(over_http.plan(2), ONE_BY_ONE)
    assert (second.num_output_tokens, second.finish_reason, second.counts_estimated) == (4, "length", False)
    assert second.num_cached_tokens is not None and second.num_cached_tokens > 0
    assert second.num_prompt_tokens is not None


def test_a_server_that_does_not_report_leaves_cached_tokens_none(
    over_http: OverHttp, server: FakeServer
) -> None:
    server.behaviour.reports_cached = False
    assert [record.num_cached_tokens for record in over_http.run(over_http.plan(2), ONE_BY_ONE)] == [None] * 2


def test_a_connection_is_opened_once_and_its_time_stands_apart(over_http: OverHttp) -> None:
    first, second = over_http.run(over_http.plan(2), ONE_BY_ONE)
    assert first.connect_started_s is not None and first.connected_s is not None and first.sent_s is not None
    assert first.intended_s <= first.connect_started_s <= first.connected_s <= first.sent_s
    assert (second.connect_started_s, second.connected_s) == (None, None)


@pytest.mark.parametrize(
    ("fault", "failure", "words"),
    [
        ("status", Failure.HTTP_STATUS, ("HTTP 503 from /", "queue is full")),
        ("stream_error", Failure.SERVER_ERROR, ("out of pages",)),
        ("cut", Failure.TRUNCATED, ("cut short",)),
        ("reset", Failure.TRUNCATED, ("broke off",)),
        ("garbage", Failure.GARBAGE, ("not JSON",)),
        ("not_sse", Failure.GARBAGE, ("all at once",)),
        ("silence", Failure.STALLED, ("fell silent",)),
    ],
)
def test_whatever_goes_wrong_has_a_name_and_quotes_the_server(
    over_http: OverHttp, server: FakeServer, fault: str, failure: Failure, words: Sequence[str]
) -> None:
    driver = over_http.driver(read_timeout_s=0.2 if fault == "silence" else 10.0)
    server.behaviour.fault = fault
    (record,) = driver.run(over_http.plan(1), ONE_BY_ONE).records
    assert (record.outcome, record.failure) == (Outcome.FAILED, failure)
    assert all(word in (record.error or "") for word in words)
    assert record.http_status == (503 if fault == "status" else None)


def test_a_server_that_is_not_there_is_a_failure_of_the_request_and_named(over_http: OverHttp) -> None:
    driver = SocketDriver("http://127.0.0.1:9", DIALECTS[over_http.name]())
    (record,) = driver.run(over_http.plan(1), ONE_BY_ONE).records
    assert record.failure is Failure.CONNECT
    assert "could not connect (http://127.0.0.1:9/" in (record.error or "")
