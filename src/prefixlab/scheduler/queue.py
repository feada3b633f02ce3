"""The waiting requests, oldest first, and how many of them there may be.

Owns membership and arrival order; the order of service comes from `policies.py`.

Invariant: a request is in here exactly while it has no row and has not ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from prefixlab.core.request import Request
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.scheduler.policies import Matched, order_waiting, urgency


class WaitingQueue:
    """See the module. Taking one out of the middle costs as little as taking the first."""

    def __init__(self, config: SchedulerConfig, page_size: int) -> None:
        self._config = config
        self._page_size = page_size
        self._requests: OrderedDict[str, Request] = OrderedDict()
        self._num_passes = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        """Oldest first."""
        return iter(self._requests.values())

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._requests

    @property
    def is_full(self) -> bool:
        limit = self._config.max_queued_requests
        return limit is not None and len(self._requests) >= limit

    def push(self, request: Request) -> None:
        """A new request goes to the end."""
        self._requests[request.request_id] = request

    def push_first(self, request: Request) -> None:
        """One that ran before goes to the front: it came earlier than all who never ran."""
        self.push(request)
        self._requests.move_to_end(request.request_id, last=False)

    def remove(self, request: Request) -> None:
        del self._requests[request.request_id]

    def in_order(self, matched: Matched) -> Iterable[Request]:
        """As the policy serves them. Good until the queue changes."""
        self._num_passes += 1
        return order_waiting(
            self._requests.values(),
            self._config,
            matched=matched,
            page_size=self._page_size,
            pass_number=self._num_passes,
        )

    def displaceable_by(self, newcomer: Request) -> Request | None:
        """Under the priority policy, the waiting request that gives its place in a full queue to a more
        urgent newcomer: the least urgent, of equals the youngest. Never one that has run: its tokens would
        be lost."""
        if self._config.schedule_policy != "priority":
            return None
        low_first = self._config.schedule_low_priority_values_first
        candidates = [request for request in reversed(self._requests.values()) if request.scheduled_s is None]
        least = min(candidates, key=lambda request: urgency(request, low_first), default=None)
        if least is None or urgency(least, low_first) >= urgency(newcomer, low_first):
            return None
        return least
