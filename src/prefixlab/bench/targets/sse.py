"""Server-sent events, without I/O: a body in, payloads out. Knows nothing of what the payloads mean.

Follows the event stream format of the HTML standard as far as model servers use it: `data` lines joined by a
newline, comments and other fields dropped, an event ended by a blank line; lines end in LF, CRLF or CR.

Takes a whole body at once, because a client that parses after the fact has it whole, and splitting it in one
go costs a fraction of feeding it piece by piece.

Invariant: every byte of the body is at or before the end of exactly one event, or in `rest`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DONE = b"[DONE]"
"""The payload by which OpenAI's API, and those after it, say that a stream is over."""


@dataclass(frozen=True, slots=True)
class Events:
    """What a body held.

    Attributes:
        payloads: of the events that carried data, in order.
        ends: for each, the number of bytes of the body up to and including the blank line that ended it.
        rest: what there is of an event that no blank line ended; empty after a stream that ended well.
    """

    payloads: list[bytes]
    ends: list[int]
    rest: bytes


def split_events(body: bytes) -> Events:
    """The events of a body, or of as much of one as there is."""
    if b"\r" not in body:
        return _split(body)
    # As LF only, with the ends moved on by the CRs left out before them.
    events = _split(body.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    codes = np.frombuffer(body, np.uint8)
    dropped = np.flatnonzero((codes[:-1] == 13) & (codes[1:] == 10))
    before = np.searchsorted(dropped - np.arange(len(dropped)), events.ends)
    return Events(events.payloads, (np.array(events.ends, np.int64) + before).tolist(), events.rest)


def _split(body: bytes) -> Events:
    parts = body.split(b"\n\n")
    rest = parts.pop()
    payloads, ends, end = [], [], 0
    for part in parts:
        end += len(part) + 2
        if part.startswith(b"data: ") and b"\n" not in part:  # what nearly every event is
            payloads.append(part[6:])
            ends.append(end)
        elif (data := _data(part)) is not None:
            payloads.append(data)
            ends.append(end)
    if (data := _data(rest)) is None:
        line = rest.rpartition(b"\n")[2]  # torn inside the field's name, perhaps
        data = b"" if line.startswith(b":") else line
    return Events(payloads, ends, data)


def _data(event: bytes) -> bytes | None:
    """The payload of one event's lines; None if it has none."""
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
