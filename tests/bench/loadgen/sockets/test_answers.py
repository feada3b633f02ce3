"""Requests answered as they should be: every framing, however the bytes are cut, connections used again."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from prefixlab.bench.loadgen import capture
from prefixlab.bench.loadgen.capture import NEVER, Ending
from prefixlab.bench.loadgen.job import capture_path, progress_path
from prefixlab.bench.loadgen.progress import Counter, open_counters
from prefixlab.bench.loadgen.sockets import plan_file
from prefixlab.bench.loadgen.sockets.exchange import Exchange
from prefixlab.bench.loadgen.sockets.stamps import KernelStamps
from tests.bench.loadgen.sockets.rig import MS, Peer, drive, each_request, lay_down, post, serving

EVENT = b"data: {}\n\n"


def raw(pieces: object) -> bytes:
    return b"".join(pieces)  # type: ignore[call-overload, no-any-return]


def test_an_answer_of_stated_length_is_kept_as_it_came(tmp_path: Path) -> None:
    with serving(each_request(lambda peer, _: peer.answer(b"hello"))) as server:
        seen = drive(lay_down(tmp_path, server.port))
    answer = seen.one
    assert answer.ending is Ending.COMPLETE
    assert raw(answer.pieces) == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    assert NEVER not in (answer.connect_started_ns, answer.connected_ns, answer.sent_ns, answer.ended_ns)
    assert answer.ended_ns == answer.process_ns[-1]


def test_what_is_sent_is_the_plan_byte_for_byte(tmp_path: Path) -> None:
    got: list[bytes] = []

    def script(peer: Peer) -> None:
        got.append(peer.sock.recv(1000))
        peer.answer()

    with serving(script) as server:
        drive(lay_down(tmp_path, server.port, [b"abc"]))
    assert got == [post(b"abc")]


def test_requests_share_a_connection_that_is_kept_alive(tmp_path: Path) -> None:
    with serving(each_request(lambda peer, _: peer.answer())) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 5))
    assert seen.endings == [Ending.COMPLETE] * 5
    assert server.num_connections == 1
    assert (seen.health.num_connects, seen.health.num_reused) == (1, 4)
    assert [answer.connected_ns == NEVER for answer in seen.answers] == [False] + [True] * 4


def test_reuse_may_be_switched_off(tmp_path: Path) -> None:
    with serving(each_request(lambda peer, _: peer.answer())) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 3, reuse_connections=False))
    assert server.num_connections == seen.health.num_connects == 3


@pytest.mark.parametrize("separator", [b"\n\n", b"\r\n\r\n"])
def test_a_stream_ends_with_its_last_chunk_however_events_are_separated(
    tmp_path: Path, separator: bytes
) -> None:
    def stream(peer: Peer, body: bytes) -> None:
        peer.begin_chunks()
        for _ in range(20):
            peer.chunk(b"data: 0" + separator)
        peer.end_chunks()

    with serving(each_request(stream)) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 3))
    assert seen.endings == [Ending.COMPLETE] * 3
    assert server.num_connections == 1
    assert raw(seen.answers[0].pieces).count(b"data: 0") == 20


def test_bytes_that_come_one_by_one_make_the_same_answer(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\r\n\r\n0\r\n0\r\nT: 1\r\n\r\n"

    def dribble(peer: Peer, body: bytes) -> None:
        for at in range(len(answer)):
            peer.send(answer[at : at + 1])

    with serving(each_request(dribble)) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 2))
    assert seen.endings == [Ending.COMPLETE] * 2
    assert raw(seen.answers[1].pieces) == answer


@pytest.mark.parametrize("ending", [b"0\r\n\r\nunasked", b"0\n\n"])
def test_an_end_nobody_could_see_in_the_last_bytes_is_found_when_the_stream_falls_silent(
    tmp_path: Path, ending: bytes
) -> None:
    def stream(peer: Peer) -> None:
        peer.read_request()
        peer.begin_chunks()
        peer.chunk(EVENT)
        threading.Event().wait(0.05)
        peer.send(b"a\r\n" + EVENT + b"\r\n" + ending)
        peer.wait_for_close()

    with serving(stream) as server:
        answer = drive(lay_down(tmp_path, server.port)).one
    assert answer.ending is Ending.COMPLETE
    assert answer.ended_ns == answer.process_ns[-1]


def test_a_body_without_length_ends_with_the_connection(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nall ")
        peer.send(b"of it")

    with serving(script) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 3))
    assert seen.endings == [Ending.COMPLETE] * 3
    assert server.num_connections == 3


def test_a_request_larger_than_every_buffer_goes_out_whole(tmp_path: Path) -> None:
    body = os.urandom(1 << 20) * 8
    got: list[bytes] = []

    def slow_reader(peer: Peer, request: bytes) -> None:
        got.append(request)
        peer.answer()

    with serving(each_request(slow_reader), receive_buffer=4096) as server:
        seen = drive(lay_down(tmp_path, server.port, [body, b"small"]))
    assert seen.endings == [Ending.COMPLETE] * 2
    assert got == [body, b"small"]
    assert server.num_connections == 1


def test_a_server_may_answer_before_it_has_read_the_request(tmp_path: Path) -> None:
    def refuse(peer: Peer) -> None:
        peer.sock.recv(10)
        peer.answer(b"too large", status="413 Content Too Large")
        peer.sock.shutdown(socket.SHUT_WR)
        peer.wait_for_close()

    with serving(refuse, receive_buffer=4096) as server:
        seen = drive(lay_down(tmp_path, server.port, [bytes(16 << 20)] * 2))
    assert seen.endings == [Ending.COMPLETE] * 2
    assert raw(seen.answers[0].pieces).endswith(b"too large")
    assert server.num_connections == 2


def test_a_large_answer_is_kept_whole(tmp_path: Path) -> None:
    body = os.urandom(3_000_000)
    with serving(each_request(lambda peer, _: peer.answer(body))) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 2))
    assert seen.endings == [Ending.COMPLETE] * 2
    assert raw(seen.answers[1].pieces).endswith(body)


def test_an_interim_answer_is_not_the_answer(tmp_path: Path) -> None:
    def handle(peer: Peer, body: bytes) -> None:
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.answer()

    with serving(each_request(handle)) as server:
        assert drive(lay_down(tmp_path, server.port)).endings == [Ending.COMPLETE]


def test_a_server_that_never_comes_to_its_answer_is_given_up(tmp_path: Path) -> None:
    def handle(peer: Peer, body: bytes) -> None:
        while True:
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    with serving(each_request(handle)) as server:
        answer = drive(lay_down(tmp_path, server.port)).one
    assert answer.ending is Ending.GARBAGE
    assert "more than 100 interim answers" in answer.detail


@pytest.mark.parametrize("chunked", [True, False])
def test_an_answer_without_end_is_given_up_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    monkeypatch.setattr(plan_file, "LONG_ANSWER_BYTES", 100_000)

    def handle(peer: Peer, body: bytes) -> None:
        if chunked:
            peer.begin_chunks()
        else:
            peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            peer.chunk(b"on and on")
            time.sleep(0.00001)

    with serving(each_request(handle)) as server:
        answer = drive(lay_down(tmp_path, server.port)).one
    assert answer.ending is Ending.GARBAGE
    assert "no end of the answer after" in answer.detail


def test_a_stream_has_begun_with_its_first_chunk_also_where_the_head_comes_by_itself(tmp_path: Path) -> None:
    def handle(peer: Peer, body: bytes) -> None:
        peer.begin_chunks()
        time.sleep(0.05)
        for _ in range(3):
            peer.chunk(b"data: {}\n\n")
            time.sleep(0.02)
        peer.end_chunks()

    with serving(each_request(handle)) as server:
        seen = drive(lay_down(tmp_path, server.port))
    assert seen.endings == [Ending.COMPLETE]
    assert open_counters(progress_path(tmp_path, 0))[Counter.FIRST] == 1


def test_what_has_ended_is_in_the_capture_but_for_the_last_few(tmp_path: Path) -> None:
    """So that a kill loses no more than these, however fast answers come."""
    slots, num_requests = 32, 1500
    missing: list[int] = []

    def handle(peer: Peer, body: bytes) -> None:
        number = int(body)
        if number % 250 == 0:
            with capture_path(tmp_path, 0).open("rb") as file:
                capture.check_magic(file)
                written = sum(isinstance(frame, capture.Answer) for frame in capture.read_frames(file))
            missing.append(number - slots - written)
        peer.answer()

    with serving(each_request(handle)) as server:
        bodies = [b"%d" % number for number in range(num_requests)]
        seen = drive(lay_down(tmp_path, server.port, bodies, max_concurrency=slots))
    assert seen.endings == [Ending.COMPLETE] * num_requests
    assert max(missing) <= 2 * 64 + slots  # those that may wait, those of one round of events


def test_a_server_that_closes_idle_connections_costs_nothing(tmp_path: Path) -> None:
    def once(peer: Peer) -> None:
        peer.read_request()
        peer.answer()

    with serving(once) as server:
        due = [0, 60 * MS, 120 * MS]
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 3, due_ns=due, max_concurrency=None))
    assert seen.endings == [Ending.COMPLETE] * 3
    assert seen.health.num_retries == 0


def test_a_connection_found_closed_as_it_is_used_again_is_replaced_once_and_in_silence(
    tmp_path: Path,
) -> None:
    def closes_on_the_second(peer: Peer) -> None:
        peer.read_request()
        peer.answer()
        peer.read_request()

    with serving(closes_on_the_second) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 3))
    assert seen.endings == [Ending.COMPLETE] * 3
    assert [answer.num_retries for answer in seen.answers] == [0, 0, 0]
    assert (seen.health.num_retries, seen.health.num_resends) == (0, 2)
    assert [answer.connected_ns != NEVER for answer in seen.answers] == [True, True, True]
    assert server.num_connections == 3


def test_bytes_nobody_asked_for_spoil_an_idle_connection(tmp_path: Path) -> None:
    def chatty(peer: Peer) -> None:
        peer.read_request()
        peer.answer()
        peer.send(b"by the way")
        peer.wait_for_close()

    with serving(chatty) as server:
        due = [0, 60 * MS]
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 2, due_ns=due, max_concurrency=None))
    assert seen.endings == [Ending.COMPLETE] * 2
    assert server.num_connections == 2


def test_kernel_stamps_lie_between_sending_and_reading(tmp_path: Path) -> None:
    stamps = KernelStamps.open()
    if stamps is None:
        pytest.skip("this kernel has no arrival stamps")
    stamps.close()

    def stream(peer: Peer, body: bytes) -> None:
        peer.begin_chunks()
        for _ in range(5):
            peer.chunk(EVENT)
        peer.end_chunks()

    with serving(each_request(stream)) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 10))
    assert seen.health.stamps == "kernel"
    slack_ns = 5 * MS  # of a wall clock that is being slewed, and of the sample
    for answer in seen.answers:
        for kernel_ns, process_ns in zip(answer.kernel_ns, answer.process_ns, strict=True):
            stamp_ns = kernel_ns - seen.clocks[0].offset_ns
            assert answer.sent_ns - slack_ns <= stamp_ns <= process_ns + slack_ns


def test_without_kernel_stamps_only_the_process_says_when(tmp_path: Path) -> None:
    with serving(each_request(lambda peer, _: peer.answer())) as server:
        seen = drive(lay_down(tmp_path, server.port, kernel_stamps=False))
    assert seen.health.stamps == "process"
    assert set(seen.one.kernel_ns) == {0}


def test_ipv6_is_spoken(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serving(each_request(lambda peer, _: peer.answer()), host="::1") as server:
        assert drive(lay_down(tmp_path, server.port, host="::1")).endings == [Ending.COMPLETE]


def test_clocks_are_sampled_from_before_the_first_request_to_after_the_last(tmp_path: Path) -> None:
    with serving(each_request(lambda peer, _: peer.answer())) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 3))
    assert seen.clocks[0].monotonic_ns <= min(answer.sent_ns for answer in seen.answers)
    assert seen.clocks[-1].monotonic_ns >= max(answer.ended_ns for answer in seen.answers)


def test_nothing_that_has_ended_is_kept_alive_where_nobody_collects_garbage(tmp_path: Path) -> None:
    def handle(peer: Peer, body: bytes) -> None:
        peer.answer() if body == b"ok" else peer.reset()

    with serving(each_request(handle)) as server:
        folder = lay_down(tmp_path, server.port, [b"ok", b"no"] * 20, max_concurrency=4, retries=1)
        gc.collect()
        gc.disable()
        try:
            drive(folder)
            left = [thing for thing in gc.get_objects() if type(thing) is Exchange]
        finally:
            gc.enable()
    assert left == []
