"""The metronome: a server process that writes tokens at set times and knows exactly when it wrote them.

Owns the other half of a calibration. It does as little as a server can (bytes made beforehand, a bare epoll
loop, no scheduler, no asyncio), so that what is measured against it is the client. Its log, not its schedule,
is the truth: a stamp before each write, and the kernel's stamp of each request's arrival.

A child process: prints `listening PORT`, serves until its stdin closes, then writes its log (msgpack, a list
of `Stream`) to stdout. `process.py` is the parent's side.

Invariant: one stamp in the log per token handed to the kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import resource
import select
import socket
import sys
import time
from collections import deque
from functools import cache
from typing import Annotated

import msgspec

from prefixlab.bench.loadgen.sockets.stamps import TIMESPEC, sample_clocks

SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)
WRITES_PER_TURN = 64
"""Then look for new requests, also when the schedule cannot be kept."""

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_REFUSAL = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Stream(msgspec.Struct, array_like=True, gc=False):
    """What was done for one request. Times are nanoseconds on the monotonic clock.

    Attributes:
        name: the request's `user` field.
        arrived_ns: when its last bytes reached this machine, by the kernel's stamp where there is one.
        due_ns: when its first token was due; each further one an ITL later.
        written_ns: one entry per token, taken right before it was written.
    """

    name: str
    arrived_ns: int
    due_ns: int
    written_ns: list[int]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How streams look. `slots`: streams at once, the others wait their turn unanswered; 0 is no limit."""

    ttft_ns: int
    itl_ns: int
    slots: int = 0


