from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator

import pytest

from prefixlab.bench.calibrate.metronome import Shape, Stream
from prefixlab.bench.calibrate.process import PlayingMetronome, metronome
from prefixlab.bench.loadgen.wire import ResponseParser
from prefixlab.bench.targets.dialects import CompletionsDialect

SHAPE = Shape(ttft_ns=20_000_000, itl_ns=5_000_000)


@pytest.fixture
def playing() -> Iterator[PlayingMetronome]:
    with metronome(SHAPE) as server:
        yield server


def request(name: str, num_tokens: int) -> bytes:
    body = json.dumps({"max_tokens": num_tokens, "user": name, "stream": True}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def connect(server: PlayingMetronome) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_answer(sock: socket.socket) -> tuple[ResponseParser, bytes]:
    parser, body = ResponseParser(), b""
    while not parser.complete:
        body += b"".join(parser.feed(sock.recv(1 << 16)))
    return parser, body


def test_it_streams_the_tokens_asked_for_and_logs_one_stamp_for_each(playing: PlayingMetronome) -> None:
    with connect(playing) as sock:
        sock.sendall(request("one", 5))
        parser, body = read_answer(sock)
    [stream] = playing.stop()
    assert parser.status == 200
    assert body.count(b'" tok"') == len(stream.written_ns) == 5
    assert body.endswith(b"data: [DONE]\n\n")
    assert stream.name == "one"


def test_its_events_are_what_the_completions_api_says(playing: PlayingMetronome) -> None:
    with connect(playing) as sock:
        sock.sendall(request("one", 3))
        _, body = read_answer(sock)
    payloads = [event.removeprefix(b"data: ") for event in body.split(b"\n\n")[:-2]]
    chunks = [CompletionsDialect().read(payload, 0.0) for payload in payloads]
    assert [chunk.carries_tokens for chunk in chunks] == [True, True, True, False]
    assert chunks[2].finish_reason == "length"
    assert chunks[3].num_output_tokens == 3


def test_nothing_is_written_before_it_is_due(playing: PlayingMetronome) -> None:
    with connect(playing) as sock:
        sock.sendall(request("one", 10))
        read_answer(sock)
    [stream] = playing.stop()
    assert stream.due_ns >= stream.arrived_ns + SHAPE.ttft_ns
    for number, written_ns in enumerate(stream.written_ns):
        assert written_ns >= stream.due_ns + number * SHAPE.itl_ns


def test_one_token_is_a_whole_answer(playing: PlayingMetronome) -> None:
    with connect(playing) as sock:
        sock.sendall(request("one", 1))
        _, body = read_answer(sock)
    assert body.count(b'" tok"') == 1 and b'"length"' in body


def test_a_connection_serves_one_request_after_another(playing: PlayingMetronome) -> None:
    with connect(playing) as sock:
        for name in ("one", "two"):
            sock.sendall(request(name, 2))
            read_answer(sock)
    assert [stream.name for stream in playing.stop()] == ["one", "two"]


def test_a_request_may_come_in_pieces(playing: PlayingMetronome) -> None:
    with connect(playing) as sock:
        for byte in request("one", 2):
            sock.sendall(bytes([byte]))
        _, body = read_answer(sock)
    assert body.count(b'" tok"') == 2


def test_a_client_that_leaves_does_not_disturb_the_others(playing: PlayingMetronome) -> None:
    with connect(playing) as stays:
        with connect(playing) as leaves:
            leaves.sendall(request("leaves", 1000))
            leaves.recv(10)
        stays.sendall(request("stays", 20))
        _, body = read_answer(stays)
    assert body.count(b'" tok"') == 20
    lengths = {stream.name: len(stream.written_ns) for stream in playing.stop()}
    assert lengths["stays"] == 20 and 0 < lengths["leaves"] < 1000


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b'POST /v1/completions HTTP/1.1\r\nContent-Length: 16\r\n\r\n{"max_tokens":0}',
    ],
)
def test_anything_else_is_refused(playing: PlayingMetronome, request_bytes: bytes) -> None:
    with connect(playing) as sock:
        sock.sendall(request_bytes)
        parser, _ = read_answer(sock)
    assert parser.status == 404
    assert playing.stop() == []


def test_with_one_slot_streams_follow_one_another_in_order_of_arrival() -> None:
    with metronome(Shape(ttft_ns=1_000_000, itl_ns=1_000_000, slots=1)) as playing:
        socks = [connect(playing) for _ in range(3)]
        for number, sock in enumerate(socks):
            sock.sendall(request(str(number), 3))
        for sock in socks:
            read_answer(sock)
            sock.close()
        log: list[Stream] = playing.stop()
    assert sorted(stream.name for stream in log) == ["0", "1", "2"]
    for before, after in itertools.pairwise(log):
        assert before.written_ns[-1] < after.written_ns[0]


def test_it_ends_with_the_block_that_started_it() -> None:
    with metronome(SHAPE) as playing:
        port = playing.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
