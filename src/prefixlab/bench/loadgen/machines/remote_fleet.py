"""A fleet spread over machines that are called from afar: each does its share, and its lines come back here.

Owns what passes between in a run: shares of the job go out, lines and counters come back into the job's
folder as if they had been written there. Knows no network: a node is whatever answers the calls of `node.py`.
A node that is lost takes only its own requests with it.

Clocks: a run starts at one moment of our clock, which each node is told in its own (`clocks.py`).

Invariant: no process of a run outlives its block on a node that still answers; a line fetched is written
before the next is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.fleet import TICK_S, FleetEnd, Interrupts
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.machines.clocks import Exchange, Offset, estimate, node_clock
from prefixlab.bench.loadgen.machines.node import News
from prefixlab.bench.loadgen.progress import open_counters
from prefixlab.bench.loadgen.sockets.stamps import monotonic_ns
from prefixlab.core.clock import Clock, sleep
from prefixlab.core.errors import ConfigError, EngineError

ANSWER_S = 60.0
"""The longest silence of a node before it counts as lost."""
POLL_S = 0.5
NUM_EXCHANGES = 64
_HEAD_START_S = 0.5
"""From saying `go` to the run's start: time for every node to hear it."""
_CLOSING_S = 15.0


class RemoteNode(Protocol):
    """A machine that answers the calls of `node.Node`, in the order they are made.

    Attributes:
        lost: why it is not called any more.
    """

    lost: str | None

    @property
    def name(self) -> str: ...

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Never raises: what goes wrong is in the future."""
        ...

    def kill(self) -> None:
        """End what runs there for us, however far it is; returns at once."""
        ...


@dataclass(eq=False)
class _Post:
    """A node at work.

    Attributes:
        have: worker → bytes of its lines that are in our folder.
        before: its clock as the run began.
        news: an answer under way, asked for at `asked_s`.
        end: what came of its share, once it has ended.
    """

    node: RemoteNode
    workers: Sequence[int]
    have: dict[int, int]
    before: Offset = field(default_factory=lambda: Offset(0, 0))
    news: Future[News] | None = None
    asked_s: float = float("-inf")
    is_ready: bool = False
    end: FleetEnd | None = None

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.node.lost is not None


class RemoteFleet:
    """See `Fleet`: the first of n nodes has workers 0, n, 2n …, and so on."""

    def __init__(self, nodes: Sequence[RemoteNode], folder: Path, num_workers: int, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._posts: list[_Post] = []
        for first, node in enumerate(nodes):
            workers = range(first, num_workers, len(nodes))
            self._posts.append(_Post(node, workers, have=dict.fromkeys(workers, 0)))
        self._counters = [open_counters(jobs.progress_path(folder, worker)) for worker in range(num_workers)]

    def __enter__(self) -> Self:
        try:
            self._together([("open",) for _ in self._posts])
            shares = [jobs.share(self._folder, post.workers) for post in self._posts]
            for pieces in zip_longest(*shares):
                self._together([None if piece is None else ("write", *piece) for piece in pieces])
            self._together([("prepare", post.workers) for post in self._posts])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        closing = {post.node.call("close"): post for post in self._posts if post.node.lost is None}
        for future in wait(closing, timeout=_CLOSING_S).not_done:
            self._lose(closing[future], "did not end its processes when asked")

    def wait_until_ready(self) -> None:
        while waiting := [post for post in self._posts if not post.is_ready]:
            self._listen(waiting, TICK_S)
            for post in waiting:
                if post.node.lost is not None:
                    raise EngineError(post.node.lost)

    def start(self) -> int:
        for post in self._posts:
            post.before = self._ask_clock(post)
        start_ns = round((self._clock.now() + _HEAD_START_S) * 1e9)
        jobs.write_start(self._folder, start_ns)
        for post in self._posts:
            post.node.call("go", start_ns + post.before.offset_ns)
        return start_ns

    def watch(self, interrupts: Interrupts, on_tick: Callable[[], None]) -> None:
        stopped = False
        while active := [post for post in self._posts if not post.is_over]:
            self._listen(active, POLL_S)
            if interrupts.count and not stopped:
                stopped = True
                for post in active:
                    post.node.call("stop")
            on_tick()

    def end(self) -> FleetEnd:
        end = FleetEnd()
        for post in self._posts:
            node, after = post.node, None
            if post.end is None:
                end.deaths |= dict.fromkeys(post.workers, node.lost or "")
            else:
                end.health.merge(post.end.health)
                end.deaths |= {worker: f"{node.name}: {death}" for worker, death in post.end.deaths.items()}
                after = self._clock_now(post)
            lost = node.lost if post.end is None else None  # afterwards it is no loss to this run
            clock = node_clock(node.name, len(post.workers), post.before, after, lost)
            end.health.nodes.append(clock)
        return end

    def _clock_now(self, post: _Post) -> Offset | None:
        """None if nobody answers: its share is done, so nothing else is lost with it."""
        try:
            return self._ask_clock(post)
        except EngineError:
            return None

    def _ask_clock(self, post: _Post) -> Offset:
        exchanges = []
        for _ in range(NUM_EXCHANGES):
            asked_ns = monotonic_ns()
            remote_ns = self._result(post, post.node.call("clock_ns"))
            exchanges.append(Exchange(asked_ns, remote_ns, monotonic_ns()))
        return estimate(exchanges)

    def _together(self, calls: Sequence[tuple[Any, ...] | None]) -> None:
        """A call to each node, None for those that have nothing to do, until all have answered."""
        asked = [
            (post, post.node.call(*call))
            for post, call in zip(self._posts, calls, strict=True)
            if call is not None
        ]
        for post, future in asked:
            self._result(post, future)

    def _result(self, post: _Post, future: Future[Any]) -> Any:
        """Raises EngineError if the node is lost."""
        try:
            return future.result(ANSWER_S)
        except Exception as error:
            raise EngineError(self._lose(post, why(error))) from None

    def _listen(self, posts: Sequence[_Post], every_s: float) -> None:
        """Ask who has not been asked for so long, wait a tick at most, and take in what was answered."""
        now_s = self._clock.now()
        for post in posts:
            if post.news is None and now_s >= post.asked_s + every_s:
                post.news, post.asked_s = post.node.call("news", post.have), now_s
        pending = [post.news for post in posts if post.news is not None]
        if pending:
            wait(pending, timeout=TICK_S)
        else:
            sleep(TICK_S)
        for post in posts:
            if post.news is not None and post.news.done():
                self._take(post, post.news)
            elif post.news is not None and self._clock.now() > post.asked_s + ANSWER_S:
                self._lose(post, f"silent for {ANSWER_S:.0f} s")

    def _take(self, post: _Post, answer: Future[News]) -> None:
        post.news = None
        try:
            news = answer.result()
        except Exception as error:
            self._lose(post, why(error))
            return
        for worker, lines in news.lines.items():
            with jobs.records_path(self._folder, worker).open("ab") as file:
                file.write(lines)
            post.have[worker] += len(lines)
        for worker, counters in news.counters.items():
            self._counters[worker][:] = np.frombuffer(counters, np.int64)
        if news.refused is not None:
            raise ConfigError(f"{post.node.name}: {news.refused}")
        if news.broken is not None:
            self._lose(post, news.broken)
        post.is_ready = news.ready
        if news.health is not None:
            if news.lines:
                post.asked_s = float("-inf")  # there may be more
            else:
                post.end = FleetEnd(ClientHealth.from_json(news.health), news.deaths)

    def _lose(self, post: _Post, reason: str) -> str:
        """Give the node up; returns the sentence about it."""
        post.node.lost = f"{post.node.name} was lost: {reason}"
        post.node.kill()
        return post.node.lost


def why(error: BaseException) -> str:
    """The first line of what an error says, or else its kind."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