class _Body(msgspec.Struct):
    """What is read of a request to /v1/completions."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    user: str = ""


class _Connection:
    """A socket, and the stream on it. `next_ns` is when its next token is due."""

    __slots__ = ("left", "next_ns", "pieces", "received", "sock", "stream")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.stream: Stream | None = None
        self.next_ns = 0
        self.left = 0
        self.pieces = (b"", b"", b"")


class Metronome:
    """See the module. All streams keep one ITL, so those due lie in a queue already sorted: no heap."""

    def __init__(self, listener: socket.socket, shape: Shape) -> None:
        self._shape = shape
        self._listener = listener
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._starting: deque[_Connection] = deque()
        self._running: deque[_Connection] = deque()
        self._waiting: deque[_Connection] = deque()
        self._num_streaming = 0
        self.log: list[Stream] = []

    def serve(self, until_readable: int) -> None:
        """Serve until the file descriptor `until_readable` is (a closed pipe is)."""
        ours = {self._listener.fileno(), until_readable}
        for fd in ours:
            self._epoll.register(fd, select.EPOLLIN)
        waker = self._epoll.fileno()
        try:
            while True:
                wait_s = self._write_due()
                if wait_s:
                    # select, because it sleeps for microseconds where epoll rounds up to milliseconds.
                    select.select([waker], [], [], None if wait_s < 0 else wait_s)
                for fd, _ in self._epoll.poll(0):
                    if fd in ours:
                        if fd == until_readable:
                            return
                        self._accept()
                    else:
                        self._receive(self._connections[fd])
        finally:
            for connection in list(self._connections.values()):
                self._close(connection)
            self._epoll.close()

    def _write_due(self) -> float:
        """Write what is due. Returns the seconds until more is: 0 for now, < 0 if nothing is planned."""
        starting, running, itl_ns = self._starting, self._running, self._shape.itl_ns
        for _ in range(WRITES_PER_TURN):
            if starting and not (running and running[0].next_ns < starting[0].next_ns):
                queue = starting
            elif running:
                queue = running
            else:
                return -1.0
            now_ns = time.monotonic_ns()
            if queue[0].next_ns > now_ns:
                return (queue[0].next_ns - now_ns) / 1e9
            connection = queue.popleft()
            stream = connection.stream
            if stream is None:  # closed meanwhile
                continue
            left = connection.left = connection.left - 1
            piece = connection.pieces[0 if queue is starting else 1 if left else 2]
            now_ns = time.monotonic_ns()
            try:
                complete = connection.sock.send(piece) == len(piece)
            except OSError:
                complete = False
            stream.written_ns.append(now_ns)
            if not complete:  # gone, or megabytes behind: no client to measure
                self._close(connection)
            elif left:
                connection.next_ns += itl_ns
                running.append(connection)
            else:
                self._end(connection)
        return 0.0

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
                self._connections[sock.fileno()] = _Connection(sock)
                self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _receive(self, connection: _Connection) -> None:
        try:
            data, ancillary, _, _ = connection.sock.recvmsg(1 << 16, 64)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self._close(connection)
            return
        connection.received += data
        if connection.stream is not None:
            return  # a pipelined request: no client of ours does that
        head, end, body = connection.received.partition(b"\r\n\r\n")
        if not end:
            return  # a length may be cut in two
        lowered = head.lower() + b"\r\n"
        length = int(lowered.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        connection.received = b""
        try:
            asked = msgspec.json.decode(body, type=_Body)
        except msgspec.DecodeError:
            asked = None
        if asked is None or not head.startswith(b"POST /v1/completions "):
            connection.sock.send(_REFUSAL)
            return
        arrived_ns = read_ns = time.monotonic_ns()
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = TIMESPEC.unpack(value)
                arrived_ns = seconds * 1_000_000_000 + nanoseconds - sample_clocks().offset_ns
        connection.stream = Stream(asked.user, arrived_ns, 0, [])
        connection.left = asked.max_tokens
        connection.pieces = _pieces(asked.max_tokens)
        self.log.append(connection.stream)
        if self._shape.slots and self._num_streaming >= self._shape.slots:
            self._waiting.append(connection)
        else:
            self._start(connection, read_ns)

    def _start(self, connection: _Connection, now_ns: int) -> None:
        """From when it was read, not from when it arrived, so that due times never decrease."""
        assert connection.stream is not None
        self._num_streaming += 1
        connection.next_ns = connection.stream.due_ns = now_ns + self._shape.ttft_ns
        self._starting.append(connection)

    def _end(self, connection: _Connection) -> None:
        connection.stream = None
        self._num_streaming -= 1
        while self._waiting:
            first = self._waiting.popleft()
            if first.stream is not None:
                self._start(first, time.monotonic_ns())
                break

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        self._epoll.unregister(connection.sock)
        connection.sock.close()
        if connection.stream is None:
            return
        if connection.stream.due_ns:
            self._end(connection)
        connection.stream = None


@cache
def _pieces(num_tokens: int) -> tuple[bytes, bytes, bytes]:
    """The first, a further and the last write of a stream of `num_tokens`; one alone is the first."""
    token = '{"id":"m","object":"text_completion","choices":[{"index":0,"text":" tok","finish_reason":%s}]}'
    usage = f'{{"prompt_tokens":1,"completion_tokens":{num_tokens},"total_tokens":{num_tokens + 1}}}'
    middle = _event(token % "null")
    last = (
        _event(token % '"length"')
        + _event('{"id":"m","choices":[],"usage":' + usage + "}")
        + _event("[DONE]")
    )
    end = _chunk(last) + b"0\r\n\r\n"
    return _HEAD + (_chunk(middle) if num_tokens > 1 else end), _chunk(middle), end


def _event(payload: str) -> bytes:
    return b"data: " + payload.encode() + b"\n\n"


def _chunk(events: bytes) -> bytes:
    """One transfer chunk per write, so that a read of several chunks is a read of several writes."""
    return b"%x\r\n%s\r\n" % (len(events), events)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", help="Shape as JSON")
    parser.add_argument("--core", type=int)
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with contextlib.suppress(OSError):  # already here, so that the kernel stamps from the start
            listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        listener.listen(65535)
        listener.setblocking(False)
        metronome = Metronome(listener, msgspec.json.decode(args.shape, type=Shape))
        print(f"listening {listener.getsockname()[1]}", flush=True)  # noqa: T201 - its protocol
        metronome.serve(sys.stdin.fileno())
    sys.stdout.buffer.write(msgspec.msgpack.encode(metronome.log))


if __name__ == "__main__":
    main()
