"""What goes first: the eviction policies as pure functions, and the queue of nodes that may go.

Owns the order. The tree says which nodes may go (leaves nobody locks) and does the evicting.

Invariant: the queue's live entries are exactly the nodes added and not discarded or popped since, each at the
key it had when last added; the heap holds at most about twice as many entries as live ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from prefixlab.cache.tree_node import TreeNode
from prefixlab.core.errors import ConfigError


class Evictable(Protocol):
    """What a policy may look at. `created` and `accessed` are ticks of a counter, not seconds."""

    @property
    def hit_count(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def created(self) -> int: ...
    @property
    def accessed(self) -> int: ...


Key = tuple[int, int]
"""Lower goes first."""


def lru(node: Evictable) -> Key:
    """Least recently used."""
    return (0, node.accessed)


def mru(node: Evictable) -> Key:
    """Most recently used: for scans longer than the cache, which lru would never hit."""
    return (0, -node.accessed)


def fifo(node: Evictable) -> Key:
    """Oldest."""
    return (0, node.created)


def filo(node: Evictable) -> Key:
    """Youngest."""
    return (0, -node.created)


def lfu(node: Evictable) -> Key:
    """Least often used; among those, least recently."""
    return (node.hit_count, node.accessed)


def priority(node: Evictable) -> Key:
    """Lowest priority; among those, least recently used."""
    return (node.priority, node.accessed)


def slru(protected_threshold: int) -> Callable[[Evictable], Key]:
    """Segmented lru: prefixes used fewer than `protected_threshold` times go before all others."""

    def key(node: Evictable) -> Key:
        return (1 if node.hit_count >= protected_threshold else 0, node.accessed)

    return key


def policy_key(policy: str, *, slru_protected_threshold: int) -> Callable[[Evictable], Key]:
    """The key of a policy by its name. Raises ConfigError if nobody knows it."""
    if policy == "slru":
        return slru(slru_protected_threshold)
    simple = {"lru": lru, "mru": mru, "fifo": fifo, "filo": filo, "lfu": lfu, "priority": priority}
    if policy not in simple:
        raise ConfigError(f"--eviction-policy {policy!r} is not known")
    return simple[policy]


class EvictionQueue:
    """Nodes in order of a policy. A heap whose stale entries are skipped when met, and swept when they are
    the larger part: O(log n) per call, amortised, never a look at all leaves."""

    def __init__(self, key: Callable[[Evictable], Key]) -> None:
        self._key = key
        # The ticket settles ties by age of entry and tells a node's live entry from its stale ones.
        self._heap: list[tuple[Key, int, TreeNode]] = []
        self._last_ticket = 0
        self._num_live = 0

    def __len__(self) -> int:
        return self._num_live

    def add(self, node: TreeNode) -> None:
        """Queue `node`, or queue it anew because its key may have changed."""
        self._num_live += not node.ticket
        self._last_ticket += 1
        node.ticket = self._last_ticket
        heapq.heappush(self._heap, (self._key(node), node.ticket, node))
        if len(self._heap) > 2 * self._num_live + 64:
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].ticket]
            heapq.heapify(self._heap)

    def discard(self, node: TreeNode) -> None:
        """Take `node` out if it is in."""
        self._num_live -= bool(node.ticket)
        node.ticket = 0

    def pop(self) -> TreeNode | None:
        """Take out the node that goes first; None if there is none."""
        while self._heap:
            _, ticket, node = heapq.heappop(self._heap)
            if ticket == node.ticket:
                self.discard(node)
                return node
        return None
