"""What tests of the socket loop stand on: servers that do as a script says, and job folders made by hand."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prefixlab.bench.loadgen import capture, job
from prefixlab.bench.loadgen.capture import Answer, ClockSample, Ending
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.sockets.worker import run_loop

MS = 1_000_000


@dataclass
class Peer:
    """The server's side of one connection."""

    sock: socket.socket
    number: int
    """Of the connection, in the order they came."""
    _buffer: bytes = b""

    def read_request(self) -> bytes | None:
        """The body of the next request; None once the client has closed."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return None
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        self._buffer = rest
        while len(self._buffer) < length:
            if not self._more():
                return None
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return body

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        return bool(data)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, body: bytes = b"fine", status: str = "200 OK", headers: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        self.send(head.encode() + body)

    def begin_chunks(self) -> None:
        self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def chunk(self, body: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(body), body))

    def end_chunks(self) -> None:
        self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        """Close so that the other side sees a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def wait_for_close(self) -> None:
        while self._more():
            pass


Script = Callable[[Peer], None]


@dataclass
class Server:
    """A listening server; `bodies` of requests in the order they were read, by scripts that note them."""

    port: int
    bodies: list[bytes] = field(default_factory=list)
    num_connections: int = 0


@contextlib.contextmanager
def serving(
    script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, receive_buffer: int = 0
) -> Iterator[Server]:
    """Run `script` in a thread of its own for every connection; it is closed when the script returns."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if receive_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    listener.bind((host, 0))
    listener.listen(128)
    server = Server(listener.getsockname()[1])
    threads: list[threading.Thread] = []
    open_socks: list[socket.socket] = []
    failures: list[BaseException] = []

    def serve(sock: socket.socket, number: int) -> None:
        with sock:
            try:
                with (
                    tls.wrap_socket(sock, server_side=True) if tls else contextlib.nullcontext(sock) as plain
                ):
                    open_socks.append(plain)
                    script(Peer(plain, number))
            except OSError:
                pass  # the client went away
            except BaseException as error:
                failures.append(error)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=serve, args=(sock, server.num_connections))
            server.num_connections += 1
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield server
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for sock in open_socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(timeout=10)
            assert not thread.is_alive(), "a script did not end"
    assert not failures, failures


def each_request(handle: Callable[[Peer, bytes], object]) -> Script:
    """A script that calls `handle` for every request of a connection, until the client closes it."""

    def script(peer: Peer) -> None:
        while (body := peer.read_request()) is not None:
            handle(peer, body)

    return script


def post(body: bytes) -> bytes:
    return b"POST /generate HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def lay_down(
    folder: Path,
    port: int,
    bodies: Sequence[bytes] = (b"hello",),
    *,
    due_ns: Sequence[int] | None = None,
    max_concurrency: int | None = 1,
    **fields: Any,
) -> Path:
    """A job folder: one request per body, a closed loop of one unless told otherwise."""
    requests = [post(body) for body in bodies]
    (folder / job.PLAN_BYTES).write_bytes(b"".join(requests))
    rows = np.zeros(len(requests), job.PLAN_ROW)
    rows["length"] = [len(request) for request in requests]
    rows["max_new_tokens"] = 1000
    rows["start"] = np.cumsum(rows["length"]) - rows["length"]
    if due_ns is not None:
        rows["due_ns"] = due_ns
    np.save(folder / job.PLAN_ROWS, rows)
    settings = {
        "host": "127.0.0.1",
        "dialect": "native",
        "path": "/generate",
        "open_loop": due_ns is not None,
        "max_concurrency": None
        if max_concurrency is None
        else (max_concurrency,) * fields.get("num_workers", 1),
        "connect_timeout_ns": 10_000 * MS,
        "read_timeout_ns": 10_000 * MS,
    }
    job.write_job(folder, job.Job(**{**settings, "port": port, **fields}))
    return folder


@dataclass(frozen=True)
class Seen:
    """What a capture holds, `answers` in the plan's order."""

    answers: list[Answer]
    clocks: list[ClockSample]
    health: ClientHealth

    @property
    def endings(self) -> list[Ending]:
        return [answer.ending for answer in self.answers]

    @property
    def one(self) -> Answer:
        (answer,) = self.answers
        return answer


def read_capture(folder: Path, health: ClientHealth, worker: int = 0) -> Seen:
    """AssertionError unless every row was answered once, in frames that close with End."""
    with job.capture_path(folder, worker).open("rb") as file:
        assert capture.check_magic(file)
        frames = list(capture.read_frames(file))
    assert isinstance(frames[-1], capture.End)
    answers = sorted((f for f in frames if isinstance(f, Answer)), key=lambda answer: answer.index)
    the_job = job.read_job(folder)
    planned = job.rows_of(the_job, worker, job.read_plan(folder))
    assert [answer.index for answer in answers] == planned.tolist(), "not one answer for every row"
    for answer in answers:
        check_times(answer)
    return Seen(answers, [f for f in frames if isinstance(f, ClockSample)], health)


def check_times(answer: Answer) -> None:
    """intended ≤ connecting ≤ connected ≤ sent ≤ reads ≤ ended, as far as they happened."""
    times = [answer.intended_ns, answer.connect_started_ns, answer.connected_ns, answer.sent_ns]
    happened = [time for time in (*times, *answer.process_ns, answer.ended_ns) if time != capture.NEVER]
    assert happened == sorted(happened), answer
    assert len(answer.kernel_ns) == len(answer.process_ns) == len(answer.lengths)
    assert sum(answer.lengths) == sum(map(len, answer.pieces))


def drive(folder: Path) -> Seen:
    return read_capture(folder, run_loop(folder))
