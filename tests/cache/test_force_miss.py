"""Forced miss: every lookup answers "nothing matched", and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from prefixlab.cache.config import EVICTION_POLICIES, CacheConfig
from prefixlab.cache.manager import CacheManager, ComputingPrefixes
from prefixlab.cache.radix import RadixCache
from prefixlab.core.block_hash import Namespace, as_token_ids
from prefixlab.core.config import resolve
from prefixlab.core.errors import ConfigError
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.core.seams import EventSink
from tests.fakes import EventList, fold_events, tree_contents

P = 4


def make_manager(
    *, force_miss: bool = False, policy: str = "lru", events: EventSink | None = None
) -> CacheManager:
    config = CacheConfig(page_size=P, force_miss=force_miss, eviction_policy=policy)
    return CacheManager(config, num_pages=64, max_rows=4, max_tokens_per_row=64, events=events)


def make_request(
    tokens: list[int], *, force_miss: bool = False, namespace: Namespace | None = None
) -> Request:
    return Request(
        "r", as_token_ids(tokens), SamplingParams(), force_miss=force_miss, namespace=namespace or Namespace()
    )


def serve(manager: CacheManager, request: Request, chunk: int = 64) -> None:
    """Admit, compute in chunks with a checkpoint after each, release."""
    manager.admit(request, manager.lookup(request, touch=True), 0)
    num_computed = request.num_computed_tokens
    while num_computed < request.num_tokens:
        num_computed = min(num_computed + chunk, request.num_tokens)
        assert manager.grow(request, num_computed)
        manager.checkpoint(request, num_computed)
        manager.check()
    manager.release(request, num_computed_tokens=num_computed)
    manager.check()


def tree_of(manager: CacheManager) -> RadixCache:
    assert isinstance(manager.cache, RadixCache)
    return manager.cache


@pytest.mark.parametrize("by_request", [True, False])
@pytest.mark.parametrize("touch", [True, False])
def test_a_lookup_of_a_cached_prompt_says_nothing_matched_and_stands_at_the_root(
    touch: bool, by_request: bool
) -> None:
    manager = make_manager(force_miss=not by_request)
    serve(manager, make_request([*range(20)]))
    match = manager.lookup(make_request([*range(20)], force_miss=by_request), touch=touch)
    assert match.num_tokens == 0
    assert match.pages.shape == (0,)
    assert match.pages.dtype == np.int32
    assert match.handle is manager.cache.root


@pytest.mark.parametrize("by_request", [True, False])
def test_a_prompt_being_computed_is_nothing_to_wait_for(by_request: bool) -> None:
    manager = make_manager(force_miss=not by_request)
    computing = ComputingPrefixes(P)
    computing.add(make_request([*range(20)]))
    assert manager.lookup_computing(make_request([*range(20)], force_miss=by_request), computing) == 0


def test_one_request_can_be_forced_to_miss_among_others_that_hit() -> None:
    manager = make_manager()
    serve(manager, make_request([*range(20)]))
    forced, other = make_request([*range(20)], force_miss=True), make_request([*range(20)])
    serve(manager, forced)
    serve(manager, other)
    assert (forced.num_cached_tokens, other.num_cached_tokens) == (0, 16)


def test_the_tree_is_asked_all_the_same_so_it_is_touched_and_split() -> None:
    manager = make_manager(force_miss=True)
    serve(manager, make_request([*range(20)]))
    (node,) = tree_of(manager).nodes()
    before = node.accessed
    manager.lookup(make_request([*range(8), 99, 99]), touch=True)
    assert [len(node.pages) for node in tree_of(manager).nodes()] == [2, 3]
    assert node.parent is not None
    assert node.parent.accessed > before


def test_what_a_request_computed_itself_stays_its_own() -> None:
    manager = make_manager(force_miss=True)
    request = make_request([*range(30)])
    manager.admit(request, manager.lookup(request, touch=True), 0)
    for num_tokens in (10, 20, 30):
        assert manager.grow(request, num_tokens)
        pages = manager.page_table[0, :8].tolist()
        manager.checkpoint(request, num_tokens)
        assert manager.page_table[0, :8].tolist() == pages
        assert manager.stats().num_protected_pages == num_tokens // P
    manager.release(request, num_computed_tokens=30)
    manager.check()


def test_two_copies_of_a_prefix_exist_only_until_the_checkpoint() -> None:
    manager = make_manager(force_miss=True)
    serve(manager, make_request([*range(20)]))
    request = make_request([*range(20)])
    manager.admit(request, manager.lookup(request, touch=True), 0)
    assert manager.grow(request, 20)
    assert manager.stats().num_in_use_pages == 5
    manager.checkpoint(request, 20)
    assert manager.stats().num_in_use_pages == 0
    assert manager.stats().num_cached_pages == 5


@pytest.mark.parametrize("policy", EVICTION_POLICIES)
@pytest.mark.parametrize("chunk", [3, 8, 64])
def test_the_tree_at_the_end_equals_that_of_the_normal_run(policy: str, chunk: int) -> None:
    normal_events, forced_events = EventList(), EventList()
    normal = make_manager(policy=policy, events=normal_events)
    forced = make_manager(policy=policy, events=forced_events, force_miss=True)
    rng = np.random.default_rng(seed := 7)
    print("seed", seed)
    shared = rng.integers(0, 50, 24).tolist()
    for _ in range(12):
        tokens = shared[: rng.integers(0, 25)] + rng.integers(0, 50, rng.integers(1, 20)).tolist()
        namespace = Namespace(cache_salt="a" if rng.random() < 0.3 else None)
        for manager in (normal, forced):
            request = make_request(tokens, namespace=namespace)
            serve(manager, request, chunk)
            if manager is forced:
                assert request.num_cached_tokens == 0
    assert facts(tree_of(normal)) == facts(tree_of(forced))
    assert normal.stats().num_cached_pages == forced.stats().num_cached_pages > 0
    assert fold_events(normal_events.events) == fold_events(forced_events.events)


def facts(tree: RadixCache) -> set[tuple[object, ...]]:
    """What is cached and how often each page was counted; not where nodes are cut, which chunks decide."""
    hit_counts: dict[int, int] = {}
    for node in tree.nodes():
        hit_counts |= dict.fromkeys(node.pages.tolist(), node.hit_count)
    return {(prefix, hit_counts[page]) for prefix, page in tree_contents(tree).items()}


def test_a_cache_that_shares_nothing_refuses_the_flag_by_name() -> None:
    config = CacheConfig(cache="none", force_miss=True)
    with pytest.raises(ConfigError, match=r"--force-miss.*--cache none"):
        CacheManager(config, num_pages=8, max_rows=1, max_tokens_per_row=64)


def test_a_cache_that_shares_nothing_says_that_a_request_cannot_be_forced() -> None:
    def make(cache: str) -> CacheManager:
        return CacheManager(CacheConfig(cache=cache), num_pages=8, max_rows=1, max_tokens_per_row=64)

    assert make("radix").supports_force_miss
    assert not make("none").supports_force_miss


def test_the_environment_can_ask_for_it() -> None:
    assert resolve(CacheConfig, {}, {"PREFIXLAB_FORCE_MISS": "1"}).force_miss
    assert not resolve(CacheConfig, {}, {}).force_miss
