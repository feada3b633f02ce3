from __future__ import annotations

import numpy as np
import pytest

from prefixlab.cache.config import CacheConfig
from prefixlab.cache.manager import CacheManager, ComputingPrefixes
from prefixlab.cache.radix import RadixCache
from prefixlab.core.batch import IntArray
from prefixlab.core.block_hash import PUBLIC, Namespace, as_token_ids
from prefixlab.core.errors import CacheError
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams
from tests.fakes import EventList, fold_events, tree_contents

P = 4


def make_manager(*, num_pages: int = 32, max_rows: int = 4, **settings: object) -> CacheManager:
    config = CacheConfig(**{"page_size": P, **settings})  # type: ignore[arg-type]
    return CacheManager(config, num_pages=num_pages, max_rows=max_rows, max_tokens_per_row=64)


def make_request(tokens: range | list[int], **settings: object) -> Request:
    return Request(f"r{next(iter(tokens))}", as_token_ids(tokens), SamplingParams(), **settings)  # type: ignore[arg-type]


def admit(manager: CacheManager, request: Request, row: int = 0) -> int:
    """Admit after a lookup; returns the tokens matched."""
    match = manager.lookup(request, touch=True)
    manager.admit(request, match, row)
    manager.check()
    return match.num_tokens


def compute(manager: CacheManager, request: Request, num_tokens: int) -> None:
    """As the scheduler does for a chunk of prefill: pages, then the chunk, then a checkpoint."""
    assert manager.grow(request, num_tokens)
    manager.check()
    manager.checkpoint(request, num_tokens)
    manager.check()


def release(manager: CacheManager, request: Request, num_computed_tokens: int, insert: bool = True) -> None:
    manager.release(request, num_computed_tokens=num_computed_tokens, insert=insert)
    manager.check()


def serve(manager: CacheManager, request: Request, row: int = 0) -> int:
    """The whole life of a request; returns the tokens matched."""
    num_matched = admit(manager, request, row)
    compute(manager, request, request.num_tokens)
    release(manager, request, request.num_tokens)
    return num_matched


def row_pages(manager: CacheManager, row: int) -> list[int]:
    return manager.page_table[row, : manager.num_row_pages[row]].tolist()


def tree_of(manager: CacheManager) -> RadixCache:
    assert isinstance(manager.cache, RadixCache)
    return manager.cache


# Lookup ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8, 9, 11, 12, 13])
def test_a_repeated_prompt_is_served_as_the_hit_oracle_says(num_tokens: int) -> None:
    manager = make_manager()
    serve(manager, make_request(range(num_tokens)))
    again = make_request(range(num_tokens))
    wanted = (num_tokens - 1) // P * P
    assert manager.lookup(again, touch=False).num_tokens == wanted
    assert admit(manager, again) == wanted
    assert again.num_cached_tokens == again.num_computed_tokens == wanted
    assert again.num_cached_tokens_by_tier == {"device": wanted}


def test_ordering_the_queue_changes_nothing_and_names_no_pages() -> None:
    manager = make_manager()
    serve(manager, make_request(range(12)))
    request = make_request([*range(8), 99, 99, 99])
    before = [(node, node.accessed, node.tokens.tolist()) for node in tree_of(manager).nodes()]
    match = manager.lookup(request, touch=False)
    assert match.num_tokens == 8
    assert match.pages.shape == (0,)
    assert match.pages.dtype == np.int32
    assert [(node, node.accessed, node.tokens.tolist()) for node in tree_of(manager).nodes()] == before


def test_a_request_that_wants_prompt_logprobs_reads_nothing_but_leaves_its_prompt() -> None:
    manager = make_manager()
    serve(manager, make_request(range(12)))
    request = make_request(range(12), return_prompt_logprobs=True)
    computing = ComputingPrefixes(P)
    computing.add(make_request(range(12)))
    assert manager.lookup(request, touch=False).num_tokens == 0
    assert manager.lookup_computing(request, computing) == 0
    assert serve(manager, request) == 0
    assert manager.stats().num_cached_pages == 3


def test_a_retracted_request_finds_its_output_again() -> None:
    manager = make_manager()
    request = make_request(range(8))
    admit(manager, request)
    request.output_token_ids += [50, 51, 52, 53, 54]
    compute(manager, request, 12)
    release(manager, request, 12)
    assert manager.lookup(request, touch=False).num_tokens == 12
    assert admit(manager, request) == 12
    assert request.num_cached_tokens == 0, "what it was served from the cache is fixed at first admission"
    assert request.num_computed_tokens == 12


