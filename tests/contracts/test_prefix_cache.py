"""The contract of `cache/base.py`, over every cache there is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from prefixlab.cache.base import PrefixCache
from prefixlab.cache.eviction import lru
from prefixlab.cache.none import NoneCache
from prefixlab.cache.pages import PageAllocator
from prefixlab.cache.radix import RadixCache
from prefixlab.core.block_hash import PUBLIC, Namespace, as_token_ids
from prefixlab.core.errors import CacheError
from prefixlab.core.kv_events import AllBlocksCleared
from prefixlab.core.seams import EventSink
from tests.fakes import EventList

NUM_PAGES = 64
TOKENS = as_token_ids(range(21))

MakeCache = Callable[[PageAllocator, int, EventSink | None], PrefixCache]


def make_radix(allocator: PageAllocator, page_size: int, events: EventSink | None) -> PrefixCache:
    return RadixCache(allocator, page_size, lru, events)


def make_none(allocator: PageAllocator, page_size: int, events: EventSink | None) -> PrefixCache:
    return NoneCache(page_size, events)


@pytest.mark.parametrize("make", [make_radix, make_none])
@pytest.mark.parametrize("page_size", [1, 4, 16])
class TestPrefixCache:
    @pytest.fixture
    def allocator(self) -> PageAllocator:
        return PageAllocator(NUM_PAGES)

    @pytest.fixture
    def cache(self, make: MakeCache, page_size: int, allocator: PageAllocator) -> PrefixCache:
        return make(allocator, page_size, None)

    def test_an_empty_cache_matches_nothing_and_stands_at_the_root(self, cache: PrefixCache) -> None:
        match = cache.match(TOKENS, PUBLIC)
        assert match.num_tokens == cache.peek(TOKENS, PUBLIC) == 0
        assert match.pages.shape == (0,)
        assert match.pages.dtype == np.int32
        assert match.handle is cache.root

    def test_no_tokens_match_nothing(self, cache: PrefixCache) -> None:
        assert cache.match(TOKENS[:0], PUBLIC).num_tokens == cache.peek(TOKENS[:0], PUBLIC) == 0

    def test_a_match_is_what_a_peek_said_and_as_long_as_its_pages(
        self, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        cache.insert(TOKENS, allocator.alloc(21), PUBLIC)
        for stop in range(len(TOKENS) + 1):
            promised = cache.peek(TOKENS[:stop], PUBLIC)
            match = cache.match(TOKENS[:stop], PUBLIC)
            assert match.num_tokens == promised == len(match.pages) * cache.page_size <= stop
            cache.check()

    def test_a_cache_that_shares_finds_what_was_inserted(
        self, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        pages = allocator.alloc(21)
        num_full_pages = len(TOKENS) // cache.page_size
        result = cache.insert(TOKENS, pages, PUBLIC)
        num_found = num_full_pages * cache.page_size if cache.supports_prefix_sharing else 0
        assert cache.peek(TOKENS, PUBLIC) == num_found
        assert result.num_existing_tokens == 0
        assert result.pages.tolist() == pages[: num_found // cache.page_size].tolist()
        again = cache.insert(TOKENS, allocator.alloc(21), PUBLIC)
        assert again.num_existing_tokens == num_found
        assert again.pages.tolist() == result.pages.tolist()

    def test_the_cache_takes_references_of_its_own_and_never_the_callers(
        self, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        pages = allocator.alloc(21)
        cache.insert(TOKENS, pages, PUBLIC)
        num_cached = len(cache.cached_pages())
        assert (allocator.references[cache.cached_pages()] == 2).all()
        assert cache.evict(NUM_PAGES) == num_cached
        assert (allocator.references[pages] == 1).all()
        allocator.free(pages)
        assert allocator.num_free_pages == NUM_PAGES

    def test_the_cache_keeps_no_array_of_the_caller(
        self, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        tokens, pages = TOKENS.copy(), allocator.alloc(21)
        cache.insert(tokens, pages, PUBLIC)
        before = cache.match(TOKENS, PUBLIC)
        tokens[:] = -1
        pages[:] = -1
        after = cache.match(TOKENS, PUBLIC)
        assert (after.num_tokens, after.pages.tolist()) == (before.num_tokens, before.pages.tolist())

    def test_namespaces_share_nothing(self, cache: PrefixCache, allocator: PageAllocator) -> None:
        cache.insert(TOKENS[:16], allocator.alloc(16), Namespace(extra_key="a"))
        assert cache.peek(TOKENS, Namespace(cache_salt="a")) == 0
        assert cache.peek(TOKENS, Namespace(extra_key="b")) == 0
        assert cache.peek(TOKENS, PUBLIC) == 0

    def test_the_root_can_be_locked_and_protects_nothing(
        self, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        cache.insert(TOKENS, allocator.alloc(21), PUBLIC)
        receipt = cache.lock(cache.root)
        assert cache.num_protected_pages == 0
        cache.unlock(receipt)
        cache.check()

    def test_a_locked_prefix_survives_every_eviction(
        self, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        cache.insert(TOKENS[:16], allocator.alloc(16), PUBLIC)
        match = cache.match(TOKENS[:16], PUBLIC)
        receipt = cache.lock(match.handle)
        cache.evict(NUM_PAGES)
        assert cache.peek(TOKENS, PUBLIC) == match.num_tokens
        assert cache.num_protected_pages == len(match.pages)
        cache.unlock(receipt)
        assert cache.num_protected_pages == 0
        assert cache.evict(NUM_PAGES) == len(match.pages)
        assert cache.peek(TOKENS, PUBLIC) == 0

    def test_a_double_unlock_is_an_error(self, cache: PrefixCache) -> None:
        receipt = cache.lock(cache.root)
        cache.unlock(receipt)
        with pytest.raises(CacheError, match="given back before"):
            cache.unlock(receipt)

    def test_two_locks_of_one_place_are_two_receipts(self, cache: PrefixCache) -> None:
        first, second = cache.lock(cache.root), cache.lock(cache.root)
        assert first is not second
        cache.unlock(first)
        cache.unlock(second)

    def test_a_foreign_receipt_is_an_error(
        self, make: MakeCache, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        other = make(allocator, cache.page_size, None)
        receipt = other.lock(other.root)
        cache.lock(cache.root)
        with pytest.raises(CacheError):
            cache.unlock(receipt)
        other.unlock(receipt)

    def test_a_foreign_handle_is_an_error(
        self, make: MakeCache, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        for foreign in (make(allocator, cache.page_size, None).root, object()):
            with pytest.raises(CacheError):
                cache.lock(foreign)

    def test_evicting_nothing_is_a_no_op(self, cache: PrefixCache, allocator: PageAllocator) -> None:
        cache.insert(TOKENS, allocator.alloc(21), PUBLIC)
        before = cache.cached_pages().tolist()
        assert cache.evict(0) == 0
        assert cache.cached_pages().tolist() == before

    def test_evicting_gives_exactly_what_was_asked_or_all_there_is(
        self, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        for start in (0, 100, 200):
            pages = allocator.alloc(21)
            cache.insert(TOKENS + start, pages, PUBLIC)
            allocator.free(pages)
        while num_evictable := cache.num_evictable_pages:
            num_free = allocator.num_free_pages
            assert cache.evict(2) == min(2, num_evictable)
            assert allocator.num_free_pages == num_free + min(2, num_evictable)
            cache.check()
        assert allocator.num_free_pages == NUM_PAGES
        assert cache.evict(1) == 0

    def test_evictable_and_protected_pages_are_the_cached_ones(
        self, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        cache.insert(TOKENS[:16], allocator.alloc(16), PUBLIC)
        cache.lock(cache.insert(TOKENS + 100, allocator.alloc(21), PUBLIC).handle)
        assert cache.num_evictable_pages + cache.num_protected_pages == len(cache.cached_pages())
        cache.check()

    def test_reset_drops_everything_and_says_how_much(
        self, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        pages = allocator.alloc(21)
        cache.insert(TOKENS, pages, PUBLIC)
        allocator.free(pages)
        num_cached = len(cache.cached_pages())
        assert cache.reset() == num_cached
        assert cache.reset() == 0
        assert cache.peek(TOKENS, PUBLIC) == cache.num_evictable_pages == 0
        assert allocator.num_free_pages == NUM_PAGES
        cache.check()

    def test_reset_is_refused_while_a_lock_is_held(
        self, cache: PrefixCache, allocator: PageAllocator
    ) -> None:
        cache.insert(TOKENS, allocator.alloc(21), PUBLIC)
        receipt = cache.lock(cache.match(TOKENS, PUBLIC).handle)
        num_cached = len(cache.cached_pages())
        with pytest.raises(CacheError, match="1 lock"):
            cache.reset()
        assert len(cache.cached_pages()) == num_cached
        cache.unlock(receipt)
        assert cache.reset() == num_cached

    def test_the_root_outlives_a_reset(self, cache: PrefixCache, allocator: PageAllocator) -> None:
        root = cache.root
        cache.insert(TOKENS, allocator.alloc(21), PUBLIC)
        cache.reset()
        assert cache.root is root
        cache.unlock(cache.lock(root))

    def test_listeners_hear_all_cleared_at_the_start_and_on_reset(
        self, make: MakeCache, page_size: int, allocator: PageAllocator
    ) -> None:
        sink = EventList()
        cache = make(allocator, page_size, sink)
        assert sink.events == [AllBlocksCleared()]
        cache.insert(TOKENS, allocator.alloc(21), PUBLIC)
        cache.reset()
        assert sink.events[-1] == AllBlocksCleared()
