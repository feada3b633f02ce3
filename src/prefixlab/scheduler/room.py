"""How many pages are spoken for: what the running requests are expected to need until they end.

Owns the new-token ratio; reads pages from the cache manager and progress from the rows. Changes neither.

Invariant: with nothing running, everything that is not locked is to spare.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from prefixlab.cache.base import Match
from prefixlab.cache.manager import CacheManager
from prefixlab.core.request import Request
from prefixlab.scheduler.admission import RatioRule, is_length_certain, num_pages_at_end
from prefixlab.scheduler.rows import RunningRows


class Room:
    """See the module."""

    def __init__(self, cache: CacheManager, rows: RunningRows, rule: RatioRule) -> None:
        self._cache = cache
        self._rows = rows
        self._rule = rule
        self.new_token_ratio = rule.initial

    def num_spare_pages(self) -> int:
        """Pages, free or evictable, that no running request is expected to need. Negative when too many were
        let in."""
        return self._cache.num_available_pages - self._num_reserved_pages()

    def num_missing_pages(self, request: Request, match: Match) -> int:
        """Pages by which `request`, with `match` in its row, is too large to run beside the others until all
        are done; zero or less if it fits."""
        num_spare_pages = self._cache.num_available_pages_beside(match) - self._num_reserved_pages()
        num_pages = num_pages_at_end(
            request.num_tokens,
            request.sampling.max_new_tokens - request.num_output_tokens,
            is_length_certain(request),
            self.new_token_ratio,
            self._cache.page_size,
        )
        return int(num_pages) - len(match.pages) - num_spare_pages

    def num_pages_back(self, requests: Collection[Request]) -> int:
        """At most how many pages are to spare once the running `requests` gave way: what they hold and are
        expected to need. Pages they share with others stay where they are, so it may be fewer."""
        return int(self._num_pages_at_end()[[request.row for request in requests]].sum())

    def _num_reserved_pages(self) -> int:
        """Pages the running requests are expected to take on top of those they hold."""
        num_rows = len(self._rows.num_tokens)
        return int((self._num_pages_at_end() - self._cache.num_row_pages[:num_rows]).sum())

    def _num_pages_at_end(self) -> npt.NDArray[np.int64]:
        """Per row; 0 for a free one."""
        rows = self._rows
        num_left = rows.end_at - rows.num_tokens
        ratio, page_size = self.new_token_ratio, self._cache.page_size
        return num_pages_at_end(rows.num_tokens, num_left, rows.length_is_certain, ratio, page_size)

    # How the ratio moves. -----------------------------------------------------------------------------

    def everybody_decoded(self) -> None:
        """A decode step had room for all."""
        self.new_token_ratio = self._rule.after_decode(self.new_token_ratio)

    def somebody_gave_way(self) -> None:
        """A decode step had not; the rows are those that remain."""
        running = self._rows.requests()
        self.new_token_ratio = self._rule.after_retraction(
            sum(request.num_output_tokens for request in running),
            sum(request.sampling.max_new_tokens for request in running),
            len(running),
        )

    def forget(self) -> None:
        """The scheduler is idle: what was learnt was about another load."""
        self.new_token_ratio = self._rule.initial