def test_namespaces_never_share_a_page() -> None:
    manager = make_manager()
    namespaces = (PUBLIC, Namespace("x", None), Namespace(None, "x"), Namespace("x", "x"))
    for namespace in namespaces:
        assert serve(manager, make_request(range(9), namespace=namespace)) == 0
    for namespace in namespaces:
        assert serve(manager, make_request(range(9), namespace=namespace)) == 8
    assert manager.stats().num_cached_pages == 8


# Prompts being computed --------------------------------------------------------------------------------


def test_a_sibling_of_a_prompt_being_computed_learns_how_much_they_share() -> None:
    manager = make_manager()
    computing = ComputingPrefixes(P)
    assert manager.lookup_computing(make_request(range(12)), computing) == 0
    computing.add(make_request([*range(6), *range(90, 100)]))
    computing.add(make_request([*range(10), *range(80, 84)]))
    assert manager.lookup_computing(make_request(range(12)), computing) == 8
    assert manager.lookup_computing(make_request(range(9)), computing) == 8
    assert manager.lookup_computing(make_request(range(8)), computing) == 4, "one token is always computed"
    assert manager.lookup_computing(make_request(range(3)), computing) == 0
    assert manager.lookup_computing(make_request(range(50, 70)), computing) == 0


def test_only_full_pages_of_a_prompt_being_computed_count() -> None:
    manager = make_manager()
    computing = ComputingPrefixes(P)
    computing.add(make_request(range(3)))
    computing.add(make_request(range(7)))
    assert manager.lookup_computing(make_request(range(20)), computing) == 4


def test_prompts_being_computed_keep_to_their_namespace() -> None:
    manager = make_manager()
    computing = ComputingPrefixes(P)
    computing.add(make_request(range(12), namespace=Namespace(cache_salt="a")))
    assert manager.lookup_computing(make_request(range(12)), computing) == 0
    assert (
        manager.lookup_computing(make_request(range(12), namespace=Namespace(cache_salt="a")), computing) == 8
    )


def test_a_cache_that_shares_nothing_makes_nobody_wait() -> None:
    manager = make_manager(cache="none")
    computing = ComputingPrefixes(P)
    computing.add(make_request(range(12)))
    assert manager.lookup_computing(make_request(range(12)), computing) == 0


# Growing -----------------------------------------------------------------------------------------------


def test_a_row_grows_to_whole_pages_and_never_shrinks() -> None:
    manager = make_manager()
    request = make_request(range(40))
    admit(manager, request)
    for num_tokens, num_pages in ((0, 0), (1, 1), (4, 1), (5, 2), (3, 2), (40, 10)):
        assert manager.grow(request, num_tokens)
        assert manager.num_row_pages[0] == num_pages
        manager.check()


def test_growing_evicts_just_as_much_as_is_missing() -> None:
    manager = make_manager(num_pages=6)
    serve(manager, make_request(range(16)))
    request = make_request(range(100, 140))
    admit(manager, request)
    assert manager.grow(request, 3 * P)
    stats = manager.stats()
    assert (stats.num_cached_pages, stats.num_free_pages, stats.num_evicted_pages_total) == (3, 0, 1)


def test_growing_beyond_what_there_is_changes_nothing() -> None:
    manager = make_manager(num_pages=6)
    serve(manager, make_request(range(8)))
    request = make_request(range(100, 140))
    admit(manager, request)
    assert manager.grow(request, 2 * P)
    before = manager.stats()
    assert not manager.grow(request, 7 * P)
    assert not manager.grow_rows(as_token_ids([0] * 5), np.ones(5, dtype=np.bool_))
    assert manager.stats() == before
    manager.check()


def test_growing_beyond_the_width_of_the_table_is_an_error_that_takes_no_page() -> None:
    manager = make_manager()
    request = make_request(range(70))
    admit(manager, request)
    with pytest.raises(CacheError, match="do not fit a row of 16 pages"):
        manager.grow(request, 65)
    manager.check()


def test_rows_that_need_one_get_a_page_each() -> None:
    manager = make_manager(num_pages=12)
    for row in range(4):
        request = make_request(range(100 * row, 100 * row + 2 * P))
        admit(manager, request, row)
        assert manager.grow(request, (1 + row % 2) * P)
    rows: IntArray = as_token_ids([0, 2, 3])
    assert manager.grow_rows(rows, np.array([True, False, True]))
    assert manager.num_row_pages.tolist() == [2, 2, 1, 3]
    manager.check()
    assert manager.grow_rows(rows, np.zeros(3, dtype=np.bool_))
    assert manager.num_row_pages.tolist() == [2, 2, 1, 3]


