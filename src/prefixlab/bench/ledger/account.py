"""What is known of the hits of a point, from all sides, side by side: what causes are found in. Plain data.

Owns the figures that more than one cause asks for. Names no cause.

Invariant: what is not known is None, and no figure stands in for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from prefixlab.bench.ledger.check import CacheCheck
from prefixlab.bench.ledger.holders import Holders
from prefixlab.bench.ledger.seen import Seen
from prefixlab.bench.records.table import BoolArray, IntArray, RecordTable

TOLERANCE = 0.01
"""Of prompt tokens: closer than that, totals from two sides agree (health checks send prompts too)."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """See the module.

    Attributes:
        table: all repeats.
        check: the answers against what was expected, request by request.
        page_size: None: not known.
        capacity_tokens: of the server's cache; of several servers None.
        footprint_tokens: what a cache must hold at least to forget none of it.
        rounding_tokens: how much more that may be, as caches hold whole pages.
        num_servers: that were asked, each under a URL of its own.
        caching_off: why nothing is ever cached, in the server's words.
        none_expected: why no request was to hit, where somebody asked for that.
        is_cold: the cache was proven empty before.
        is_salted: prompts are such as nobody can have sent before.
        lie: of a reset that was none.
        holders: who had brought each prompt's beginning, by row of `table`.
    """

    table: RecordTable
    check: CacheCheck
    page_size: int | None = None
    capacity_tokens: int | None = None
    footprint_tokens: int | None = None
    rounding_tokens: int = 0
    num_servers: int = 1
    caching_off: str | None = None
    none_expected: str | None = None
    is_cold: bool = False
    is_salted: bool = False
    lie: str | None = None
    seen: Seen = field(default_factory=Seen)
    holders: Holders | None = None

    @cached_property
    def known(self) -> Holders:
        return self.holders or Holders.unknown(len(self.table))

    @cached_property
    def checked(self) -> BoolArray:
        """Shape (n,): finished, told, and known what to expect of."""
        table = self.table
        compared: BoolArray = (
            table.ok & (table.num_expected_cached_tokens >= 0) & (table.num_cached_tokens >= 0)
        )
        return compared

    @cached_property
    def less(self) -> BoolArray:
        fewer: BoolArray = self.checked & (
            self.table.num_cached_tokens < self.table.num_expected_cached_tokens
        )
        return fewer

    @cached_property
    def more(self) -> BoolArray:
        greater: BoolArray = self.checked & (
            self.table.num_cached_tokens > self.table.num_expected_cached_tokens
        )
        return greater

    @cached_property
    def missing(self) -> IntArray:
        """Tokens by which each hit is less than expected, shape (n,)."""
        lacking: IntArray = np.where(
            self.less, self.table.num_expected_cached_tokens - self.table.num_cached_tokens, 0
        )
        return lacking

    @cached_property
    def overlapping(self) -> BoolArray:
        """Shape (n,): hit no less than what had been computed when they were sent, and that is too little."""
        return (
            self.less
            & (self.known.ready >= 0)
            & (self.table.num_cached_tokens >= self.paged(self.known.ready))
        )

    @cached_property
    def apart(self) -> BoolArray:
        """Shape (n,): hit no less than what had been brought to their own server, and that is too little."""
        return (
            self.less & (self.known.here >= 0) & (self.table.num_cached_tokens >= self.paged(self.known.here))
        )

    @cached_property
    def may_overlap(self) -> BoolArray:
        """Shape (n,): the same for a server that keeps nothing of a prompt before its answer has ended."""
        enough = self.table.num_cached_tokens >= self.paged(self.known.ended)
        return self.less & ((self.known.ended < 0) | enough)

    def paged(self, shared: IntArray, page_size: int | None = None) -> IntArray:
        """The hit oracle, shape (n,): of such shared tokens a page at a time, and never a whole prompt."""
        size = page_size or self.page_size or 1
        served: IntArray = np.minimum(shared, self.table.prompt_tokens - 1) // size * size
        return served

    # The servers' own word. -------------------------------------------------------------------------------

    @property
    def answered_tokens(self) -> int:
        """Of prompts that were answered."""
        return self.check.prompt_tokens

    @property
    def foreign_tokens(self) -> int | None:
        """Prompt tokens that the servers counted and we did not send; None where that cannot be told."""
        counts, sent = self.seen.counts, self.seen.sent_tokens
        if counts is None or counts.prompt_tokens is None or sent is None or counts.num_restarts:
            return None
        return max(0, counts.prompt_tokens - sent)

    @property
    def has_foreign(self) -> bool:
        return (self.foreign_tokens or 0) > TOLERANCE * max(1, self.answered_tokens)

    @property
    def is_partial(self) -> bool:
        """The counters are of some of those only who answered."""
        counts = self.seen.counts
        if counts is None or counts.prompt_tokens is None or self.seen.sent_tokens is None:
            return False
        return counts.prompt_tokens < (1 - TOLERANCE) * self.answered_tokens

    @property
    def server_off(self) -> int | None:
        """Cached tokens the servers counted beyond those in answers (below 0: fewer), where both are of the
        same requests and differ; 0 where they agree; None where that cannot be told."""
        counts, cached = self.seen.counts, self.check.cached_tokens
        if counts is None or counts.cached_tokens is None or cached is None or counts.num_restarts:
            return None
        if self.is_partial or self.has_foreign or self.seen.sent_tokens is None:
            return None
        off = counts.cached_tokens - cached
        # What did not end well may have hit too.
        unanswered = max(0, self.seen.sent_tokens - self.answered_tokens)
        slack = TOLERANCE * max(1, self.answered_tokens)
        return 0 if -slack <= off <= slack + unanswered else off

    @property
    def kept_all(self) -> bool:
        """Nothing that was to be hit had been given up: nobody computed it again, or nothing was evicted, or
        there was room for all."""
        counts, events = self.seen.counts, self.seen.events
        if events is not None and events.is_whole:
            return not events.num_stored_again
        if counts is not None and counts.num_evicted == 0 and not counts.num_restarts:
            return True
        return self.fits is True and not self.has_foreign

    @property
    def fits(self) -> bool | None:
        """Whether the cache can hold all of it; None where that is not known."""
        if self.capacity_tokens is None or self.footprint_tokens is None:
            return None
        if self.footprint_tokens > self.capacity_tokens:
            return False
        return True if self.footprint_tokens + self.rounding_tokens <= self.capacity_tokens else None
