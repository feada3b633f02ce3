"""What a listener hears of the tree. That the events fold to the tree's content, exactly, through every
operation, policy and page size, is an invariant of `test_radix_twin.py`."""

from __future__ import annotations

import pytest

from prefixlab.cache import events as events_module
from prefixlab.cache.eviction import lru
from prefixlab.cache.pages import PageAllocator
from prefixlab.cache.radix import RadixCache
from prefixlab.core.block_hash import (
    PUBLIC,
    Namespace,
    as_token_ids,
    block_digests,
    event_hash,
    namespace_seed,
)
from prefixlab.core.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from prefixlab.core.seams import EventSink
from tests.fakes import EventList, fold_events, tree_contents

PAGE_SIZE = 2


def make_tree(sink: EventSink | None) -> RadixCache:
    return RadixCache(PageAllocator(64), PAGE_SIZE, lru, sink)


def put(tree: RadixCache, tokens: range, namespace: Namespace = PUBLIC) -> None:
    pages = tree._allocator.alloc(len(tokens) // PAGE_SIZE)
    tree.insert(as_token_ids(tokens), pages, namespace)
    tree._allocator.free(pages)


def hashes(tokens: range, namespace: Namespace = PUBLIC) -> list[int]:
    digests = block_digests(as_token_ids(tokens), PAGE_SIZE, namespace_seed(namespace))
    return [event_hash(digest) for digest in digests]


def test_a_run_of_new_pages_is_one_event_that_names_its_parent() -> None:
    sink = EventList()
    tree = make_tree(sink)
    put(tree, range(5))
    put(tree, range(8))
    first, second, third, fourth = hashes(range(8))
    assert sink.events == [
        AllBlocksCleared(),
        BlockStored(
            block_hashes=[first, second],
            parent_block_hash=None,
            token_ids=[0, 1, 2, 3],
            block_size=PAGE_SIZE,
            medium="GPU",
        ),
        BlockStored(
            block_hashes=[third, fourth],
            parent_block_hash=second,
            token_ids=[4, 5, 6, 7],
            block_size=PAGE_SIZE,
            medium="GPU",
        ),
    ]


def test_what_is_there_already_is_not_told_again() -> None:
    sink = EventList()
    tree = make_tree(sink)
    put(tree, range(8))
    num_events = len(sink.events)
    put(tree, range(6))
    tree.match(as_token_ids(range(4)), PUBLIC)
    assert len(sink.events) == num_events


def test_a_child_of_a_split_node_names_the_page_it_follows() -> None:
    sink = EventList()
    tree = make_tree(sink)
    put(tree, range(8))
    tokens = as_token_ids([0, 1, 2, 3, 9, 9])
    tree.insert(tokens, tree._allocator.alloc(3), PUBLIC)
    stored = sink.events[-1]
    assert isinstance(stored, BlockStored)
    assert stored.parent_block_hash == hashes(range(8))[1]
    assert stored.token_ids == [9, 9]


def test_an_eviction_is_one_event_for_all_its_pages() -> None:
    sink = EventList()
    tree = make_tree(sink)
    put(tree, range(4))
    put(tree, range(100, 108))
    tree.evict(4)
    removed = sink.events[-1]
    assert isinstance(removed, BlockRemoved)
    assert removed.medium == "GPU"
    assert sorted(removed.block_hashes) == sorted(hashes(range(4)) + hashes(range(100, 108))[2:])
    assert fold_events(sink.events) == set(tree_contents(tree))


def test_evicting_nothing_says_nothing() -> None:
    sink = EventList()
    tree = make_tree(sink)
    tree.evict(3)
    assert sink.events == [AllBlocksCleared()]


def test_events_name_the_namespace_and_hash_by_it() -> None:
    sink = EventList()
    tree = make_tree(sink)
    namespace = Namespace(extra_key="adapter", cache_salt="tenant")
    put(tree, range(4), namespace)
    put(tree, range(4))
    private, public = sink.events[1:]
    assert isinstance(private, BlockStored) and isinstance(public, BlockStored)
    assert (private.extra_key, private.cache_salt) == ("adapter", "tenant")
    assert (public.extra_key, public.cache_salt) == (None, None)
    assert private.block_hashes == hashes(range(4), namespace)
    assert not set(private.block_hashes) & set(public.block_hashes)


def test_without_a_listener_nothing_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object) -> list[bytes]:
        raise AssertionError("hashed for nobody")

    monkeypatch.setattr(events_module, "block_digests", unwanted)
    tree = make_tree(None)
    put(tree, range(8))
    tree.evict(2)
    tree.reset()
