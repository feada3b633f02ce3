"""The capture: what a socket loop saw, written as it happened, for somebody else to understand later.

Owns the file format between the socket loop, which has no time to parse, and the decoder, which has. Append
only; a frame is one write, so what a killed process leaves is whole frames and at most one torn tail.

    file  = magic, frame…
    frame = type (1 byte), length of the rest (uint32), rest
    CLOCK = monotonic_ns, offset_ns (wall clock − monotonic), width_ns (how long taking the sample took)
    ANSWER = fixed part (see `_ANSWER`), detail (UTF-8), reads: kernel_ns[n], process_ns[n], length[n]; bytes
    END   = nothing: the loop is done

All times are nanoseconds; process times on the monotonic clock, kernel times on the wall clock as the kernel
gave them (0 where it gave none). Numbers are little-endian.

Invariant: one ANSWER per planned request; `sum(lengths) == len(raw)`.
"""

from __future__ import annotations

import enum
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from prefixlab.core.errors import ConfigError

MAGIC = b"prefixlab-capture-1\n"
NEVER = -1
"""A time that did not happen."""

_FRAME = struct.Struct("<BI")
_CLOCK = struct.Struct("<qqq")
_ANSWER = struct.Struct("<IBBHqqqqqIIQ")
_TYPE_CLOCK, _TYPE_ANSWER, _TYPE_END = 1, 2, 3


class Ending(enum.IntEnum):
    """How an attempt ended, as far as the loop can tell: it reads framing, not content."""

    COMPLETE = 0
    """The HTTP message is whole, whatever its status."""
    CONNECT = 1
    """No connection: refused, unreachable, name not found, TLS refused."""
    CONNECT_TIMEOUT = 2
    DROPPED = 3
    """The connection was closed before a byte of the answer."""
    RESET = 4
    TRUNCATED = 5
    """Closed inside the answer."""
    STALLED = 6
    """Silent for longer than the read time-out."""
    TIMED_OUT = 7
    """Not done within the time-out of the whole request."""
    GARBAGE = 8
    """Not HTTP."""
    CANCELLED = 9
    UNSENT = 10
    NO_TOKEN_IDS = 11
    """Never sent: the answer it was to go on from does not name its tokens."""


@dataclass(slots=True)
class Answer:
    """One planned request, as the loop saw it end.

    Attributes:
        index: its place in the plan.
        intended_ns, sent_ns, connect_started_ns, connected_ns, ended_ns: monotonic; NEVER where it was not.
        num_retries: attempts before this one.
        kernel_ns, process_ns, lengths: one entry per read that brought bytes of the answer.
        pieces: the answer as it came off the wire (TLS removed): status line, headers, framing and all.
        detail: of an ending other than COMPLETE, for people.
    """

    index: int
    ending: Ending
    intended_ns: int
    sent_ns: int = NEVER
    connect_started_ns: int = NEVER
    connected_ns: int = NEVER
    ended_ns: int = NEVER
    num_retries: int = 0
    kernel_ns: array[int] = field(default_factory=lambda: array("q"))
    process_ns: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("I"))
    pieces: Sequence[bytes] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ClockSample:
    """The wall clock against the monotonic one at one moment."""

    monotonic_ns: int
    offset_ns: int
    width_ns: int


@dataclass(frozen=True, slots=True)
class End:
    """The loop is done; nothing follows."""


Frame = Answer | ClockSample | End


def encode(frame: Frame) -> bytes:
    """One frame, to be appended with a single write."""
    if isinstance(frame, ClockSample):
        rest = _CLOCK.pack(frame.monotonic_ns, frame.offset_ns, frame.width_ns)
        return _FRAME.pack(_TYPE_CLOCK, len(rest)) + rest
    if isinstance(frame, End):
        return _FRAME.pack(_TYPE_END, 0)
    detail = frame.detail.encode()
    raw = b"".join(frame.pieces)
    fixed = _ANSWER.pack(
        frame.index,
        frame.ending,
        min(frame.num_retries, 255),
        len(detail),
        frame.intended_ns,
        frame.sent_ns,
        frame.connect_started_ns,
        frame.connected_ns,
        frame.ended_ns,
        len(frame.lengths),
        0,
        len(raw),
    )
    reads = (frame.kernel_ns.tobytes(), frame.process_ns.tobytes(), frame.lengths.tobytes())
    length = len(fixed) + len(detail) + sum(map(len, reads)) + len(raw)
    return b"".join((_FRAME.pack(_TYPE_ANSWER, length), fixed, detail, *reads, raw))


def append(fd: int, frame: Frame) -> None:
    """Write one frame to a file opened for appending."""
    data = encode(frame)
    written = os.write(fd, data)
    while written < len(data):  # a full disk or a signal; a torn frame is the reader's to notice
        written += os.write(fd, data[written:])


def read_frames(file: BinaryIO) -> Iterator[Frame]:
    """Whole frames from where `file` stands; stops before a torn one, leaving the file at its start, so that
    a later call goes on there. `file` must be positioned after the magic (see `check_magic`)."""
    while True:
        start = file.tell()
        head = file.read(_FRAME.size)
        kind, length = _FRAME.unpack(head) if len(head) == _FRAME.size else (0, 1)
        rest = file.read(length) if kind else b""
        if len(rest) < length:
            file.seek(start)
            return
        if kind == _TYPE_CLOCK:
            yield ClockSample(*_CLOCK.unpack(rest))
        elif kind == _TYPE_END:
            yield End()
            return
        else:
            yield _decode_answer(rest)


def check_magic(file: BinaryIO) -> bool:
    """Read past the magic. False if it is not all there yet. ConfigError if this is another kind of file."""
    head = file.read(len(MAGIC))
    if not MAGIC.startswith(head):
        raise ConfigError(f"{getattr(file, 'name', 'this file')} is not a capture")
    if len(head) < len(MAGIC):
        file.seek(0)
    return len(head) == len(MAGIC)


def _decode_answer(rest: bytes) -> Answer:
    index, ending, retries, detail_len, *times, num_reads, _, raw_len = _ANSWER.unpack_from(rest)
    at = _ANSWER.size
    detail = rest[at : at + detail_len].decode()
    at += detail_len
    arrays = []
    for code in "qqI":
        values = array(code)
        size = num_reads * values.itemsize
        values.frombytes(rest[at : at + size])
        arrays.append(values)
        at += size
    assert at + raw_len == len(rest), "a frame whose parts do not add up"
    intended, sent, connect_started, connected, ended = times
    return Answer(
        index=index,
        ending=Ending(ending),
        intended_ns=intended,
        sent_ns=sent,
        connect_started_ns=connect_started,
        connected_ns=connected,
        ended_ns=ended,
        num_retries=retries,
        kernel_ns=arrays[0],
        process_ns=arrays[1],
        lengths=arrays[2],
        pieces=(rest[at:],),
        detail=detail,
    )
