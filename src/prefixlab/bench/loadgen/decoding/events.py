"""The events of one answer's body, as chunks, and whether they make a whole answer. No I/O.

Owns the rule by which an answer counts as one: the decoder's records and the worker's next turns go by it.
What events hold is the dialect's to read, framing `wire.py`'s.

An answer that is not an event stream but one JSON object (a server may ignore `"stream": true`) is one event.

Invariant: whoever asks about the same bytes hears the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

import msgspec

from prefixlab.bench.loadgen.capture import Answer, Ending
from prefixlab.bench.loadgen.decoding.body import Body
from prefixlab.bench.loadgen.wire import ResponseParser, WireError
from prefixlab.bench.records.record import Failure
from prefixlab.bench.targets.dialects import AnswerError, Dialect, Reply, quote
from prefixlab.bench.targets.sse import DONE, Events, split_events
from prefixlab.core.target import Chunk

FAR_TOO_MANY, SPARE_TOKENS = 10, 1000
"""A count of output tokens beyond so many times the number asked for, and so many more, is no count. Metrics
hold one value per token, so what is believed must have a bound."""

STEP_BYTES, STEP_EVENTS = 256 << 10, 256
"""How much of an answer is read for a reply before others have their turn: a millisecond or two."""


def read_chunks(
    body: Body,
    arrivals_s: Sequence[float],
    read: Callable[[bytes, float], Chunk],
    *,
    asked: int,
    whole: bool,
) -> Iterator[tuple[Chunk, int]]:
    """What `body` holds, each chunk with the read that completed it.

    Args:
        arrivals_s: when each read arrived.
        read: the dialect's.
        asked: output tokens that were asked for.
        whole: the message is complete; else its end is missing, and the answer's ending says why.

    Raises:
        AnswerError: it holds an error, or is not what this API answers. What came before that was yielded.
    """
    events = split_answer(body.data, whole=whole)
    places = body.reads_of(events.ends)
    return _chunks(events, body.data, places, arrivals_s, read, asked=asked, whole=whole)


def _chunks(
    events: Events,
    data: bytes,
    places: Sequence[int],
    arrivals_s: Sequence[float],
    read: Callable[[bytes, float], Chunk],
    *,
    asked: int,
    whole: bool,
) -> Iterator[tuple[Chunk, int]]:
    """See `read_chunks`."""
    most_tokens = FAR_TOO_MANY * asked + SPARE_TOKENS
    finished = False
    for payload, place in zip(events.payloads, places, strict=True):
        if payload == DONE:
            finished = True
            continue
        chunk = read(payload, arrivals_s[place])
        total = chunk.num_output_tokens
        if total is not None and total > most_tokens:
            words = f"the server counts {total:,} output tokens where {asked:,} were asked for"
            raise AnswerError(f"{words}: {quote(payload)}", Failure.GARBAGE)
        yield chunk, place
        if chunk.finish_reason is not None:
            finished = True
    if not whole:
        return
    if events.rest:
        raise AnswerError(f"the answer ended inside an event: {quote(events.rest)}", Failure.TRUNCATED)
    if not events.payloads and data.strip():
        raise AnswerError(f"the answer is not a stream of events: {quote(data)}", Failure.GARBAGE)
    if not finished:
        words = "the stream ended without a finish reason or [DONE]: the answer was cut short"
        raise AnswerError(words, Failure.TRUNCATED)


def read_reply(answer: Answer, dialect: Dialect, asked: int) -> Generator[None, None, Reply | None]:
    """What was answered; None if the answer did not succeed. Yields now and then, so that whoever has other
    streams to read can see to them: where events say all of the text again, an answer may be megabytes."""
    if answer.ending is not Ending.COMPLETE:
        return None
    try:
        status, data = yield from _body_in_steps(answer.pieces)
        if status != 200:
            return None
        events = yield from _split_in_steps(data)
        num_events = len(events.payloads)
        chunks = _chunks(events, data, [0] * num_events, [0.0], dialect.read, asked=asked, whole=True)
        every = max(1, min(STEP_EVENTS, STEP_BYTES * num_events // max(1, len(data))))
        for number, _ in enumerate(chunks):
            if number % every == every - 1:
                yield
        return dialect.reply([payload for payload in events.payloads if payload != DONE])
    except (WireError, AnswerError):
        return None


def _body_in_steps(pieces: Sequence[bytes]) -> Generator[None, None, tuple[int | None, bytes]]:
    parser = ResponseParser()
    body: list[bytes] = []
    unfed: list[bytes] = []
    size = 0
    for piece in pieces:
        unfed.append(piece)
        size += len(piece)
        if size >= STEP_BYTES:
            body += parser.feed(b"".join(unfed))
            unfed, size = [], 0
            yield
    body += parser.feed(b"".join(unfed))
    return parser.status, b"".join(body)


def _split_in_steps(data: bytes) -> Generator[None, None, Events]:
    """As `split_answer` of a whole answer, but for where events end."""
    payloads: list[bytes] = []
    at = 0
    while len(data) - at > STEP_BYTES and b"\r" not in data[at : at + STEP_BYTES]:
        cut = data.rfind(b"\n\n", at, at + STEP_BYTES)
        if cut <= at:
            break
        payloads += split_events(data[at : cut + 2]).payloads
        at = cut + 2
        yield
    last = split_answer(data[at:], whole=True)
    payloads += last.payloads
    return Events(payloads, [], last.rest)


def split_answer(data: bytes, *, whole: bool) -> Events:
    """Of a stream, or of an answer that is none: one event, once it is whole."""
    if data.lstrip()[:1] in (b"{", b"["):
        return Events([data], [len(data)], b"") if whole else Events([], [], data)
    events = split_events(data)
    if whole and (events.rest == DONE or _is_json(events.rest)):  # all there but the blank line after it
        return Events([*events.payloads, events.rest], [*events.ends, len(data)], b"")
    return events


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
