"""The pages themselves, as numbers: which are free, and how many owners each of the others has.

Owns the free list and the reference counts; knows nothing of tokens, trees or tensors. A page has one
reference per owner (the tree is one, each request that has it in its row is one) and is free when the last
lets go.

Invariant: a page is on the free list exactly once if it has no reference, and not at all if it has one.
"""

from __future__ import annotations

import numpy as np

from prefixlab.core.batch import IntArray
from prefixlab.core.errors import CacheError


class PageAllocator:
    """Pages 0 … num_pages - 1, all free at first. A call takes time in proportion to the pages it names."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise CacheError(f"a cache needs at least one page, not {num_pages}")
        self.num_pages = num_pages
        # A stack whose top is the end: pages given back last go out first, while they are warm.
        self._free = np.arange(num_pages - 1, -1, -1, dtype=np.int32)
        self._num_free = num_pages
        self._references = np.zeros(num_pages, dtype=np.int32)

    @property
    def num_free_pages(self) -> int:
        return self._num_free

    @property
    def references(self) -> IntArray:
        """Owners of each page, shape (num_pages,). A copy."""
        return self._references.copy()

    def alloc(self, num_pages: int) -> IntArray:
        """Take free pages, each with one reference: the caller's.

        Raises:
            CacheError: fewer are free. Whoever asks looks at `num_free_pages` first and makes room.
        """
        if num_pages > self._num_free:
            raise CacheError(f"{num_pages} pages asked for, {self._num_free} free")
        rest = self._num_free - num_pages
        pages = self._free[rest : self._num_free][::-1].copy()
        self._num_free = rest
        self._references[pages] = 1
        return pages

    def share(self, pages: IntArray) -> None:
        """One more owner for each of `pages`. Raises CacheError if one is free, named twice, or no page."""
        self._references[pages] = self._counts(pages) + 1

    def free(self, pages: IntArray) -> None:
        """One owner fewer for each of `pages`; those without any are free again.

        Raises:
            CacheError: one of them is free already, named twice, or no page; nothing has changed then.
        """
        counts = self._counts(pages)
        self._references[pages] = counts - 1
        last = pages[counts == 1]
        self._free[self._num_free : self._num_free + len(last)] = last[::-1]
        self._num_free += len(last)

    def _counts(self, pages: IntArray) -> IntArray:
        """References of `pages`, proven to be distinct pages somebody owns."""
        if not len(pages):
            return pages
        if pages.min() < 0 or pages.max() >= self.num_pages:
            raise CacheError(f"not pages of this allocator (0 … {self.num_pages - 1}): {pages}")
        counts = self._references[pages]
        # Writing a position to each page and reading it back finds a page named twice without sorting.
        positions = np.arange(len(pages), dtype=np.int32)
        self._references[pages] = positions
        named_twice = bool((self._references[pages] != positions).any())
        self._references[pages] = counts
        if named_twice:
            raise CacheError(f"a page is named twice: {pages}")
        if counts.min() < 1:
            raise CacheError(f"pages that are free already: {pages[counts < 1]}")
        return counts

    def check(self) -> None:
        """Prove the module's invariant. AssertionError if it does not hold."""
        free = self._free[: self._num_free]
        assert len(np.unique(free)) == len(free), "a page is on the free list twice"
        is_free = np.zeros(self.num_pages, dtype=np.bool_)
        is_free[free] = True
        assert np.array_equal(is_free, self._references == 0), "free list and reference counts disagree"
        assert (self._references >= 0).all(), "a reference count is negative"
