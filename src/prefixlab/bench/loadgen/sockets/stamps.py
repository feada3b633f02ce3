"""When things happened: the process's clocks, and the kernel's stamps of arriving data.

Owns the loop's reading of time. The kernel stamps a segment as it comes in from the network, so the stamp is
right however late the process reads; it is on the wall clock, so the offset between the clocks is sampled all
through a run and whoever reads the capture converts.

Invariant: a clock sample's offset was true at some moment within its width.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time

from prefixlab.bench.loadgen.capture import ClockSample

monotonic_ns = time.monotonic_ns
"""The clock of every time that is not a kernel's stamp."""
thread_cpu_ns = time.thread_time_ns

TIMESPEC = struct.Struct("@ll")
ANCILLARY_BYTES = socket.CMSG_SPACE(TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0
_SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)
_SAMPLE_TRIES = 4
_PROBE_TRIES = 200
_PLAUSIBLE_NS = 60_000_000_000


def sample_clocks() -> ClockSample:
    """The wall clock against the monotonic one: the narrowest of a few brackets."""
    best = ClockSample(0, 0, 1 << 62)
    for _ in range(_SAMPLE_TRIES):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        if after - before < best.width_ns:
            middle = (before + after) // 2
            best = ClockSample(middle, wall - middle, after - before)
    return best


class KernelStamps:
    """Arrival stamps on TCP, proven to work here before anything relies on them.

    Holds a stamped pair of sockets while it lives: the kernel stamps packets only while somebody wants it,
    and switching that on and off with every connection would cost, and would lose first stamps.
    """

    def __init__(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pair = pair

    @classmethod
    def open(cls) -> KernelStamps | None:
        """None where the kernel has no such stamps."""
        if not ANCILLARY_BYTES:
            return None
        try:
            pair = _loopback_pair()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            _ask_for_stamps(pair[1])
            for _ in range(_PROBE_TRIES):  # the kernel takes a moment to begin
                pair[0].send(b"?")
                _, ancillary, _, _ = pair[1].recvmsg(1, ANCILLARY_BYTES)
                if ancillary and _is_now(ancillary[0][2]):
                    return cls(pair)
                time.sleep(0.001)
        for end in pair:
            end.close()
        return None

    def ask(self, sock: socket.socket) -> None:
        """Have arrivals on this socket stamped."""
        _ask_for_stamps(sock)

    def close(self) -> None:
        for end in self._pair:
            end.close()


def _ask_for_stamps(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def _is_now(data: bytes) -> bool:
    if len(data) != TIMESPEC.size:
        return False
    seconds, nanoseconds = TIMESPEC.unpack(data)
    stamp_ns: int = seconds * 1_000_000_000 + nanoseconds
    return abs(stamp_ns - time.time_ns()) < _PLAUSIBLE_NS


def _loopback_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection within this machine. Raises OSError if it has no loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = socket.create_connection(listener.getsockname(), timeout=5)
        try:
            far, _ = listener.accept()
        except OSError:
            near.close()
            raise
        far.settimeout(5)
        return near, far
