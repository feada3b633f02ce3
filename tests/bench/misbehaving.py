"""A server that misbehaves on purpose: raw sockets in threads, one behaviour per request.

Owns the behaviours and what a client must make of each. A request names its own in the `user` field, or the
server picks one (`pick`). Speaks OpenAI completions as far as it speaks at all.

Invariant: leaving the `with` block ends every thread and closes every socket, whatever clients do.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

from prefixlab.bench.records.record import Failure, Outcome

JOIN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Behaviour:
    """What the server does with a request; `serve` says whether the connection can go on.

    Attributes:
        failure: what a client must call it; None where the request succeeds.
        stalls: a client knows only by its read time-out.
    """

    serve: Callable[[Connection], bool]
    failure: Failure | None = None
    http_status: int | None = None
    stalls: bool = False

    @property
    def outcome(self) -> Outcome:
        return Outcome.OK if self.failure is None else Outcome.FAILED


class Connection:
    """One accepted socket with one request read from it."""

    def __init__(self, sock: socket.socket, stopping: threading.Event) -> None:
        self._sock = sock
        self._stopping = stopping
        self._received = b""
        self.target = ""
        self.body: dict[str, object] = {}

    @property
    def num_tokens(self) -> int:
        wanted = self.body["max_tokens"]
        assert isinstance(wanted, int)
        return wanted

    def read_request(self) -> bool:
        """False: the client is gone."""
        while b"\r\n\r\n" not in self._received:
            if not self._read():
                return False
        head, _, rest = self._received.partition(b"\r\n\r\n")
        match = re.search(rb"(?i)content-length: *(\d+)", head)
        length = int(match[1]) if match else 0
        while len(rest) < length:
            if not self._read():
                return False
            rest = self._received.partition(b"\r\n\r\n")[2]
        self._received = rest[length:]
        self.target = head.partition(b" HTTP/")[0].decode("latin-1")
        self.body = json.loads(rest[:length]) if length else {}
        return True

    def _read(self) -> bool:
        data = self._sock.recv(1 << 16)
        self._received += data
        return bool(data)

    def send(self, *pieces: bytes) -> None:
        """Each piece with a write of its own, far enough apart to arrive apart."""
        for number, piece in enumerate(pieces):
            if number:
                self.pause(0.002)
            self._sock.sendall(piece)

    def pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def stall(self) -> bool:
        """Say nothing until the client leaves or the server stops."""
        while not self._stopping.is_set() and self._read():
            pass
        return False

    def reset(self) -> bool:
        """Close with RST instead of FIN."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False


# ---- what a good answer is made of


def head(*, length: int | None = None, status: str = "200 OK", kind: str = "text/event-stream") -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n".encode()


def event(tokens: int, *, last: bool = False, done: int | None = None) -> bytes:
    """An event that brings `tokens` tokens; `done` adds how many there are so far."""
    choice = {"index": 0, "text": " tok" * tokens, "finish_reason": "length" if last else None}
    payload: dict[str, object] = {"id": "cmpl", "object": "text_completion", "choices": [choice]}
    if done is not None:
        payload["usage"] = usage(done)
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def usage(done: int) -> dict[str, int]:
    return {"prompt_tokens": 3, "completion_tokens": done, "total_tokens": 3 + done}


def ending(done: int) -> bytes:
    payload = {"id": "cmpl", "choices": [], "usage": usage(done)}
    return b"data: " + json.dumps(payload).encode() + b"\n\ndata: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def events(total: int, per_event: int = 1, *, counted: bool = False) -> list[bytes]:
    """All events of an answer of `total` tokens, the ending apart."""
    made = []
    for start in range(0, total, per_event):
        stop = min(total, start + per_event)
        made.append(event(stop - start, last=stop == total, done=stop if counted else None))
    return made


# ---- behaviours


def behaves(c: Connection) -> bool:
    c.send(head(), *map(chunk, events(c.num_tokens)), chunk(ending(c.num_tokens)) + LAST_CHUNK)
    return True


def bundles_tokens_in_events(c: Connection) -> bool:
    bundled = events(c.num_tokens, 3, counted=True)
    c.send(head(), *map(chunk, bundled), chunk(ending(c.num_tokens)) + LAST_CHUNK)
    return True


