"""Servers that do not answer as they should: every request ends, once, under the right name."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.loadgen.capture import NEVER, Ending
from tests.bench.loadgen.sockets.rig import MS, Peer, drive, each_request, lay_down, serving

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.contextmanager
def a_closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else is given meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def a_port_that_never_accepts() -> Iterator[int]:
    """A listener whose queue is full, so that further connections stay half open."""
    with contextlib.ExitStack() as socks:
        listener = socks.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(16):
            filler = socks.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        else:
            pytest.skip("this kernel's queues do not fill")
        yield listener.getsockname()[1]


def test_a_refused_connection_is_named(tmp_path: Path) -> None:
    with a_closed_port() as port:
        answer = drive(lay_down(tmp_path, port)).one
    assert (answer.ending, answer.detail) == (Ending.CONNECT, "Connection refused")
    assert answer.connect_started_ns != NEVER
    assert answer.connected_ns == answer.sent_ns == NEVER


def test_thousands_of_refused_requests_end_without_recursion(tmp_path: Path) -> None:
    with a_closed_port() as port:
        seen = drive(lay_down(tmp_path, port, [b"x"] * 2000))
    assert seen.endings == [Ending.CONNECT] * 2000


def test_a_name_that_is_not_found_fails_every_request(tmp_path: Path) -> None:
    seen = drive(lay_down(tmp_path, 1, [b"x"] * 2, host="no such host"))
    assert seen.endings == [Ending.CONNECT] * 2
    assert "no such host" in seen.answers[0].detail


def test_a_connection_that_does_not_come_about_times_out(tmp_path: Path) -> None:
    with a_port_that_never_accepts() as port:
        answer = drive(lay_down(tmp_path, port, connect_timeout_ns=100 * MS)).one
    assert (answer.ending, answer.detail) == (Ending.CONNECT_TIMEOUT, "no connection within 0.1 s")
    assert answer.ended_ns - answer.connect_started_ns >= 100 * MS


def test_a_connection_closed_before_an_answer_is_dropped(tmp_path: Path) -> None:
    with serving(lambda peer: peer.read_request() and None) as server:
        answer = drive(lay_down(tmp_path, server.port)).one
    assert answer.ending is Ending.DROPPED
    assert answer.sent_ns != NEVER


@pytest.mark.parametrize("said", [b"", HEAD + b"5\r\nhal"])
def test_a_reset_is_a_reset_before_an_answer_and_within_it(tmp_path: Path, said: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        if said:
            peer.send(said)
            threading.Event().wait(0.05)  # else the reset may take the bytes with it
        peer.reset()

    with serving(script) as server:
        answer = drive(lay_down(tmp_path, server.port)).one
    assert answer.ending is Ending.RESET
    assert b"".join(answer.pieces) == said
    assert f"{len(said)} bytes of an answer" in answer.detail


@pytest.mark.parametrize("said", [b"HTTP/1.1 200", HEAD, HEAD + b"5\r\nhal", HEAD + b"5\r\nhello\r\n"])
def test_an_answer_cut_short_is_truncated(tmp_path: Path, said: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(said)

    with serving(script) as server:
        answer = drive(lay_down(tmp_path, server.port)).one
    assert answer.ending is Ending.TRUNCATED
    assert answer.detail == f"the connection was closed after {len(said)} bytes of an answer"


@pytest.mark.parametrize("said", [b"", HEAD + b"5\r\nhello\r\n"])
def test_a_server_that_falls_silent_has_stalled(tmp_path: Path, said: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(said)
        peer.wait_for_close()

    with serving(script) as server:
        answer = drive(lay_down(tmp_path, server.port, read_timeout_ns=150 * MS)).one
    assert answer.ending is Ending.STALLED
    assert b"".join(answer.pieces) == said
    assert answer.detail.startswith("silent for 0.15 s")


def test_data_that_keeps_coming_never_stalls_but_runs_out_of_time(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.begin_chunks()
        while True:
            peer.chunk(b"more")
            threading.Event().wait(0.02)

    with serving(script) as server:
        limits = {"read_timeout_ns": 5_000 * MS, "total_timeout_ns": 250 * MS}
        answer = drive(lay_down(tmp_path, server.port, **limits)).one
    assert (answer.ending, answer.detail) == (Ending.TIMED_OUT, "not done within 0.25 s")
    assert len(answer.lengths) > 1


@pytest.mark.parametrize("said", [b"220 mail.example ESMTP\r\n", b"<html>", HEAD + b"no hex\r\n\r\n"])
def test_what_is_not_http_is_garbage(tmp_path: Path, said: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(said)
        peer.wait_for_close()

    with serving(script) as server:
        answer = drive(lay_down(tmp_path, server.port)).one
    assert answer.ending is Ending.GARBAGE
    assert answer.detail


def test_a_failed_request_does_not_spoil_those_around_it(tmp_path: Path) -> None:
    def handle(peer: Peer, body: bytes) -> None:
        peer.answer() if body == b"ok" else peer.reset()

    with serving(each_request(handle)) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"ok", b"bad", b"ok"], reuse_connections=False))
    assert seen.endings == [Ending.COMPLETE, Ending.RESET, Ending.COMPLETE]


# Retries -------------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    def handle(peer: Peer, body: bytes) -> None:
        server.bodies.append(body)
        peer.answer(status="200 OK" if len(server.bodies) == 3 else "503 Busy", headers="Retry-After: 0\r\n")

    with serving(each_request(handle)) as server:
        seen = drive(lay_down(tmp_path, server.port, retries=5, retry_wait_ns=10 * MS))
    answer = seen.one
    assert b"200 OK" in b"".join(answer.pieces)
    assert answer.num_retries == seen.health.num_retries == 2
    assert answer.sent_ns >= answer.intended_ns + 20 * MS


def test_retries_are_off_unless_asked_for_and_end_with_the_last_answer(tmp_path: Path) -> None:
    def busy(peer: Peer, body: bytes) -> None:
        server.bodies.append(body)
        peer.answer(status="429 Too Many Requests")

    for retries in (0, 2):
        folder = tmp_path / str(retries)
        folder.mkdir()
        with serving(each_request(busy)) as server:
            answer = drive(lay_down(folder, server.port, retries=retries, retry_wait_ns=MS)).one
        assert (answer.ending, answer.num_retries) == (Ending.COMPLETE, retries)
        assert b"429" in b"".join(answer.pieces)
        assert len(server.bodies) == retries + 1


def test_an_answer_that_had_begun_is_not_asked_for_again(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(HEAD)

    with serving(script) as server:
        answer = drive(lay_down(tmp_path, server.port, retries=3)).one
    assert (answer.ending, answer.num_retries) == (Ending.TRUNCATED, 0)


def test_a_refused_connection_is_tried_again(tmp_path: Path) -> None:
    with a_closed_port() as port:
        answer = drive(lay_down(tmp_path, port, retries=2, retry_wait_ns=MS)).one
    assert (answer.ending, answer.num_retries) == (Ending.CONNECT, 2)


def test_a_server_that_asks_to_come_back_too_late_has_had_its_last_word(tmp_path: Path) -> None:
    def busy(peer: Peer, body: bytes) -> None:
        peer.answer(status="503 Busy", headers="Retry-After: 3600\r\n")

    with serving(each_request(busy)) as server:
        answer = drive(lay_down(tmp_path, server.port, retries=3, total_timeout_ns=60_000 * MS)).one
    assert (answer.ending, answer.num_retries) == (Ending.COMPLETE, 0)


# All of it at once ---------------------------------------------------------------------------------------


def behave(peer: Peer, body: bytes) -> None:
    """Do to a request what its body says."""
    if body == b"length":
        peer.answer()
    elif body == b"chunks":
        peer.begin_chunks()
        peer.chunk(b"data: 1\n\n")
        peer.end_chunks()
    elif body == b"busy":
        peer.answer(status="503 Busy")
    elif body == b"close":
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nbye")
        peer.sock.shutdown(socket.SHUT_RDWR)
    elif body == b"drop":
        peer.sock.shutdown(socket.SHUT_RDWR)
    elif body == b"reset":
        peer.reset()
    elif body == b"truncate":
        peer.send(HEAD + b"5\r\nhal")
        peer.sock.shutdown(socket.SHUT_RDWR)
    elif body == b"garbage":
        peer.send(b"garbage\r\n")
    else:
        assert body == b"stall"
        peer.wait_for_close()


EXPECTED = {
    b"length": {Ending.COMPLETE},
    b"chunks": {Ending.COMPLETE},
    b"busy": {Ending.COMPLETE},
    b"close": {Ending.COMPLETE},
    b"drop": {Ending.DROPPED, Ending.RESET},
    b"reset": {Ending.RESET, Ending.DROPPED},
    b"truncate": {Ending.TRUNCATED},
    b"garbage": {Ending.GARBAGE},
    b"stall": {Ending.STALLED},
}


@settings(deadline=None, max_examples=20)
@given(
    bodies=st.lists(st.sampled_from(sorted(EXPECTED)), max_size=25),
    cap=st.integers(1, 8),
    retries=st.integers(0, 2),
    open_loop=st.booleans(),
    reuse=st.booleans(),
)
def test_every_planned_request_ends_once_whatever_the_server_does(
    tmp_path_factory: pytest.TempPathFactory,
    bodies: list[bytes],
    cap: int,
    retries: int,
    open_loop: bool,
    reuse: bool,
) -> None:
    with serving(each_request(behave)) as server:
        folder = lay_down(
            tmp_path_factory.mktemp("job"),
            server.port,
            bodies,
            due_ns=[0] * len(bodies) if open_loop else None,
            max_concurrency=cap,
            retries=retries,
            retry_wait_ns=MS,
            reuse_connections=reuse,
            read_timeout_ns=40 * MS,
        )
        seen = drive(folder)
    for body, ending in zip(bodies, seen.endings, strict=True):
        assert ending in EXPECTED[body], (body, ending)
    assert seen.health.peak_in_flight <= cap
