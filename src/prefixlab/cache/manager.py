"""The cache as the scheduler sees it: a request's pages, from admission to release.

Owns the page table, the page allocator and the prefix cache; knows requests, not batches. Every lookup that
admits or orders a request is `lookup` or `lookup_computing`, both of which pass one gate; nothing else calls
`PrefixCache.match` or `peek` for one.

    row of a running request       [0 … num_tree_pages)        [num_tree_pages … num_row_pages)
    pages are                      the tree's, under its lock   its own: computed, being computed, or ahead
    at checkpoint                  —                            full computed ones enter the tree, or are
                                                                swapped for the tree's where it has them
    at release                     given back, lock released    given back

Invariant: a running request's row holds exactly the pages `num_row_pages` says; after every call
free + cached + in-use pages = all pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefixlab.cache.base import Match, PrefixCache, Receipt
from prefixlab.cache.config import CacheConfig
from prefixlab.cache.eviction import policy_key
from prefixlab.cache.none import NoneCache
from prefixlab.cache.pages import PageAllocator
from prefixlab.cache.radix import RadixCache
from prefixlab.cache.tree_node import common_length
from prefixlab.core.batch import BoolArray, IntArray
from prefixlab.core.block_hash import Namespace, TokenIds
from prefixlab.core.errors import CacheError, ConfigError
from prefixlab.core.hit_oracle import expected_cached_tokens
from prefixlab.core.request import Request
from prefixlab.core.seams import EventSink

TIER_DEVICE = "device"

_NO_PAGES: IntArray = np.empty(0, dtype=np.int32)


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


@dataclass(slots=True)
class _Lease:
    """What a running request holds, besides its row."""

    receipt: Receipt
    num_tree_pages: int
    """Leading pages of its row that are the tree's, under `receipt`."""


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
        self.page_size = config.page_size
        self.num_pages = num_pages
        self.page_table = np.zeros((max_rows, -(-max_tokens_per_row // config.page_size)), dtype=np.int32)
        self.num_row_pages = np.zeros(max_rows, dtype=np.int32)
        self._allocator = PageAllocator(num_pages)
        self.cache = _make_cache(config, self._allocator, events)
        if config.force_miss and not self.supports_force_miss:
            raise ConfigError(
                f"--force-miss needs a cache that shares prefixes; --cache {config.cache} does not"
            )
        self._force_miss = config.force_miss
        self._num_evicted_pages = 0
        self._num_inserted_pages = 0

    # Lookup: the only gate. -------------------------------------------------------------------------

    @property
    def supports_force_miss(self) -> bool:
        """Whether a forced miss means anything here. If not, the edge refuses requests that ask for one."""
        return self.cache.supports_prefix_sharing

    def lookup(self, request: Request, *, touch: bool) -> Match:
        """What the cache holds of `request`'s tokens (prompt, and output if it was retracted), never all of
        them (`hit_oracle`), nothing at all for a request that wants prompt logprobs.

        `touch=False` (ordering the queue) changes nothing and returns a Match without pages; `touch=True`
        (admission) touches and may split. Under force-miss (config's or request's) the cache is asked all
        the same, and the answer is "nothing matched, stand at the root", same dtype.
        """
        tokens = self._readable_tokens(request)
        if touch:
            match = self.cache.match(tokens, request.namespace)
        else:
            match = Match(self.cache.peek(tokens, request.namespace), _NO_PAGES, self.cache.root)
        return self._gate(request, match)

    def lookup_computing(self, request: Request, computing: ComputingPrefixes) -> int:
        """Tokens (a multiple of the page size) of `request` that requests now being prefilled will have put
        into the cache when they are done: for in-batch deferral. Under force-miss 0, by the same gate."""
        num_tokens = 0
        if self.cache.supports_prefix_sharing:
            num_tokens = computing.common_tokens(self._readable_tokens(request), request.namespace)
        return self._gate(request, Match(num_tokens, _NO_PAGES, self.cache.root)).num_tokens

    def _gate(self, request: Request, match: Match) -> Match:
        """Every answer that admits or orders a request passes here, and only here is a miss forced."""
        if self._force_miss or request.force_miss:
            return Match(0, match.pages[:0], self.cache.root)
        return match

    def _readable_tokens(self, request: Request) -> TokenIds:
        """The tokens whose KV the request may take from the cache instead of computing it."""
        if request.return_prompt_logprobs:
            return request.prompt_token_ids[:0]
        num_tokens = request.num_tokens
        return request.token_ids(expected_cached_tokens(num_tokens, num_tokens, self.page_size))

    # A request's pages: admit → grow* → checkpoint* → release. ---------------------------------------

    @property
    def num_available_pages(self) -> int:
        """Free and evictable pages: what `grow` could hand out now."""
        return self._allocator.num_free_pages + self.cache.num_evictable_pages

    def num_available_pages_beside(self, match: Match) -> int:
        """`num_available_pages` as it would be with `match` admitted: what it alone keeps from eviction no
        longer counts. For deciding, before `admit`, whether the rest of a request fits."""
        receipt = self.cache.lock(match.handle)
        num_pages = self.num_available_pages
        self.cache.unlock(receipt)
        return num_pages

    def admit(self, request: Request, match: Match, row: int) -> None:
        """Lock `match`, put its pages into `row`, and set `request.row`, `num_computed_tokens`, and, on first
        admission only, `num_cached_tokens` (capped at the prompt). Call right after the lookup."""
        if len(match.pages) * self.page_size != match.num_tokens:
            raise CacheError("the match was looked up without touching, so it names no pages to admit")
        if request.lease is not None:
            raise CacheError(f"request {request.request_id!r} holds row {request.row} already")
        if self.num_row_pages[row]:
            raise CacheError(f"row {row} is taken")
        num_matched_pages = len(match.pages)
        request.lease = _Lease(self.cache.lock(match.handle), num_matched_pages)
        self._allocator.share(match.pages)
        self.page_table[row, :num_matched_pages] = match.pages
        self.num_row_pages[row] = num_matched_pages
        request.row = row
        request.num_computed_tokens = match.num_tokens
        if request.num_cached_tokens is None:
            request.num_cached_tokens = min(match.num_tokens, request.num_prompt_tokens)
            request.num_cached_tokens_by_tier = {TIER_DEVICE: request.num_cached_tokens}

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Make the row hold pages for tokens [0, num_tokens), evicting as needed. All or nothing."""
        row = request.row
        num_held = int(self.num_row_pages[row])
        num_wanted = -(-num_tokens // self.page_size)
        if num_wanted <= num_held:
            return True
        if num_wanted > self.page_table.shape[1]:
            raise CacheError(f"{num_tokens} tokens do not fit a row of {self.page_table.shape[1]} pages")
        if not self._make_room(num_wanted - num_held):
            return False
        self.page_table[row, num_held:num_wanted] = self._allocator.alloc(num_wanted - num_held)
        self.num_row_pages[row] = num_wanted
        return True

    def grow_rows(self, rows: IntArray, needs_page: BoolArray) -> bool:
        """One more page for each of `rows` where `needs_page`; vectorised for decode. All or nothing."""
        growing = rows[needs_page]
        if not len(growing):
            return True
        if not self._make_room(len(growing)):
            return False
        num_held = self.num_row_pages[growing]
        self.page_table[growing, num_held] = self._allocator.alloc(len(growing))
        self.num_row_pages[growing] = num_held + 1
        return True

    def checkpoint(self, request: Request, num_tokens: int) -> None:
        """Tokens [0, num_tokens) of the request are computed: their full pages enter the tree, so siblings
        match them. Duplicates of pages already there are swapped for the tree's and freed; the request's lock
        moves to the new end. Not gated: what it computed itself stays its own."""
        lease = _lease_of(request)
        num_full_pages = num_tokens // self.page_size
        if num_full_pages < lease.num_tree_pages:
            raise CacheError(
                f"{num_tokens} tokens are fewer than request {request.request_id!r} has from the tree"
            )
        own_pages = self.page_table[request.row]
        result = self.cache.insert(
            request.token_ids(num_full_pages * self.page_size),
            own_pages[:num_full_pages],
            request.namespace,
            priority=request.priority,
            counted_tokens=request.num_inserted_tokens,
        )
        num_tree_pages = len(result.pages)
        num_existing_pages = result.num_existing_tokens // self.page_size
        duplicates = slice(lease.num_tree_pages, num_existing_pages)
        self._allocator.free(own_pages[duplicates])
        self._allocator.share(result.pages[duplicates])
        own_pages[duplicates] = result.pages[duplicates]

        # The new lock first: nothing on the path is unprotected in between.
        receipt = self.cache.lock(result.handle)
        self.cache.unlock(lease.receipt)
        request.lease = _Lease(receipt, num_tree_pages)
        request.num_inserted_tokens = max(request.num_inserted_tokens, num_tree_pages * self.page_size)
        self._num_inserted_pages += num_tree_pages - num_existing_pages

    def release(self, request: Request, *, num_computed_tokens: int, insert: bool = True) -> None:
        """The request gives up its row: computed pages enter the tree (unless `insert` is False), the partial
        page and everything else it holds goes back, its lock is released, `request.row = -1`. Safe to
        call once per admission."""
        if insert:
            self.checkpoint(request, num_computed_tokens)
        lease = _lease_of(request)
        self.cache.unlock(lease.receipt)
        self._allocator.free(self.page_table[request.row, : self.num_row_pages[request.row]])
        self.num_row_pages[request.row] = 0
        request.lease = None
        request.row = -1

    def _make_room(self, num_pages: int) -> bool:
        """Evict until `num_pages` are free; False, and nothing evicted, where that cannot be."""
        num_missing = num_pages - self._allocator.num_free_pages
        if num_missing <= 0:
            return True
        if num_missing > self.cache.num_evictable_pages:
            return False
        self._num_evicted_pages += self.cache.evict(num_missing)
        return True

    # Whole cache. ------------------------------------------------------------------------------------

    def reset(self) -> int:
        """Drop everything cached; returns pages dropped. Raises CacheError while requests hold pages."""
        return self.cache.reset()

    def stats(self) -> CacheStats:
        num_evictable = self.cache.num_evictable_pages
        num_protected = self.cache.num_protected_pages
        num_free = self._allocator.num_free_pages
        return CacheStats(
            num_pages=self.num_pages,
            num_free_pages=num_free,
            num_cached_pages=num_evictable + num_protected,
            num_evictable_pages=num_evictable,
            num_protected_pages=num_protected,
            num_in_use_pages=self.num_pages - num_free - num_evictable - num_protected,
            num_evicted_pages_total=self._num_evicted_pages,
            num_inserted_pages_total=self._num_inserted_pages,
        )

    def check(self) -> None:
        """Conservation and every invariant of tree and allocator, the slow way. AssertionError if broken."""
        self._allocator.check()
        self.cache.check()
        cached_pages = self.cache.cached_pages()
        owners = np.bincount(cached_pages, minlength=self.num_pages)
        for row in np.flatnonzero(self.num_row_pages):
            owners += np.bincount(self.page_table[row, : self.num_row_pages[row]], minlength=self.num_pages)
        assert np.array_equal(owners, self._allocator.references), (
            "a page has owners nobody knows, or too few"
        )
        stats = self.stats()
        assert stats.num_cached_pages == len(cached_pages), (
            "evictable + protected pages are not the cached ones"
        )
        assert stats.num_free_pages == int((owners == 0).sum()), (
            "free + cached + in-use pages are not all pages"
        )


class ComputingPrefixes:
    """The prompts being prefilled right now, indexed by first page: who must wait for whom.

    Built by the scheduler per pass; holds no pages.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._by_first_page: dict[tuple[Namespace, bytes], list[TokenIds]] = {}

    def add(self, request: Request) -> None:
        """`request` is being prefilled: all its full pages will be in the cache when that is done."""
        tokens = request.token_ids()
        if len(tokens) >= self._page_size:
            self._by_first_page.setdefault(self._key(tokens, request.namespace), []).append(tokens)

    def common_tokens(self, tokens: TokenIds, namespace: Namespace) -> int:
        """Longest prefix of `tokens`, in whole pages, that one of the prompts starts with."""
        if len(tokens) < self._page_size:
            return 0
        prompts = self._by_first_page.get(self._key(tokens, namespace), ())
        longest = max((common_length(tokens, prompt) for prompt in prompts), default=0)
        return longest // self._page_size * self._page_size

    def _key(self, tokens: TokenIds, namespace: Namespace) -> tuple[Namespace, bytes]:
        return namespace, tokens[: self._page_size].tobytes()


def _make_cache(config: CacheConfig, allocator: PageAllocator, events: EventSink | None) -> PrefixCache:
    if config.cache == "none":
        return NoneCache(config.page_size, events)
    key = policy_key(config.eviction_policy, slru_protected_threshold=config.slru_protected_threshold)
    return RadixCache(allocator, config.page_size, key, events)


def _lease_of(request: Request) -> _Lease:
    lease = request.lease
    if not isinstance(lease, _Lease):
        raise CacheError(f"request {request.request_id!r} holds no pages")
    return lease