def bundles_events_in_writes(c: Connection) -> bool:
    chunks = [*map(chunk, events(c.num_tokens)), chunk(ending(c.num_tokens)) + LAST_CHUNK]
    c.send(head() + chunks[0], *(b"".join(chunks[at : at + 3]) for at in range(1, len(chunks), 3)))
    return True


def bundles_events_in_chunks(c: Connection) -> bool:
    c.send(head(), chunk(b"".join(events(c.num_tokens)) + ending(c.num_tokens)), LAST_CHUNK)
    return True


def splits_everywhere(c: Connection) -> bool:
    """Every event in pieces that mean nothing by themselves, across chunks and writes."""
    whole = b"".join(events(c.num_tokens)) + ending(c.num_tokens)
    framed = head() + b"".join(chunk(whole[at : at + 7]) for at in range(0, len(whole), 7)) + LAST_CHUNK
    c.send(*(framed[at : at + 211] for at in range(0, len(framed), 211)))
    return True


def says_how_long(c: Connection) -> bool:
    whole = b"".join(events(c.num_tokens)) + ending(c.num_tokens)
    c.send(head(length=len(whole)), whole)
    return True


def ends_by_closing(c: Connection) -> bool:
    c.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    c.send(*events(c.num_tokens), ending(c.num_tokens))
    return False


def behaves_then_leaves(c: Connection) -> bool:
    """Closes a connection that could have served on, as servers do with idle ones, at the worst moment."""
    behaves(c)
    return False


def drops(c: Connection) -> bool:
    return False


def stalls_at_once(c: Connection) -> bool:
    return c.stall()


def stalls_after_headers(c: Connection) -> bool:
    c.send(head())
    return c.stall()