def test_what_is_available_is_what_growing_can_get() -> None:
    manager = make_manager(num_pages=8)
    serve(manager, make_request(range(16)))
    assert manager.num_available_pages == 8
    request = make_request(range(32))
    assert manager.num_available_pages_beside(manager.lookup(request, touch=True)) == 4
    assert admit(manager, request) == 16
    assert manager.num_available_pages == 4
    assert manager.grow(request, 32)
    assert manager.num_available_pages == 0
    manager.check()


# Checkpoints -------------------------------------------------------------------------------------------


def test_siblings_match_what_was_checkpointed_while_it_still_runs() -> None:
    manager = make_manager()
    first, second = make_request(range(16)), make_request([*range(10), 77, 78, 79])
    admit(manager, first, row=0)
    compute(manager, first, 10)
    assert admit(manager, second, row=1) == 8
    assert row_pages(manager, 1) == row_pages(manager, 0)[:2]
    compute(manager, second, 13)
    compute(manager, first, 16)
    release(manager, first, 16)
    release(manager, second, 13)


def test_duplicates_are_swapped_for_the_trees_pages_and_freed() -> None:
    manager = make_manager()
    first, second = make_request(range(12)), make_request([*range(8), 77, 78, 79, 80, 81])
    for row, request in enumerate((first, second)):  # both begin before either is in the tree
        assert admit(manager, request, row) == 0
        assert manager.grow(request, request.num_tokens)
    assert manager.stats().num_free_pages == 32 - 3 - 4
    manager.checkpoint(first, 12)
    own_page = row_pages(manager, 1)[2]
    manager.checkpoint(second, 13)
    manager.check()
    assert row_pages(manager, 1)[:2] == row_pages(manager, 0)[:2]
    assert row_pages(manager, 1)[2] == own_page
    assert manager.stats().num_free_pages == 32 - 3 - 2
    assert manager.stats().num_inserted_pages_total == 4


def test_the_partial_page_stays_with_the_request_and_goes_when_it_goes() -> None:
    manager = make_manager()
    request = make_request(range(6))
    admit(manager, request)
    compute(manager, request, 6)
    stats = manager.stats()
    assert (stats.num_cached_pages, stats.num_in_use_pages) == (1, 1)
    release(manager, request, 6)
    stats = manager.stats()
    assert (stats.num_cached_pages, stats.num_in_use_pages, stats.num_free_pages) == (1, 0, 31)


def test_what_a_request_computed_cannot_be_evicted_under_it() -> None:
    manager = make_manager(num_pages=8)
    request = make_request(range(32))
    admit(manager, request)
    for num_tokens in (8, 16, 24):
        compute(manager, request, num_tokens)
        assert manager.stats().num_protected_pages == num_tokens // P
    manager.cache.evict(8)
    assert manager.stats().num_cached_pages == 6


def test_a_checkpoint_shorter_than_what_is_the_trees_is_an_error() -> None:
    manager = make_manager()
    request = make_request(range(16))
    admit(manager, request)
    compute(manager, request, 12)
    with pytest.raises(CacheError, match="fewer than"):
        manager.checkpoint(request, 8)
    manager.check()


def test_a_request_counts_once_per_node_through_chunks_and_retraction() -> None:
    manager = make_manager()
    serve(manager, make_request(range(8)))
    request = make_request(range(17))
    admit(manager, request)
    for num_tokens in (10, 13, 16):
        compute(manager, request, num_tokens)
    release(manager, request, 16)
    counts = [node.hit_count for node in tree_of(manager).nodes()]
    assert sorted(counts) == [1, 1, 2]
    admit(manager, request)
    compute(manager, request, 17)
    release(manager, request, 17)
    assert [node.hit_count for node in tree_of(manager).nodes()] == counts
    serve(manager, make_request(range(17)))
    assert [node.hit_count for node in tree_of(manager).nodes()] == [count + 1 for count in counts]


def test_a_retracted_request_that_computes_everything_again_counts_nothing_again() -> None:
    manager = make_manager()
    request = make_request(range(17), force_miss=True)
    for _ in range(2):
        admit(manager, request)
        for num_tokens in (8, 12, 17):
            compute(manager, request, num_tokens)
        release(manager, request, 17)
        assert [node.hit_count for node in tree_of(manager).nodes()] == [1, 1, 1]


def test_the_priority_of_a_request_is_left_on_its_prefix() -> None:
    manager = make_manager(num_pages=6, eviction_policy="priority")
    serve(manager, make_request(range(8), priority=5))
    serve(manager, make_request(range(100, 108)))
    serve(manager, make_request(range(200, 216)))
    assert manager.lookup(make_request(range(9)), touch=False).num_tokens == 8
    assert manager.lookup(make_request(range(100, 109)), touch=False).num_tokens == 0


