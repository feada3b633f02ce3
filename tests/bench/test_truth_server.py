"""The ground truth of the client benchmarks is what others are judged by: so it is judged here."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks._truth import DONE, Server, build, serving

from prefixlab.bench.loadgen.wire import ResponseParser

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")

MS = 1_000_000


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("truth"))


@pytest.fixture
def server(binary: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(binary, tmp_path, ttft_ms=20, itl_ms=5) as running:
        yield running


def request(
    num_tokens: int, *, name: str = "", path: str = "/v1/completions", usage: dict[str, bool] | None = None
) -> bytes:
    fields: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": num_tokens, "stream": True}
    fields["stream_options"] = usage or {"include_usage": True}
    if path == "/generate":
        fields = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": num_tokens}, "stream": True}
    body = json.dumps(fields).encode()
    identity = f"X-Request-Id: {name}\r\n" if name else ""
    return f"POST {path} HTTP/1.1\r\n{identity}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_answer(sock: socket.socket) -> tuple[int | None, list[Any]]:
    """Status, and the payloads of all events (of an answer that is no stream: its body)."""
    parser, body = ResponseParser(), b""
    while not parser.complete:
        body += b"".join(parser.feed(sock.recv(1 << 16)))
    if not body.startswith(b"data: "):
        return parser.status, [json.loads(body)]
    payloads = [event.removeprefix(b"data: ") for event in body.split(b"\n\n")[:-1]]
    assert payloads.pop() == b"[DONE]"
    return parser.status, [json.loads(payload) for payload in payloads]


def test_it_streams_as_many_tokens_as_asked_for_and_counts_them_at_the_end(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(request(4))
        status, events = read_answer(sock)
    assert status == 200
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, None, None, "length"]
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_it_counts_in_every_event_when_asked_to(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(request(3, usage={"include_usage": True, "continuous_usage_stats": True}))
        _, events = read_answer(sock)
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 3]


def test_the_native_api_counts_in_every_event(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(request(3, path="/generate"))
        _, events = read_answer(sock)
    assert [event["meta_info"]["completion_tokens"] for event in events] == [1, 2, 3]


def test_the_log_has_every_write_of_every_request_by_name(server: Server) -> None:
    with connect(server) as sock:
        for name, num_tokens in (("one", 4), ("two", 1)):
            sock.sendall(request(num_tokens, name=name))
            read_answer(sock)
    truth = server.stop()
    assert truth.requests["id"].tolist() == [b"one", b"two"]
    assert truth.requests["num_written"].tolist() == [4, 1]
    assert truth.requests["state"].tolist() == [DONE, DONE]
    assert truth.entries["request"].tolist() == [0, 0, 0, 0, 1]
    assert truth.entries["token"].tolist() == [0, 1, 2, 3, 0]
    assert truth.facts["writes"] == 5 and truth.facts["writes_blocked"] == 0
    assert len(truth.itl_ms) == 3 and len(truth.ttft_ms) == 2


def test_nothing_is_written_before_it_is_due_and_due_times_do_not_drift(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(request(20))
        read_answer(sock)
    truth = server.stop()
    due = truth.entries["due_ns"]
    assert (truth.late_ms >= 0).all()
    assert set((due[1:] - due[:-1]).tolist()) == {5 * MS}
    assert due[0] == truth.requests["arrived_ns"][0] + 20 * MS
    assert truth.ttft_ms[0] >= 20


def test_its_stamps_lie_between_the_clients_sending_and_seeing(server: Server) -> None:
    with connect(server) as sock:
        before_ns = time.monotonic_ns()
        sock.sendall(request(2))
        read_answer(sock)
        after_ns = time.monotonic_ns()
    truth = server.stop()
    # The kernel's stamp is on the wall clock, converted: a little doubt.
    assert before_ns - MS <= truth.requests["arrived_ns"][0] <= truth.requests["read_ns"][0]
    assert before_ns < truth.entries["mono_ns"][0] < truth.entries["mono_ns"][1] < after_ns


def test_a_request_may_come_in_pieces_and_several_at_once(server: Server) -> None:
    with connect(server) as sock:
        for byte in request(2):
            sock.sendall(bytes([byte]))
        assert len(read_answer(sock)[1]) == 3
        whole = b""
        sock.sendall(request(2) + request(2))
        while whole.count(b"[DONE]") < 2:
            whole += sock.recv(1 << 16)
    assert server.stop().requests["num_written"].tolist() == [2, 2, 2]


def test_a_client_that_leaves_is_cancelled_and_disturbs_nobody(server: Server) -> None:
    with connect(server) as stays:
        with connect(server) as leaves:
            leaves.sendall(request(100_000, name="leaves"))
            leaves.recv(10)
        stays.sendall(request(10, name="stays"))
        read_answer(stays)
    truth = server.stop()
    assert truth.requests["num_written"][1] == 10
    assert truth.requests["state"][0] != DONE and truth.requests["num_written"][0] < 100_000


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 404),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
    ],
)
def test_what_is_no_stream_is_answered_at_once(server: Server, words: bytes, status: int) -> None:
    with connect(server) as sock:
        sock.sendall(words)
        assert read_answer(sock)[0] == status
    assert len(server.stop().requests) == 0


def test_with_one_slot_requests_wait_for_one_another(binary: Path, tmp_path: Path) -> None:
    with serving(binary, tmp_path, ttft_ms=2, itl_ms=2, slots=1) as server:
        socks = [connect(server) for _ in range(3)]
        for sock in socks:
            sock.sendall(request(3))
        socks.pop(1).close()  # most likely while it waits: its place must be neither lost nor given twice
        for sock in socks:
            read_answer(sock)
            sock.close()
        truth = server.stop()
    assert sorted(truth.requests["state"].tolist())[:2] == [DONE, DONE]
    spans = [
        (own["mono_ns"].min(), own["mono_ns"].max())
        for own in (truth.entries[truth.entries["request"] == number] for number in range(3))
        if len(own)
    ]
    for (_, end), (start, _) in zip(sorted(spans), sorted(spans)[1:], strict=False):
        assert end < start


def test_in_lockstep_all_streams_are_due_at_the_same_moments(binary: Path, tmp_path: Path) -> None:
    with serving(binary, tmp_path, ttft_ms=3, itl_ms=20, lockstep=True) as server:
        socks = [connect(server) for _ in range(3)]
        for sock in socks:
            sock.sendall(request(4))
            time.sleep(0.007)
        for sock in socks:
            read_answer(sock)
            sock.close()
        truth = server.stop()
    phases = set((truth.entries["due_ns"] % (20 * MS)).tolist())
    assert len(phases) == 1


def test_the_last_requests_of_a_log_are_those_of_the_run(server: Server) -> None:
    with connect(server) as sock:
        for num_tokens in (5, 2, 2):
            sock.sendall(request(num_tokens))
            read_answer(sock)
    truth = server.stop().last(2)
    assert set(truth.entries["request"].tolist()) == {1, 2}
    assert len(truth.itl_ms) == 2 and len(truth.ttft_ms) == 2
    assert truth.peak_streams == 1
