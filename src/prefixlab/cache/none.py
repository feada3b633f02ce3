"""The cache that shares nothing: every request computes its whole prompt and keeps its pages to itself.

Behind the same contract as the tree, so the rest of the system has no second code path.

Invariant: it never holds a page.
"""

from __future__ import annotations

import numpy as np

from prefixlab.cache.base import Handle, InsertResult, Match, Receipt
from prefixlab.core.batch import IntArray
from prefixlab.core.block_hash import Namespace, TokenIds
from prefixlab.core.errors import CacheError
from prefixlab.core.kv_events import AllBlocksCleared
from prefixlab.core.seams import EventSink

_NO_PAGES: IntArray = np.empty(0, dtype=np.int32)
_NO_PAGES.setflags(write=False)


class NoneCache:
    """See the module. Its only handle is the root; locks on it are counted as the contract asks."""

    def __init__(self, page_size: int, events: EventSink | None = None) -> None:
        self.page_size = page_size
        self._events = events
        self._root = object()
        self._locks: set[Receipt] = set()
        self._clear()

    @property
    def supports_prefix_sharing(self) -> bool:
        return False

    @property
    def root(self) -> Handle:
        return self._root

    def peek(self, tokens: TokenIds, namespace: Namespace) -> int:
        return 0

    def match(self, tokens: TokenIds, namespace: Namespace) -> Match:
        return Match(0, _NO_PAGES, self._root)

    def insert(
        self,
        tokens: TokenIds,
        pages: IntArray,
        namespace: Namespace,
        *,
        priority: int = 0,
        counted_tokens: int = 0,
    ) -> InsertResult:
        return InsertResult(0, _NO_PAGES, self._root)

    def lock(self, handle: Handle) -> Receipt:
        if handle is not self._root:
            raise CacheError("the handle is not this cache's")
        receipt = object()
        self._locks.add(receipt)
        return receipt

    def unlock(self, receipt: Receipt) -> None:
        if receipt not in self._locks:
            raise CacheError("the receipt was given back before, or another cache issued it")
        self._locks.remove(receipt)

    def evict(self, num_pages: int) -> int:
        return 0

    def reset(self) -> int:
        if self._locks:
            raise CacheError(f"the cache cannot be reset: {len(self._locks)} locks are held")
        self._clear()
        return 0

    @property
    def num_evictable_pages(self) -> int:
        return 0

    @property
    def num_protected_pages(self) -> int:
        return 0

    def cached_pages(self) -> IntArray:
        return _NO_PAGES

    def check(self) -> None:
        """It holds nothing that could be wrong."""

    def _clear(self) -> None:
        if self._events is not None:
            self._events.emit([AllBlocksCleared()])