# Release -----------------------------------------------------------------------------------------------


def test_a_release_leaves_the_computed_prefix_and_gives_back_the_rest() -> None:
    manager = make_manager()
    request = make_request(range(20))
    admit(manager, request, row=2)
    assert manager.grow(request, 20)
    release(manager, request, 9)
    assert request.row == -1
    assert request.lease is None
    assert manager.num_row_pages[2] == 0
    stats = manager.stats()
    assert (stats.num_evictable_pages, stats.num_free_pages) == (2, 30)


def test_a_release_without_insert_leaves_only_what_was_checkpointed() -> None:
    manager = make_manager()
    request = make_request(range(20))
    admit(manager, request)
    compute(manager, request, 8)
    assert manager.grow(request, 20)
    release(manager, request, 20, insert=False)
    assert manager.stats().num_cached_pages == 2


def test_a_release_right_after_admission_changes_no_page() -> None:
    manager = make_manager()
    serve(manager, make_request(range(12)))
    before = tree_contents(tree_of(manager))
    request = make_request(range(12))
    num_matched = admit(manager, request)
    release(manager, request, num_matched)
    assert tree_contents(tree_of(manager)) == before
    assert manager.stats().num_evictable_pages == 3


def test_a_second_release_or_admission_is_an_error() -> None:
    manager = make_manager()
    request = make_request(range(8))
    match = manager.lookup(request, touch=True)
    manager.admit(request, match, 0)
    with pytest.raises(CacheError, match="holds row 0 already"):
        manager.admit(request, match, 1)
    release(manager, request, 0)
    for insert in (True, False):
        with pytest.raises(CacheError, match="holds no pages"):
            manager.release(request, num_computed_tokens=0, insert=insert)
    manager.check()


def test_a_match_that_names_no_pages_cannot_be_admitted() -> None:
    manager = make_manager()
    serve(manager, make_request(range(8)))
    request = make_request(range(8))
    with pytest.raises(CacheError, match="without touching"):
        manager.admit(request, manager.lookup(request, touch=False), 0)
    assert request.row == -1
    manager.check()


def test_a_row_is_not_given_to_two_requests() -> None:
    manager = make_manager()
    first, second = make_request(range(8)), make_request(range(50, 58))
    admit(manager, first, row=1)
    manager.grow(first, 8)
    with pytest.raises(CacheError, match="row 1 is taken"):
        manager.admit(second, manager.lookup(second, touch=True), 1)
    manager.check()


# Whole cache -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["radix", "none"])
def test_a_reset_is_refused_while_requests_hold_pages(cache: str) -> None:
    manager = make_manager(cache=cache)
    serve(manager, make_request(range(100, 112)))
    request = make_request(range(8))
    admit(manager, request)
    compute(manager, request, 8)
    with pytest.raises(CacheError):
        manager.reset()
    release(manager, request, 8)
    assert manager.reset() == (5 if cache == "radix" else 0)
    assert manager.stats().num_free_pages == 32
    manager.check()


def test_a_reset_keeps_the_totals() -> None:
    manager = make_manager(num_pages=4)
    serve(manager, make_request(range(16)))
    serve(manager, make_request(range(100, 108)))
    manager.reset()
    stats = manager.stats()
    assert (stats.num_inserted_pages_total, stats.num_evicted_pages_total) == (6, 2)


def test_without_sharing_every_page_is_the_requests_own() -> None:
    manager = make_manager(cache="none")
    assert serve(manager, make_request(range(12))) == 0
    assert serve(manager, make_request(range(12))) == 0
    first, second = make_request(range(12)), make_request(range(12))
    for row, request in enumerate((first, second)):
        admit(manager, request, row)
        compute(manager, request, 12)
    assert not set(row_pages(manager, 0)) & set(row_pages(manager, 1))
    stats = manager.stats()
    assert (stats.num_in_use_pages, stats.num_cached_pages) == (6, 0)


def test_events_of_served_requests_fold_to_the_tree() -> None:
    sink = EventList()
    config = CacheConfig(page_size=P)
    manager = CacheManager(config, num_pages=8, max_rows=4, max_tokens_per_row=64, events=sink)
    for start in (0, 2, 0, 7):
        serve(manager, make_request([*range(8), *range(start, start + 10)]))
        assert fold_events(sink.events) == set(tree_contents(tree_of(manager)))


def test_check_finds_a_page_with_an_owner_nobody_knows() -> None:
    manager = make_manager()
    manager._allocator.alloc(1)
    with pytest.raises(AssertionError, match="owners"):
        manager.check()