def stalls_half_way(c: Connection) -> bool:
    c.send(head(), *map(chunk, events(c.num_tokens)[: c.num_tokens // 2]))
    return c.stall()


def truncates_a_chunk(c: Connection) -> bool:
    c.send(head(), chunk(event(1)), chunk(event(1))[:-10])
    return False


def truncates_between_chunks(c: Connection) -> bool:
    c.send(head(), chunk(event(1)))
    return False


def truncates_the_head(c: Connection) -> bool:
    c.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    return False


def truncates_the_length(c: Connection) -> bool:
    c.send(head(length=100_000), event(1))
    return False


def truncates_the_stream(c: Connection) -> bool:
    """HTTP says it is whole; the events say it is not: neither a finish reason nor [DONE]."""
    c.send(head(), chunk(event(1)), LAST_CHUNK)
    return True


def truncates_an_event(c: Connection) -> bool:
    """HTTP says it is whole, in the middle of an event."""
    c.send(head(), chunk(event(1)), chunk(event(1)[:-20]), LAST_CHUNK)
    return True


def resets_at_once(c: Connection) -> bool:
    return c.reset()


def resets_half_way(c: Connection) -> bool:
    c.send(head(), chunk(event(1)), chunk(event(1)))
    c.pause(0.05)  # a reset may take with it what has not been read yet
    return c.reset()


def is_not_http(c: Connection) -> bool:
    c.send(b"SSH-2.0-OpenSSH_9.6\r\n")
    return False


def has_a_bad_chunk_size(c: Connection) -> bool:
    c.send(head() + b"xyz\r\n")
    return False


def is_not_events(c: Connection) -> bool:
    page = b"<html><body>It works!</body></html>\n\n"
    c.send(head(length=len(page), kind="text/html") + page)
    return True


def is_not_json(c: Connection) -> bool:
    c.send(head(), chunk(event(1)), chunk(b"data: {not json\n\n") + LAST_CHUNK)
    return True


def is_not_this_api(c: Connection) -> bool:
    c.send(head(), chunk(b'data: {"weather": "fine"}\n\n') + LAST_CHUNK)
    return True


def reports_an_error(c: Connection) -> bool:
    words = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
    c.send(head(), chunk(event(1)), chunk(words), chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
    return True


def is_overloaded(c: Connection) -> bool:
    c.send(refusal("503 Service Unavailable", "Retry-After: 0\r\n"))
    return True


def refuses(c: Connection) -> bool:
    c.send(refusal("400 Bad Request", ""))
    return True


def refusal(status: str, more: str) -> bytes:
    words = json.dumps({"error": {"message": f"this server says {status}"}}).encode()
    kind = "Content-Type: application/json"
    return f"HTTP/1.1 {status}\r\n{kind}\r\n{more}Content-Length: {len(words)}\r\n\r\n".encode() + words


BEHAVIOURS: dict[str, Behaviour] = {
    serve.__name__: Behaviour(serve, failure, status, stalls)
    for serve, failure, status, stalls in [
        (behaves, None, None, False),
        (bundles_tokens_in_events, None, None, False),
        (bundles_events_in_writes, None, None, False),
        (bundles_events_in_chunks, None, None, False),
        (splits_everywhere, None, None, False),
        (says_how_long, None, None, False),
        (ends_by_closing, None, None, False),
        (behaves_then_leaves, None, None, False),
        (drops, Failure.DROPPED, None, False),
        (stalls_at_once, Failure.STALLED, None, True),
        (stalls_after_headers, Failure.STALLED, None, True),
        (stalls_half_way, Failure.STALLED, None, True),
        (truncates_a_chunk, Failure.TRUNCATED, None, False),
        (truncates_between_chunks, Failure.TRUNCATED, None, False),
        (truncates_the_head, Failure.TRUNCATED, None, False),
        (truncates_the_length, Failure.TRUNCATED, None, False),
        (truncates_the_stream, Failure.TRUNCATED, None, False),
        (truncates_an_event, Failure.TRUNCATED, None, False),
        (resets_at_once, Failure.RESET, None, False),
        (resets_half_way, Failure.RESET, None, False),
        (is_not_http, Failure.GARBAGE, None, False),
        (has_a_bad_chunk_size, Failure.GARBAGE, None, False),
        (is_not_events, Failure.GARBAGE, None, False),
        (is_not_json, Failure.GARBAGE, None, False),
        (is_not_this_api, Failure.GARBAGE, None, False),
        (reports_an_error, Failure.SERVER_ERROR, None, False),
        (is_overloaded, Failure.HTTP_STATUS, 503, False),
        (refuses, Failure.HTTP_STATUS, 400, False),
    ]
}


class MisbehavingServer:
    """See the module. Use as a context manager.

    Args:
        pick: which behaviour a request gets, given its body; by default the one named in `user`.
    """

    def __init__(self, pick: Callable[[dict[str, object]], str] | None = None) -> None:
        self._pick = pick or (lambda body: str(body["user"]))
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._socks: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.served: list[tuple[str, str]] = []
        """Behaviour and `user` of every completion request, in the order they were read."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> MisbehavingServer:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        with self._lock:
            for sock in (self._listener, *self._socks):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        while self._threads:
            self._threads.pop().join(JOIN_TIMEOUT_S)
        self._listener.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._socks.add(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        connection = Connection(sock, self._stopping)
        with contextlib.suppress(OSError):
            while not self._stopping.is_set() and connection.read_request() and self._answer(connection):
                pass
        with self._lock:
            self._socks.discard(sock)
            sock.close()

    def _answer(self, connection: Connection) -> bool:
        if connection.target == "GET /v1/models":  # somebody looks who is there
            words = b'{"object": "list", "data": [{"id": "misbehaving", "object": "model"}]}'
            connection.send(head(length=len(words), kind="application/json") + words)
            return True
        if connection.target != "POST /v1/completions":
            connection.send(refusal("404 Not Found", ""))
            return True
        with self._lock:
            name = self._pick(connection.body)
            self.served.append((name, str(connection.body.get("user"))))
        return BEHAVIOURS[name].serve(connection)


def mixed(seed: int, names: Iterable[str] = BEHAVIOURS) -> Callable[[dict[str, object]], str]:
    """Any of `names`, at random, but the same for the same seed and request."""
    choices = sorted(names)
    return lambda body: random.Random(f"{seed} {json.dumps(body)}").choice(choices)
