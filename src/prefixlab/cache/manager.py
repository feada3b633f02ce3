"""The cache as the scheduler sees it: a request's pages, from admission to release.

Owns the page table, the page allocator and the prefix cache; knows requests, not batches. Every lookup that
admits or orders a request goes through `lookup`, and nothing else calls `PrefixCache.match` or `peek` for one.

Invariant: a running request's row holds exactly the pages `num_row_pages` says; after every call
free + cached + in-use pages = all pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefixlab.cache.base import Match, PrefixCache
from prefixlab.cache.config import CacheConfig
from prefixlab.core.batch import BoolArray, IntArray
from prefixlab.core.request import Request
from prefixlab.core.seams import EventSink


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Pages by state, and what the cache did since it was made (cumulative, never reset by `reset`)."""

    num_pages: int
    num_free_pages: int
    num_cached_pages: int
    """Pages the tree holds: evictable and protected."""
    num_evictable_pages: int
    num_protected_pages: int
    num_in_use_pages: int
    """Pages only running requests hold."""
    num_evicted_pages_total: int
    num_inserted_pages_total: int


class CacheManager:
    """Construction: `CacheManager(config, num_pages=…, max_rows=…, max_tokens_per_row=…, events=None)`.

    Raises ConfigError at construction when `config.force_miss` meets a cache that shares nothing.
    """

    page_size: int
    num_pages: int
    page_table: IntArray  # shape (max_rows, max pages per row); the scheduler passes it on in Batch
    num_row_pages: IntArray  # shape (max_rows,): pages each row holds
    cache: PrefixCache

    def __init__(
        self,
        config: CacheConfig,
        *,
        num_pages: int,
        max_rows: int,
        max_tokens_per_row: int,
        events: EventSink | None = None,
    ) -> None:
        raise NotImplementedError

    # Lookup: the only gate. -------------------------------------------------------------------------

    def lookup(self, request: Request, *, touch: bool) -> Match:
        """What the cache holds of `request`'s tokens (prompt, and output if it was retracted), never all of
        them (`hit_oracle`), nothing at all for a request that wants prompt logprobs.

        `touch=False` (ordering the queue) changes nothing and returns a Match without pages; `touch=True`
        (admission) touches and may split. Under force-miss (config's or request's) the cache is asked all
        the same, and the answer is "nothing matched, stand at the root", same dtype.
        """
        raise NotImplementedError

    def lookup_computing(self, request: Request, computing: ComputingPrefixes) -> int:
        """Tokens (a multiple of the page size) of `request` that requests now being prefilled will have put
        into the cache when they are done: for in-batch deferral. Under force-miss 0, through the same gate."""
        raise NotImplementedError

    # A request's pages: admit → grow* → checkpoint* → release. ---------------------------------------

    @property
    def num_available_pages(self) -> int:
        """Free and evictable pages: what `grow` could hand out now."""
        raise NotImplementedError

    def admit(self, request: Request, match: Match, row: int) -> None:
        """Lock `match`, put its pages into `row`, and set `request.row`, `num_computed_tokens`, and, on first
        admission only, `num_cached_tokens` (capped at the prompt). Call right after the lookup that made `match`."""
        raise NotImplementedError

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Make the row hold pages for tokens [0, num_tokens), evicting as needed. All or nothing."""
        raise NotImplementedError

    def grow_rows(self, rows: IntArray, needs_page: BoolArray) -> bool:
        """One more page for each of `rows` where `needs_page`; vectorised for decode. All or nothing."""
        raise NotImplementedError

    def checkpoint(self, request: Request, num_tokens: int) -> None:
        """Tokens [0, num_tokens) of the request are computed: their full pages enter the tree, so siblings
        match them. Duplicates of pages already there are swapped for the tree's and freed; the request's lock
        moves to the new end. Not gated: what it computed itself stays its own."""
        raise NotImplementedError

    def release(self, request: Request, *, num_computed_tokens: int, insert: bool = True) -> None:
        """The request gives up its row: computed pages enter the tree (unless `insert` is False), the partial
        page and everything else it holds goes back, its lock is released, `request.row = -1`. Safe to
        call once per admission."""
        raise NotImplementedError

    # Whole cache. ------------------------------------------------------------------------------------

    def reset(self) -> int:
        """Drop everything cached; returns pages dropped. Raises CacheError while requests hold pages."""
        raise NotImplementedError

    def stats(self) -> CacheStats:
        raise NotImplementedError

    def check(self) -> None:
        """Conservation and every invariant of tree and allocator, the slow way. AssertionError if broken."""
        raise NotImplementedError


class ComputingPrefixes:
    """The prompts being prefilled right now, indexed by first page: who must wait for whom.

    Built by the scheduler per pass; holds no pages.
    """

    def __init__(self, page_size: int) -> None:
        raise NotImplementedError

    def add(self, request: Request) -> None:
        raise NotImplementedError
