"""The loop's parts by themselves: waiting, connecting, retry rules, clocks, limits."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prefixlab.bench.loadgen.capture import Answer, Ending
from prefixlab.bench.loadgen.job import PLAN_ROWS, Job, read_job
from prefixlab.bench.loadgen.sockets.connection import Connection, Endpoint
from prefixlab.bench.loadgen.sockets.machine import allow_open_files
from prefixlab.bench.loadgen.sockets.plan_file import PlanRows
from prefixlab.bench.loadgen.sockets.poller import IN, OUT, EpollPoller, Poller, SpinPoller, make_poller
from prefixlab.bench.loadgen.sockets.retries import retry_after_ns, retry_wait_ns
from prefixlab.bench.loadgen.sockets.stamps import monotonic_ns, sample_clocks
from prefixlab.bench.loadgen.wire import ResponseParser
from prefixlab.core.errors import ConfigError
from tests.bench.loadgen.sockets.rig import MS, drive, each_request, lay_down, serving

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")


@pytest.fixture(params=[pytest.param(EpollPoller, marks=needs_epoll), SpinPoller])
def poller(request: pytest.FixtureRequest) -> Poller:
    made: Poller = request.param()
    request.addfinalizer(made.close)
    return made


# Both ways to wait ---------------------------------------------------------------------------------------


def test_a_poller_waits_until_the_deadline_and_not_less(poller: Poller) -> None:
    for wait_ns in (0, MS // 2, 5 * MS):
        deadline_ns = monotonic_ns() + wait_ns
        poller.dispatch(deadline_ns)
        assert monotonic_ns() >= deadline_ns


def test_a_deadline_that_has_passed_stays_passed(poller: Poller) -> None:
    deadline_ns = monotonic_ns()
    for _ in range(3):
        poller.dispatch(deadline_ns)


def test_a_poller_hands_events_to_whoever_is_concerned_now(poller: Poller) -> None:
    near, far = socket.socketpair()
    heard: list[tuple[str, int]] = []
    far_future_ns = monotonic_ns() + 60_000 * MS
    with far:
        poller.add(near, OUT, lambda events: heard.append(("first", events)))
        poller.dispatch(far_future_ns)
        poller.change(near, IN)
        poller.handlers[near.fileno()] = lambda events: heard.append(("second", events))
        far.send(b"x")
        poller.dispatch(far_future_ns)
        poller.remove(near)
    poller.dispatch(monotonic_ns())
    assert heard == [("first", OUT), ("second", IN)]
    assert near.fileno() == -1


def test_a_socket_removed_in_a_round_hears_no_more_and_keeps_its_number_until_the_end(poller: Poller) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    heard: list[int] = []

    def remove_both(events: int) -> None:
        heard.append(events)
        for near, _ in pairs:
            poller.remove(near)
        assert all(near.fileno() >= 0 for near, _ in pairs)

    for near, far in pairs:
        poller.add(near, IN, remove_both)
        far.send(b"x")
    poller.dispatch(monotonic_ns() + 60_000 * MS)
    assert len(heard) == 1
    assert all(near.fileno() == -1 for near, _ in pairs)
    for _, far in pairs:
        far.close()


def test_without_epoll_or_timerfd_a_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll", raising=False)
    assert isinstance(make_poller(), SpinPoller)
    with serving(each_request(lambda peer, _: peer.answer())) as server:
        due = [10 * MS * i for i in range(4)]
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 4, due_ns=due, max_concurrency=2))
    assert seen.endings == [Ending.COMPLETE] * 4


# Connecting ----------------------------------------------------------------------------------------------


def test_addresses_are_tried_in_turn_and_the_one_that_works_is_remembered(poller: Poller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        family = int(socket.AF_INET)
        not_spoken_here = (9999, ("nowhere", 1))
        endpoint = Endpoint(
            [not_spoken_here, (family, closed.getsockname()), (family, listener.getsockname())]
        )
        connection = Connection(endpoint, poller, None)
        stands: list[bool] = []
        connection.begin(lambda events: stands.append(connection.advance(events)))
        while not any(stands):
            poller.dispatch(monotonic_ns() + 60_000 * MS)
        connection.close()
        assert endpoint.preferred == 2
        again = Connection(endpoint, poller, None)
        again.begin(lambda events: stands.append(again.advance(events)))
        stands.clear()
        while not stands:
            poller.dispatch(monotonic_ns() + 60_000 * MS)
        assert stands == [True]
        again.close()


def test_addresses_share_the_time_there_is_to_connect(poller: Poller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = (int(socket.AF_INET), listener.getsockname())
        connection = Connection(Endpoint([address, address]), poller, None)
        connection.begin(lambda events: None)
        assert connection.connect_deadline_ns(1000, 100) == 1050
        connection.try_next()
        assert connection.connect_deadline_ns(1000, 100) == 1100
        with pytest.raises(TimeoutError):
            connection.try_next()
        connection.close()


# Retry rules ---------------------------------------------------------------------------------------------

JOB = Job(host="h", port=1, dialect="native", path="/", retries=2, retry_wait_ns=100)


def answered(status: int, header: str = "") -> ResponseParser:
    parser = ResponseParser()
    parser.feed(f"HTTP/1.1 {status} X\r\n{header}Content-Length: 0\r\n\r\n".encode())
    return parser


@pytest.mark.parametrize(
    ("ending", "parser", "wait_ns"),
    [
        (Ending.COMPLETE, answered(200), None),
        (Ending.COMPLETE, answered(500), None),
        (Ending.COMPLETE, answered(503), 100),
        (Ending.COMPLETE, answered(429, "Retry-After: 2\r\n"), 2_000_000_000),
        (Ending.COMPLETE, answered(200, "Retry-After: 2\r\n"), None),
        (Ending.COMPLETE, answered(503, "Retry-After: 60\r\n"), 60_000_000_000),
        (Ending.COMPLETE, answered(503, "Retry-After: 61\r\n"), None),
        (Ending.CONNECT, ResponseParser(), 100),
        (Ending.CONNECT_TIMEOUT, ResponseParser(), 100),
        (Ending.DROPPED, ResponseParser(), 100),
        (Ending.RESET, ResponseParser(), 100),
        (Ending.STALLED, ResponseParser(), None),
        (Ending.TIMED_OUT, ResponseParser(), None),
        (Ending.GARBAGE, ResponseParser(), None),
    ],
)
def test_what_is_tried_again_and_when(ending: Ending, parser: ResponseParser, wait_ns: int | None) -> None:
    assert retry_wait_ns(JOB, Answer(0, ending, 0, num_retries=1), ending, parser, 0) == wait_ns
    assert retry_wait_ns(JOB, Answer(0, ending, 0, num_retries=2), ending, parser, 0) is None


def test_a_reset_within_an_answer_is_final() -> None:
    begun = Answer(0, Ending.RESET, 0)
    begun.lengths.append(1)
    assert retry_wait_ns(JOB, begun, Ending.RESET, ResponseParser(), 0) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0),
        ("7", 7),
        ("-1", 0),
        ("soon", 0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999", 0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 50),
        ("Thu, 01 Jan 1970 00:01:00 -0000", 50),
        ("Thu, 01 Jan 1970 00:00:05 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: int) -> None:
    assert retry_after_ns(value, 10_000_000_000) == seconds * 1_000_000_000


# The machine ---------------------------------------------------------------------------------------------


def test_a_clock_sample_is_narrow_and_true() -> None:
    before, sample, after = sample_clocks(), sample_clocks(), sample_clocks()
    assert before.monotonic_ns < sample.monotonic_ns < after.monotonic_ns
    assert sample.width_ns >= 0
    assert abs(sample.offset_ns - before.offset_ns) < 1_000 * MS


def test_more_streams_than_files_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    limit: Callable[[int], tuple[int, int]] = lambda _: (100, 100)  # noqa: E731
    monkeypatch.setattr(resource, "getrlimit", limit)
    allow_open_files(36)
    with pytest.raises(ConfigError, match=r"37 streams .* need 101 open files .* 100 are allowed"):
        allow_open_files(37)


def test_an_answer_is_bounded_by_what_any_api_says_of_the_tokens_asked_for(tmp_path: Path) -> None:
    folder = lay_down(tmp_path, 1, [b"x"] * 3)
    plan = np.load(folder / PLAN_ROWS)
    plan["max_new_tokens"] = [1, 128, 1 << 20]
    np.save(folder / PLAN_ROWS, plan)
    with contextlib.closing(PlanRows(folder, 0, read_job(folder))) as rows:
        short, usual, endless = (rows.max_answer_bytes(row) for row in range(3))
    assert short > 1 << 20
    assert 3 << 20 < usual < 4 << 20  # half a minute of an endless stream on a fast server
    assert endless == 1 << 30
