"""Waiting for sockets and for the time, whichever comes first, and calling who is concerned.

Owns registration, dispatch, and the closing of sockets. Two ways to wait: epoll with a timerfd (Linux: wakes
within microseconds of a deadline), and poll with a time-out whose last stretch is spun (anywhere).

Invariant: a socket's file is closed only after the round in which it was removed, so that its number is not
given to a new one while events of the old are still waiting to be handed out.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Protocol

from prefixlab.bench.loadgen.sockets.machine import TimerFd
from prefixlab.bench.loadgen.sockets.stamps import monotonic_ns

IN, OUT = 1, 4
"""POLLIN and EPOLLIN, POLLOUT and EPOLLOUT: the same numbers everywhere."""
Handler = Callable[[int], None]
"""Called with the events that came; more than those asked for may come (hang-up, error)."""

_MAX_EVENTS = 64
"""Per round. Between rounds the loop sees to what is due, so a round must not last long."""
_SPIN_MS = 2


class _Selector(Protocol):
    def register(self, fd: int, eventmask: int, /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> object: ...
    def unregister(self, fd: int, /) -> None: ...


class Poller:
    """See the module; `EpollPoller` and `SpinPoller` know how to wait.

    Attributes:
        handlers: by file number; replace an entry to have a socket's events go elsewhere.
    """

    def __init__(self, selector: _Selector) -> None:
        self.handlers: dict[int, Handler] = {}
        self._selector = selector
        self._removed: list[socket.socket] = []

    def add(self, sock: socket.socket, events: int, handler: Handler) -> None:
        self._selector.register(sock.fileno(), events)
        self.handlers[sock.fileno()] = handler

    def change(self, sock: socket.socket, events: int) -> None:
        self._selector.modify(sock.fileno(), events)

    def remove(self, sock: socket.socket) -> None:
        """Forget a socket, and close it in good time."""
        self._selector.unregister(sock.fileno())
        del self.handlers[sock.fileno()]
        self._removed.append(sock)

    def dispatch(self, deadline_ns: int) -> None:
        """Wait for events, until `deadline_ns` (monotonic) at most, and hand them out."""
        raise AssertionError("the two ways to wait are below")

    def _hand_out(self, happened: list[tuple[int, int]]) -> None:
        handlers = self.handlers
        for fd, events in happened:
            if fd in handlers:
                handlers[fd](events)
        if self._removed:
            self._close_removed()

    def close(self) -> None:
        """Sockets still registered are the caller's."""
        self._close_removed()

    def _close_removed(self) -> None:
        while self._removed:
            self._removed.pop().close()


class EpollPoller(Poller):
    """Raises OSError where there is no epoll or no timerfd."""

    def __init__(self) -> None:
        if not hasattr(select, "epoll"):
            raise OSError("no epoll here")
        self._timer = TimerFd()
        self._epoll = select.epoll()
        super().__init__(self._epoll)
        # Level-triggered and never read: a deadline that passed keeps waking us until another one is set.
        self._epoll.register(self._timer.fd, IN)
        self._armed_ns = 0

    def dispatch(self, deadline_ns: int) -> None:
        if deadline_ns != self._armed_ns:
            self._timer.arm(deadline_ns)
            self._armed_ns = deadline_ns
        self._hand_out(self._epoll.poll(-1, _MAX_EVENTS))

    def close(self) -> None:
        super().close()
        self._epoll.close()
        self._timer.close()


class SpinPoller(Poller):
    """For machines without epoll: asks again and again when the deadline is near."""

    def __init__(self) -> None:
        self._poll = select.poll()
        super().__init__(self._poll)

    def dispatch(self, deadline_ns: int) -> None:
        while True:
            left_ns = deadline_ns - monotonic_ns()
            happened = self._poll.poll(max(0, left_ns // 1_000_000 - _SPIN_MS))
            if happened or left_ns <= 0:
                self._hand_out(happened)
                return


def make_poller() -> Poller:
    """The best that this machine has."""
    try:
        return EpollPoller()
    except OSError:
        return SpinPoller()
