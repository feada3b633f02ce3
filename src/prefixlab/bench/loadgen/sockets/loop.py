"""The loop: waits, hands out events, sends what is due, and gives every planned request its one ending.

Owns requests in flight, idle connections, retries, and what goes into the capture. Which request goes when is
the source's to say (`pacing.py`); how one request runs is `exchange.py`.

Invariant: when `run` has returned, the capture holds one Answer for every row, and End. When it has raised,
it holds what had ended, and nothing that looks like an end: the rest is for others to account for.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import deque
from collections.abc import Callable

from prefixlab.bench.loadgen import capture
from prefixlab.bench.loadgen.capture import NEVER, Answer, ClockSample, Ending
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.loadgen.progress import Counter, Counters
from prefixlab.bench.loadgen.sockets.connection import Connection
from prefixlab.bench.loadgen.sockets.deadlines import Deadlines
from prefixlab.bench.loadgen.sockets.exchange import Exchange, Limits, Tally
from prefixlab.bench.loadgen.sockets.pacing import NOT_YET_NS, Source
from prefixlab.bench.loadgen.sockets.poller import Poller
from prefixlab.bench.loadgen.sockets.retries import retry_wait_ns
from prefixlab.bench.loadgen.sockets.stamps import monotonic_ns, sample_clocks

TICK_NS = 50_000_000
"""How often clocks are sampled, counters published and time-outs looked at."""
_MAX_STARTS = 32
"""Requests begun before events are looked at again, so that a burst does not make the loop deaf."""
_MAX_LOOKS = 8
"""Streams looked at between two rounds of events, for the same reason."""
_MAX_WRITES, _MAX_UNWRITTEN = 4, 64
"""Answers written between two rounds of events, and how many may wait for that: when many streams end at
once, reading goes first. What waits would be lost with the process."""
_MAX_DETAIL = 500


class Loop:
    """One worker's share of a run. `cancel` may be called from a signal handler or another thread.

    Args:
        connect: makes a connection that has not begun.
        counters: written for whoever looks.
        capture_fd: open for appending, after the magic.
        stop_ns: nothing is sent from then on (monotonic).
    """

    def __init__(
        self,
        job: Job,
        source: Source,
        poller: Poller,
        connect: Callable[[], Connection],
        counters: Counters,
        capture_fd: int,
        stop_ns: int,
    ) -> None:
        self._job = job
        self._source = source
        self._poller = poller
        self._connect = connect
        self._counters = counters
        self._capture_fd = capture_fd
        self._stop_ns = stop_ns
        self._limits = Limits(job.connect_timeout_ns, job.read_timeout_ns, job.total_timeout_ns)
        self._tally = Tally()
        self._num_ended = 0
        self._in_flight: set[Exchange] = set()
        self._idle: dict[Connection, None] = {}
        self._waiting: list[tuple[int, int, Exchange]] = []  # heap: when to try again, tie-break, who
        self._tie_break = itertools.count()
        self._deadlines: Deadlines[Exchange] = Deadlines(monotonic_ns())
        self._to_look_at: deque[Exchange] = deque()
        self._unwritten: deque[Answer] = deque()
        self._clock = ClockSample(0, 0, 0)
        self._next_tick_ns = 0
        self._wake_ns = 0
        self._starting = False
        self._cancelled = False
        self.health = ClientHealth()

    def run(self) -> None:
        """Until every request has ended, or `cancel`."""
        try:
            self._sample_clocks()
            while not self._cancelled:
                now_ns = monotonic_ns()
                if now_ns >= self._wake_ns and not self._see_to_what_is_due(now_ns):
                    break
                self._poller.dispatch(self._wake_ns)
            self._account_for_the_rest()
        finally:
            self._close()

    def cancel(self) -> None:
        """Give up what is in flight and send nothing more; takes effect within a tick."""
        self._cancelled = True

    def _see_to_what_is_due(self, now_ns: int) -> bool:
        """And work out when something will be due next. False: all is done."""
        if self._source.is_busy:
            self._unwritten.extend(self._source.work())
        if self._next_start_ns(now_ns) <= now_ns:
            self._start_due()
        if self._next_tick_ns <= now_ns:
            self._tick(now_ns)
        if self._to_look_at:
            self._look_at_some(now_ns)
        self._write_some(max(_MAX_WRITES, len(self._unwritten) - _MAX_UNWRITTEN))
        busy = self._to_look_at or self._unwritten or self._source.is_busy
        next_ns = now_ns if busy else self._next_start_ns(now_ns)
        self._wake_ns = min(next_ns, self._next_tick_ns)
        return next_ns != NOT_YET_NS or bool(self._in_flight)

    # Starting ------------------------------------------------------------------------------------------

    def _next_start_ns(self, now_ns: int) -> int:
        next_ns = self._source.next_due_ns()
        if max(next_ns, now_ns) >= self._stop_ns:
            next_ns = NOT_YET_NS
        return min(next_ns, self._waiting[0][0]) if self._waiting else next_ns

    def _start_due(self) -> None:
        if self._starting or self._cancelled:
            return  # a request that fails at once frees a slot while slots are being filled
        self._starting = True
        for _ in range(_MAX_STARTS):
            now_ns = monotonic_ns()
            if self._next_start_ns(now_ns) > now_ns:
                break
            if self._waiting and self._waiting[0][0] <= now_ns:
                exchange = heapq.heappop(self._waiting)[-1]
                exchange.resent = False  # an attempt of its own
                self._begin(exchange, exchange.answer.num_retries + 1)
            else:
                exchange = Exchange(self._source.take(), self._limits, self._tally, self._on_end, now_ns)
                self._in_flight.add(exchange)
                self._begin(exchange, 0)
        self._starting = False
        health = self.health
        health.peak_in_flight = max(health.peak_in_flight, len(self._in_flight))
        health.peak_queued = max(health.peak_queued, self._source.num_queued(monotonic_ns()))

    def _begin(self, exchange: Exchange, num_retries: int, *, fresh: bool = False) -> None:
        if self._idle and not fresh:
            connection, _ = self._idle.popitem()
            self.health.num_reused += 1
            exchange.send_over(connection, num_retries)
        else:
            exchange.connect(self._connect(), num_retries)
        if exchange.is_under_way:
            self._deadlines.set(exchange, exchange.look(monotonic_ns()))

    # Ending --------------------------------------------------------------------------------------------

    def _on_end(self, exchange: Exchange, ending: Ending, detail: str) -> None:
        """An attempt has ended."""
        now_ns = monotonic_ns()
        self._wake_ns = now_ns  # what is due next may have changed
        answer = exchange.answer
        self._let_go(exchange, keep=ending is Ending.COMPLETE and exchange.lives)
        nothing_came = ending in (Ending.DROPPED, Ending.RESET) and not answer.lengths
        if nothing_came and exchange.reused and not exchange.resent:
            # The server closed an idle connection as we used it: not a failure of the request.
            exchange.resent = True
            self.health.num_resends += 1
            self._begin(exchange, answer.num_retries, fresh=True)
            return
        wait_ns = retry_wait_ns(self._job, answer, ending, exchange.parser, now_ns + self._clock.offset_ns)
        if wait_ns is not None and self._may_go_at(exchange, now_ns + wait_ns):
            self.health.num_retries += 1
            self._tally.num_first -= exchange.num_body_reads > 0
            heapq.heappush(self._waiting, (now_ns + wait_ns, next(self._tie_break), exchange))
            return
        self._in_flight.discard(exchange)
        answer.ending = ending
        answer.detail = detail[:_MAX_DETAIL]
        if answer.ended_ns == NEVER:
            answer.ended_ns = now_ns
        exchange.turn.payload.release()
        self._unwritten.append(answer)
        self._source.done(answer, self._freed_ns(answer))
        self._start_due()  # before anything else is seen to: a slot is free

    def _let_go(self, exchange: Exchange, *, keep: bool) -> None:
        """Part an attempt from its connection, which serves others or is closed."""
        self._deadlines.clear(exchange)
        self._tally.num_pieces -= exchange.num_body_reads
        self.health.num_connects += exchange.answer.connected_ns != NEVER
        connection = exchange.release()
        if keep and self._job.reuse_connections:
            self._idle[connection] = None
            connection.hand_events_to(functools.partial(self._on_idle, connection))
        else:
            connection.close()

    def _on_idle(self, connection: Connection, events: int) -> None:
        """The server closed an idle connection, or says something nobody asked for."""
        try:
            connection.receive()
        except BlockingIOError:
            return
        except OSError:
            pass
        del self._idle[connection]
        connection.close()

    def _may_go_at(self, exchange: Exchange, at_ns: int) -> bool:
        total_ns = self._limits.total_ns
        in_time = total_ns is None or at_ns < exchange.begun_ns + total_ns
        return in_time and at_ns < self._stop_ns and not self._cancelled

    def _freed_ns(self, answer: Answer) -> int:
        """When the answer's slot became free: as its last byte arrived, not when we came to read it."""
        kernel_ns = answer.kernel_ns[-1] if answer.kernel_ns else 0
        if answer.ending is not Ending.COMPLETE or not kernel_ns:
            return answer.ended_ns
        return min(max(kernel_ns - self._clock.offset_ns, answer.sent_ns), answer.ended_ns)

    def _write_some(self, num_answers: int) -> None:
        for _ in range(min(num_answers, len(self._unwritten))):
            self._write(self._unwritten.popleft())

    def _write(self, answer: Answer) -> None:
        self._num_ended += 1
        capture.append(self._capture_fd, answer)

    # Housekeeping --------------------------------------------------------------------------------------

    def _tick(self, now_ns: int) -> None:
        self._next_tick_ns = now_ns + TICK_NS
        self._sample_clocks()
        self._to_look_at.extend(self._deadlines.due(now_ns))
        self._publish(now_ns)

    def _look_at_some(self, now_ns: int) -> None:
        for _ in range(min(_MAX_LOOKS, len(self._to_look_at))):
            exchange = self._to_look_at.popleft()
            again_ns = exchange.look(now_ns) if exchange.is_under_way else now_ns
            if exchange.is_under_way:
                self._deadlines.set(exchange, again_ns)

    def _sample_clocks(self) -> None:
        self._clock = sample_clocks()
        capture.append(self._capture_fd, self._clock)

    def _publish(self, now_ns: int) -> None:
        num_queued = self._source.num_queued(now_ns)
        self.health.peak_queued = max(self.health.peak_queued, num_queued)
        values = {
            Counter.DUE: self._source.num_taken + num_queued,
            Counter.SENT: self._tally.num_sent,
            Counter.FIRST: self._tally.num_first,
            Counter.PIECES: self._tally.num_pieces,
            Counter.ENDED: self._num_ended,
            Counter.IN_FLIGHT: len(self._in_flight),
            Counter.PEAK_IN_FLIGHT: self.health.peak_in_flight,
            Counter.QUEUED: num_queued,
            Counter.PEAK_QUEUED: self.health.peak_queued,
        }
        for counter, value in values.items():
            self._counters[counter] = value

    def _account_for_the_rest(self) -> None:
        """What has not ended is cancelled or unsent: this is the end."""
        self._cancelled = True
        self._write_some(len(self._unwritten))
        now_ns = monotonic_ns()
        in_flight, self._in_flight = self._in_flight, set()
        for exchange in in_flight:
            self._drop(exchange)
            answer = exchange.answer
            if exchange.was_sent:
                answer.ending, answer.ended_ns = Ending.CANCELLED, now_ns
            else:
                answer = Answer(answer.index, Ending.UNSENT, answer.intended_ns)
            self._write(answer)
        self._publish(now_ns)
        for index, intended_ns in self._source.remaining(now_ns):
            self._write(Answer(index, Ending.UNSENT, intended_ns))
        self._sample_clocks()
        capture.append(self._capture_fd, capture.End())
        self.health.send_lag_s.extend(self._tally.send_lags_s())

    def _close(self) -> None:
        """Whatever is open; nothing that has ended is lost."""
        self._cancelled = True
        self._write_some(len(self._unwritten))
        for exchange in self._in_flight:
            self._drop(exchange)
        self._in_flight.clear()
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _drop(self, exchange: Exchange) -> None:
        if exchange.is_under_way:
            self._let_go(exchange, keep=False)
        exchange.turn.payload.release()
