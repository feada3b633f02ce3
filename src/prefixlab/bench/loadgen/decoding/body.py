"""The body of one answer put together from its reads, and which read brought which byte. No I/O.

Owns the reading of framing after the fact, by the parser that the socket loop used. Knows nothing of events.

Invariant: `ends` never decreases, and its last entry is the length of `data`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from prefixlab.bench.loadgen.capture import Answer
from prefixlab.bench.loadgen.wire import ResponseParser, WireError

WORKER_HEADERS = ("x-prefixlab-worker", "x-worker-id")


@dataclass(slots=True)
class Body:
    """As much of a body as came.

    Attributes:
        status: of the answer; None if its status line never came whole.
        worker: which of several servers answered, if one of `WORKER_HEADERS` says.
        ends: for each read, the length of the body when it was in.
        num_chunk_ends: for each read, how many transfer chunks it completed. Empty without chunked coding.
    """

    status: int | None = None
    data: bytes = b""
    ends: list[int] = field(default_factory=list)
    num_chunk_ends: list[int] = field(default_factory=list)
    worker: str | None = None

    def reads_of(self, ends: Sequence[int]) -> list[int]:
        """For ends of events in the body, ascending: the reads that completed them."""
        places, place = [], 0
        for end in ends:
            if self.ends[place] < end:
                place = bisect_left(self.ends, end, place)
            places.append(place)
        return places

    def num_merged(self, token_reads: Sequence[int]) -> int:
        """Reads that brought tokens of several chunks at once, of which one stamp covers all.

        Several events in one transfer chunk are not: the server bundled those, and they came together. Where
        it does not chunk, nobody can tell, and several events in one read count as merged.

        Args:
            token_reads: for each event that carried tokens, the read that completed it.
        """
        if len(set(token_reads)) == len(token_reads):
            return 0
        shared = [read for read, count in Counter(token_reads).items() if count > 1]
        return sum(1 for read in shared if not self.num_chunk_ends or self.num_chunk_ends[read] > 1)


def read_body(answer: Answer) -> Body:
    """Up to where it ends, or stops being HTTP."""
    raw = answer.pieces[0] if len(answer.pieces) == 1 else b"".join(answer.pieces)
    parser = ResponseParser()
    pieces: list[bytes] = []
    body = Body()
    at, length = 0, 0
    for num_bytes in answer.lengths:
        try:
            fresh = parser.feed(raw[at : at + num_bytes])
        except WireError:
            break  # the loop saw it too, and says so in the answer's ending
        at += num_bytes
        for piece in fresh:
            length += len(piece)
        pieces += fresh
        body.ends.append(length)
        body.num_chunk_ends.append(parser.num_chunk_ends)
    body.data = b"".join(pieces)
    if parser.head_complete:
        body.status = parser.status
        body.worker = next((parser.headers[name] for name in WORKER_HEADERS if name in parser.headers), None)
    if not parser.chunked:
        body.num_chunk_ends.clear()
    return body
