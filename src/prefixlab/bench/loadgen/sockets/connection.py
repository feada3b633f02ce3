"""One TCP connection, from its first SYN to its last byte, without ever blocking.

Owns the socket: connecting (several addresses in turn), sending what fits, receiving with arrival stamps.
What the bytes mean, and how long to wait for them, is others' to know. TLS lies on top (`tls.py`).

Invariant: a connection is registered with the poller from `begin` until `close`, and closed exactly once.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass

from prefixlab.bench.loadgen.sockets.poller import IN, OUT, Handler, Poller
from prefixlab.bench.loadgen.sockets.stamps import ANCILLARY_BYTES, TIMESPEC, KernelStamps

READ_BYTES = 16 * 1024
"""Per read. A token is a few hundred bytes; up to 64 KiB would cost the same (measured), beyond that more."""

_unpack = TIMESPEC.unpack
Address = tuple[str, int] | tuple[str, int, int, int]


@dataclass(slots=True)
class Endpoint:
    """Where connections go: addresses found once, before the run, so that no name is looked up during it.

    Attributes:
        addresses: family and socket address of each, in the resolver's order.
        error: why there are none.
        preferred: index of the one that worked last; connections begin with it.
    """

    addresses: list[tuple[int, Address]]
    error: str = ""
    preferred: int = 0

    @classmethod
    def resolve(cls, host: str, port: int) -> Endpoint:
        """Look `host` up. A name that is not found is no exception: it fails every request."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        except (OSError, UnicodeError) as error:
            return cls([], f"{host}: {describe(error)}")
        return cls([(int(family), address) for family, _, _, _, address in found])  # type: ignore[misc]


class Connection:
    """See the module. Methods that raise OSError leave the connection to be closed by the caller.

    Attributes:
        at_end: the other side will send nothing more.
        pending: something is left to be sent of what `send` has taken (never without TLS).
    """

    __slots__ = (
        "_endpoint",
        "_handler",
        "_poller",
        "_sock",
        "_stamps",
        "_tried",
        "at_end",
        "pending",
    )

    def __init__(self, endpoint: Endpoint, poller: Poller, stamps: KernelStamps | None) -> None:
        self._endpoint = endpoint
        self._poller = poller
        self._stamps = stamps
        self._sock: socket.socket | None = None
        self._tried = 0
        self.at_end = False
        self.pending = False

    def connect_deadline_ns(self, started_ns: int, timeout_ns: int) -> int:
        """When to give up the address being tried: each has an equal share of the time-out, the last one (and
        what comes after TCP stands) what is left of it."""
        return started_ns + timeout_ns * self._tried // max(1, len(self._endpoint.addresses))

    def begin(self, handler: Handler) -> None:
        """Start connecting; `handler` gets the events. Raises OSError if no address can even be tried."""
        self._handler = handler
        self._try_next(OSError(self._endpoint.error))

    def try_next(self) -> None:
        """Give the address being tried up for the next one. Raises OSError if there is none."""
        self._drop()
        self._try_next(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def advance(self, events: int) -> bool:
        """Go on connecting after an event; True once requests can be sent. Raises OSError if it failed."""
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._drop()
            self._try_next(OSError(code, os.strerror(code)))
            return False
        self._endpoint.preferred = (self._endpoint.preferred + self._tried - 1) % len(
            self._endpoint.addresses
        )
        self._tried = len(self._endpoint.addresses)
        self._poller.change(self._sock, IN)
        return True

    def hand_events_to(self, handler: Handler) -> None:
        assert self._sock is not None
        self._poller.handlers[self._sock.fileno()] = handler

    def watch_for_room(self, wanted: bool) -> None:
        """Whether to be told when more can be sent, besides when something has come."""
        assert self._sock is not None
        self._poller.change(self._sock, IN | OUT if wanted else IN)

    def send(self, data: memoryview) -> int:
        """Send what fits; how many bytes that were. Raises OSError."""
        assert self._sock is not None
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0

    def receive(self) -> tuple[bytes, int]:
        """What has come (nothing: the other side is done) and the kernel's stamp of it, 0 if it gave none.

        Raises:
            BlockingIOError: nothing has come yet.
            OSError: the connection is broken.
        """
        assert self._sock is not None
        data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        if ancillary:
            seconds, nanoseconds = _unpack(ancillary[0][2])
            return data, seconds * 1_000_000_000 + nanoseconds
        return data, 0

    def close(self) -> None:
        self._drop()

    def _try_next(self, error: OSError) -> None:
        addresses = self._endpoint.addresses
        while self._tried < len(addresses):
            family, address = addresses[(self._endpoint.preferred + self._tried) % len(addresses)]
            self._tried += 1
            try:
                self._sock = self._connect_to(family, address)
                return
            except OSError as refused:
                error = refused
        raise error

    def _connect_to(self, family: int, address: Address) -> socket.socket:
        """A socket that is connecting, and watched. Raises OSError."""
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._stamps is not None:
                self._stamps.ask(sock)
            code = sock.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            self._poller.add(sock, OUT, self._handler)
        except OSError:
            sock.close()
            raise
        return sock

    def _drop(self) -> None:
        if self._sock is not None:
            self._poller.remove(self._sock)
            self._sock = None


def describe(error: Exception) -> str:
    """An operating system's error for people: its words, without the number."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
