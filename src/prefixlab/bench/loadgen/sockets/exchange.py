"""One planned request on its way: sends its bytes, keeps every read with its stamps, and sees where it ends.

Owns the state of a request between its turn and its ending, and the hot path: a read in the middle of a
stream costs the read, three appends and a look at its last bytes. Framing is parsed when these look like an
end, when the stream falls silent, and when it breaks off; content never. Retries and slots are the loop's.

Invariant: `on_end` is called exactly once per attempt, and no handler of the attempt is called after it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prefixlab.bench.loadgen.capture import NEVER, Answer, Ending
from prefixlab.bench.loadgen.sockets.connection import Connection, describe
from prefixlab.bench.loadgen.sockets.pacing import Turn
from prefixlab.bench.loadgen.sockets.poller import Handler
from prefixlab.bench.loadgen.sockets.stamps import monotonic_ns
from prefixlab.bench.loadgen.wire import ResponseParser, WireError

LOOK_NS = 250_000_000
"""How often a stream is looked at. One that has been silent as long is parsed up to where it is: an end that
could not be seen in its last bytes is noticed then. A busy one is left alone, as all streams would be parsed
at about the same time, and those whose bytes come meanwhile would be read late."""

_MAX_UNPARSED = 64
"""Reads after which a busy stream is parsed all the same, so that little is left to do when it ends, and one
that goes on behind its end is noticed."""

_END_OF_CHUNKED = b"\r\n\r\n"
_NOT_AN_END = b"\r\n\r\n\r\n"
"""A message cannot end so, but chunks of events separated by CRLF do."""


@dataclass(slots=True)
class Tally:
    """Of all exchanges of a loop.

    Attributes:
        num_sent, num_first: requests sent; answers whose body has begun.
        num_pieces: reads that brought bytes of a body, of answers that have not ended.
        send_lags_ns: one per moment at which requests became ready: of the first of them, at its first
            attempt. The others of a burst wait for each other, which nobody can help.
    """

    num_sent: int = 0
    num_first: int = 0
    num_pieces: int = 0
    send_lags_ns: array[int] = field(default_factory=lambda: array("q"))
    _ready_ns: int = NEVER

    def is_first_at(self, ready_ns: int) -> bool:
        """Whether the request before did not become ready at this very moment."""
        before_ns, self._ready_ns = self._ready_ns, ready_ns
        return ready_ns != before_ns

    def send_lags_s(self) -> npt.NDArray[np.float64]:
        lags_ns = np.frombuffer(self.send_lags_ns, np.int64) if self.send_lags_ns else np.empty(0)
        return np.maximum(lags_ns, 0) / 1e9


@dataclass(frozen=True, slots=True)
class Limits:
    """Time-outs, in nanoseconds; None is "no limit"."""

    connect_ns: int
    read_ns: int
    total_ns: int | None


OnEnd = Callable[["Exchange", Ending, str], None]


class Exchange:
    """See the module.

    Attributes:
        answer: what goes into the capture; filled on the way, of the present attempt.
        begun_ns: when it got its slot.
        reused: the present attempt runs over a connection that served before.
        resent: it was sent a second time, because such a connection turned out to be closed.
        was_sent: its first byte was written, in this attempt or one before.
        lives: the connection can serve another request; known at the end.
    """

    __slots__ = (
        "__weakref__",
        "_active_ns",
        "_body_begun_at",
        "_connection",
        "_lag_counts",
        "_left",
        "_limits",
        "_num_bytes",
        "_num_parsed",
        "_num_sent",
        "_on_end",
        "_pieces",
        "_reader",
        "_send_error",
        "_stamps",
        "_tally",
        "answer",
        "begun_ns",
        "lives",
        "parser",
        "resent",
        "reused",
        "turn",
        "was_sent",
    )

    def __init__(self, turn: Turn, limits: Limits, tally: Tally, on_end: OnEnd, now_ns: int) -> None:
        self.turn = turn
        self.begun_ns = now_ns
        self.resent = False
        self.was_sent = False
        self._limits = limits
        self._tally = tally
        self._lag_counts = tally.is_first_at(turn.ready_ns)
        self._on_end = on_end
        self._connection: Connection | None = None
        self.answer = Answer(turn.index, Ending.UNSENT, turn.intended_ns)

    # An attempt ----------------------------------------------------------------------------------------

    def connect(self, connection: Connection, num_retries: int) -> None:
        """Begin an attempt on a new connection."""
        self._begin(connection, num_retries, reused=False)
        self.answer.connect_started_ns = monotonic_ns()
        try:
            connection.begin(self._on_connecting)
        except OSError as error:
            self._on_end(self, Ending.CONNECT, describe(error))

    def send_over(self, connection: Connection, num_retries: int) -> None:
        """Begin an attempt on a connection that stands."""
        self._begin(connection, num_retries, reused=True)
        self._send()

    @property
    def is_under_way(self) -> bool:
        """An attempt has begun and not ended."""
        return self._connection is not None

    def release(self) -> Connection:
        """Let go of the attempt's connection; its reads are in the answer then."""
        connection, self._connection = self._connection, None
        assert connection is not None
        del self._reader  # it holds on to us, and nobody collects cycles while a run is on
        answer, stamps = self.answer, self._stamps
        answer.kernel_ns, answer.process_ns = stamps[0::2], stamps[1::2]
        answer.lengths = array("I", map(len, self._pieces))
        answer.pieces = self._pieces
        return connection

    def _begin(self, connection: Connection, num_retries: int, *, reused: bool) -> None:
        self._connection = connection
        self.answer = Answer(self.turn.index, Ending.UNSENT, self.turn.intended_ns, num_retries=num_retries)
        self.parser = ResponseParser()
        self.reused = reused
        self.lives = False
        self._pieces: list[bytes] = []
        # The kernel's stamp and ours of each read, in turn: a read should touch few places in memory.
        self._stamps = array("q")
        self._num_sent = 0
        self._num_parsed = 0
        self._num_bytes = 0
        self._body_begun_at: int | None = None
        self._left = 0
        self._send_error: OSError | None = None
        self._reader: Handler = self._on_head

    # Out -----------------------------------------------------------------------------------------------

    def _on_connecting(self, events: int) -> None:
        assert self._connection is not None
        try:
            if not self._connection.advance(events):
                return
        except OSError as error:
            self._on_end(self, Ending.CONNECT, describe(error))
            return
        self.answer.connected_ns = monotonic_ns()
        self._send()

    def _send(self) -> None:
        assert self._connection is not None
        self._connection.hand_events_to(self._reader)
        self._note_sending()
        if self._send_more():
            self._connection.hand_events_to(self._on_sending)
            self._connection.watch_for_room(True)

    def _note_sending(self) -> None:
        answer = self.answer
        answer.sent_ns = monotonic_ns()
        if not self.was_sent:
            self.was_sent = True
            self._tally.num_sent += 1
            if self._lag_counts and not answer.num_retries:
                connecting_ns = answer.connected_ns - answer.connect_started_ns
                self._tally.send_lags_ns.append(answer.sent_ns - self.turn.ready_ns - connecting_ns)

    def _on_sending(self, events: int) -> None:
        """A large request whose first part is on its way. The answer may come before the last."""
        connection = self._connection
        assert connection is not None
        if not self._send_more():
            connection.watch_for_room(False)
            connection.hand_events_to(self._reader)
        self._reader(events)

    def _send_more(self) -> bool:
        """Send what fits; whether something is left to send."""
        connection, payload = self._connection, self.turn.payload
        assert connection is not None
        self._active_ns = monotonic_ns()
        try:
            while self._num_sent < len(payload) or connection.pending:
                taken = connection.send(payload[self._num_sent :])
                self._num_sent += taken
                if not taken:
                    return True
        except OSError as error:
            # The server may have answered before it closed: what it said is still to be read.
            self._send_error = error
        return False

    # In ------------------------------------------------------------------------------------------------

    def _read(self) -> bytes:
        """Keep what has come. Nothing returned: nothing has come, or the attempt has ended."""
        connection = self._connection
        assert connection is not None
        try:
            data, kernel_ns = connection.receive()
        except BlockingIOError:
            return b""
        except OSError as error:
            self._broken(error)
            return b""
        if not data:
            self._closed()
            return b""
        stamps = self._stamps
        stamps.append(kernel_ns)
        stamps.append(monotonic_ns())
        self._pieces.append(data)
        return data

    def _on_head(self, events: int) -> None:
        """Until the body has begun."""
        if self._read() and self._catch_up():
            self._go_on()
            self._see_end()

    def _go_on(self) -> None:
        parser = self.parser
        if self._body_begun_at is None:
            return
        self._left = parser.num_left_bytes or 0
        if parser.chunked:
            self._reader = self._on_chunked
        elif self._left:
            self._reader = self._on_counted
        else:
            self._reader = self._on_rest
        assert self._connection is not None
        if self._num_sent == len(self.turn.payload):
            self._connection.hand_events_to(self._reader)

    def _on_chunked(self, events: int) -> None:
        data = self._read()
        if data:
            self._tally.num_pieces += 1
            if len(data) < 6 or (data.endswith(_END_OF_CHUNKED) and not data.endswith(_NOT_AN_END)):
                self._catch_up()

    def _on_counted(self, events: int) -> None:
        data = self._read()
        if data:
            self._tally.num_pieces += 1
            self._left -= len(data)
            if self._left <= 0:
                self._complete(surplus=self._left < 0)

    def _on_rest(self, events: int) -> None:
        if self._read():
            self._tally.num_pieces += 1
            self._see_end()

    def _see_end(self) -> None:
        """TLS tells of the end together with the last bytes."""
        if self._connection is not None and self._connection.at_end:
            self._closed()

    def _catch_up(self) -> bool:
        """Parse what has not been parsed yet; whether the answer goes on after it."""
        num_skipped = self.parser.skip_whole_chunks(self._pieces, self._num_parsed)
        unseen = self._pieces[self._num_parsed :]
        self._num_parsed = len(self._pieces)
        self._num_bytes += sum(map(len, unseen))
        try:
            body = self.parser.feed(b"".join(unseen[num_skipped:]))
        except WireError as error:
            self._on_end(self, Ending.GARBAGE, str(error))
            return False
        if (body or num_skipped) and self._body_begun_at is None:
            self._body_begun_at = len(self._pieces) - 1
            self._tally.num_first += 1
            self._tally.num_pieces += 1
        if self.parser.complete:
            self._complete(surplus=False)
            return False
        if self._num_bytes > self.turn.max_answer_bytes:
            words = f"no end of the answer after {self._num_bytes:,} bytes"
            self._on_end(self, Ending.GARBAGE, words)
            return False
        return True

    # Endings -------------------------------------------------------------------------------------------

    @property
    def num_body_reads(self) -> int:
        """Reads of the present attempt that brought bytes of a body."""
        return 0 if self._body_begun_at is None else len(self._pieces) - self._body_begun_at

    def _complete(self, *, surplus: bool) -> None:
        assert self._connection is not None
        whole = self._num_sent == len(self.turn.payload) and not self._connection.pending
        self.lives = whole and self.parser.keep_alive and not surplus and not self._connection.at_end
        self.answer.ended_ns = self._stamps[-1]
        self._on_end(self, Ending.COMPLETE, "")

    def _closed(self) -> None:
        if not self._pieces:
            reset = isinstance(self._send_error, ConnectionResetError)
            ending = Ending.RESET if reset else Ending.DROPPED
            self._on_end(self, ending, "the connection was closed before a byte of an answer")
        elif self._catch_up():
            if self.parser.eof():
                self.answer.ended_ns = monotonic_ns()
                self._on_end(self, Ending.COMPLETE, "")
            else:
                self._on_end(self, Ending.TRUNCATED, f"the connection was closed after {self._so_far()}")

    def _broken(self, error: OSError) -> None:
        self._fail(Ending.RESET, f"{describe(error)} after {self._so_far()}")

    def _fail(self, ending: Ending, detail: str) -> None:
        """Unless the answer turns out to have ended before."""
        if not self._pieces or self._catch_up():
            self._on_end(self, ending, detail)

    def _so_far(self) -> str:
        return f"{sum(map(len, self._pieces)):,} bytes of an answer"

    def look(self, now_ns: int) -> int:
        """See whether time has run out, or the answer ended unnoticed. When to look again, if neither."""
        limits, answer, connection = self._limits, self.answer, self._connection
        assert connection is not None
        again_ns = now_ns + min(LOOK_NS, limits.read_ns)
        if limits.total_ns is not None:
            deadline_ns = self.begun_ns + limits.total_ns
            if now_ns >= deadline_ns:
                self._fail(Ending.TIMED_OUT, f"not done within {limits.total_ns / 1e9:g} s")
                return again_ns
            again_ns = min(again_ns, deadline_ns)
        if answer.sent_ns == NEVER:
            started_ns = answer.connect_started_ns
            deadline_ns = connection.connect_deadline_ns(started_ns, limits.connect_ns)
            if now_ns >= deadline_ns:
                try:
                    connection.try_next()
                except OSError:
                    detail = f"no connection within {limits.connect_ns / 1e9:g} s"
                    self._on_end(self, Ending.CONNECT_TIMEOUT, detail)
                    return again_ns
                deadline_ns = connection.connect_deadline_ns(started_ns, limits.connect_ns)
        else:
            last_ns = max(self._active_ns, self._stamps[-1]) if self._stamps else self._active_ns
            deadline_ns = last_ns + limits.read_ns
            if now_ns >= deadline_ns:
                silent = f"silent for {limits.read_ns / 1e9:g} s after {self._so_far()}"
                self._fail(Ending.STALLED, silent)
                return again_ns
            num_unparsed = len(self._pieces) - self._num_parsed
            quiet = num_unparsed and now_ns - last_ns >= LOOK_NS
            if (quiet or num_unparsed >= _MAX_UNPARSED) and self._catch_up():
                self._go_on()
                self._see_end()
        return min(again_ns, deadline_ns)
