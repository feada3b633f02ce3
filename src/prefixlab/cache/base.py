"""The contract of a prefix cache: what it answers, when each call is safe, who owns which pages.

Two implementations: `radix.py` (shares) and `none.py` (does not). `tests/contracts/` runs one class of tests
over both. The scheduler never sees this file; it talks to `manager.py`.

Ownership. A page has a reference for every owner: the tree is one, each request that has it in its row is
one. The cache takes references of its own on insert (`allocator.share`) and gives them back on eviction
(`allocator.free`); it never frees a request's reference, and a request never frees the tree's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from prefixlab.core.batch import IntArray
from prefixlab.core.block_hash import Namespace, TokenIds


class Handle(Protocol):
    """A place in the cache, opaque to callers. Stays valid through splits; void once evicted."""


@dataclass(frozen=True, slots=True)
class Match:
    """The longest cached prefix of some tokens, floored to pages.

    Attributes:
        num_tokens: tokens matched on the device, a multiple of the page size.
        pages: shape (num_tokens // page_size,), int32. Read them only under a lock on `handle`.
        handle: where the match ends; the root when nothing matched.
    """

    num_tokens: int
    pages: IntArray
    handle: Handle


@dataclass(frozen=True, slots=True)
class InsertResult:
    """What an insert found and left.

    Attributes:
        num_existing_tokens: leading tokens that were in the tree before: the caller's pages for them are
            duplicates, which the caller swaps for `pages` and frees.
        pages: shape (inserted tokens // page_size,), int32: the tree's pages for the whole inserted prefix.
        handle: where the inserted prefix ends.
    """

    num_existing_tokens: int
    pages: IntArray
    handle: Handle


class Receipt(Protocol):
    """Proof of one lock; gives the lock back exactly once."""


class PrefixCache(Protocol):
    """A cache of KV pages by token prefix. Not thread-safe: one owner, one thread."""

    page_size: int

    @property
    def supports_prefix_sharing(self) -> bool:
        """Whether a lookup can ever match. False: every lookup is a miss, and forcing one is meaningless."""
        ...

    @property
    def root(self) -> Handle:
        """The place where nothing is matched. Locking it is allowed and protects nothing."""
        ...

    def peek(self, tokens: TokenIds, namespace: Namespace) -> int:
        """Tokens (a multiple of the page size) a `match` would return now. Changes nothing at all."""
        ...

    def match(self, tokens: TokenIds, namespace: Namespace) -> Match:
        """Longest cached prefix. Touches what it matched (recency), may split a node. Takes no lock: the
        answer holds until the next call that may evict, unless its handle is locked first."""
        ...

    def insert(
        self,
        tokens: TokenIds,
        pages: IntArray,
        namespace: Namespace,
        *,
        priority: int = 0,
        counted_tokens: int = 0,
    ) -> InsertResult:
        """Put a computed prefix into the cache; a trailing partial page is ignored.

        Args:
            tokens: shape (n,), int32.
            pages: shape (≥ n // page_size,), int32: the caller's pages for them. The tree shares the
                new ones.
            priority: raises the priority of every node on the path to at least this.
            counted_tokens: tokens this request inserted before: nodes ending within them are not counted
                again, so a request counts once per node however many chunks it comes in.
        """
        ...

    def lock(self, handle: Handle) -> Receipt:
        """Protect the path from the root to `handle` from eviction. Raises CacheError if it was evicted."""
        ...

    def unlock(self, receipt: Receipt) -> None:
        """Give a lock back. Raises CacheError on a second time, or if another cache issued it."""
        ...

    def evict(self, num_pages: int) -> int:
        """Give up to `num_pages` unlocked pages back to the allocator, least worth keeping first; a long
        leaf is trimmed from its tail rather than dropped whole. Returns how many: fewer only if no more
        were evictable. Zero is a no-op."""
        ...

    def reset(self) -> int:
        """Drop everything. Returns pages dropped. Raises CacheError while any lock is held."""
        ...

    @property
    def num_evictable_pages(self) -> int: ...

    @property
    def num_protected_pages(self) -> int: ...

    def cached_pages(self) -> IntArray:
        """Every page the cache holds a reference to, in no order. Slow: for checks."""
        ...

    def check(self) -> None:
        """Recompute every size and invariant the slow way; raises AssertionError where one does not hold."""
        ...
