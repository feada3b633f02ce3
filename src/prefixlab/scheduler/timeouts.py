"""When waiting or running has lasted too long.

Owns the deadlines; the scheduler ends whom this names. A request that never ran is bounded by the queue's
limit, from its arrival; one that has run by the other, from its first admission, also while it waits again.

Invariant: no live request's deadline is earlier than `_earliest_s`, so most steps cost one comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from prefixlab.core.errors import RequestTimeoutError
from prefixlab.core.request import Request
from prefixlab.scheduler.config import SchedulerConfig


class Timeouts:
    """See the module."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._queue_timeout_s = config.queue_timeout_s
        self._running_timeout_s = config.running_timeout_s
        self._earliest_s = math.inf

    def watch(self, request: Request) -> None:
        """`request` was added, or admitted for the first time: its deadline is a new one."""
        self._earliest_s = min(self._earliest_s, self._deadline_s(request))

    def expired(self, live: Iterable[Request], now_s: float) -> list[tuple[Request, RequestTimeoutError]]:
        """Requests whose deadline has passed, each with the error that ends it."""
        if now_s <= self._earliest_s:
            return []
        deadlines = [(request, self._deadline_s(request)) for request in live]
        self._earliest_s = min((deadline for _, deadline in deadlines if now_s <= deadline), default=math.inf)
        return [(request, self._error(request)) for request, deadline in deadlines if now_s > deadline]

    def _deadline_s(self, request: Request) -> float:
        if request.scheduled_s is None:
            start_s, timeout_s = request.arrival_s, self._queue_timeout_s
        else:
            start_s, timeout_s = request.scheduled_s, self._running_timeout_s
        return math.inf if timeout_s is None else start_s + timeout_s

    def _error(self, request: Request) -> RequestTimeoutError:
        if request.scheduled_s is None:
            return RequestTimeoutError(f"it waited longer than --queue-timeout-s {self._queue_timeout_s:g}")
        return RequestTimeoutError(f"it ran longer than --running-timeout-s {self._running_timeout_s:g}")
