"""Shared test doubles and helpers: real, small implementations of our seams, and ways to look inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prefixlab.cache.radix import RadixCache
from prefixlab.cache.tree_node import TreeNode
from prefixlab.core.block_hash import PUBLIC, Namespace
from prefixlab.core.kv_events import AllBlocksCleared, BlockRemoved, KVEvent

# Cache -------------------------------------------------------------------------------------------------


class EventList:
    """An EventSink that keeps everything it is told."""

    def __init__(self) -> None:
        self.events: list[KVEvent] = []

    def emit(self, events: Sequence[KVEvent]) -> None:
        self.events += events


Prefix = tuple[Namespace, tuple[int, ...]]
"""A prefix of whole pages: what one page of a tree stands for."""


def fold_events(events: Iterable[KVEvent]) -> set[Prefix]:
    """What a listener believes is cached after `events`; fails on an event that contradicts those before."""
    blocks: dict[int, Prefix] = {}
    for event in events:
        if isinstance(event, AllBlocksCleared):
            blocks.clear()
        elif isinstance(event, BlockRemoved):
            for block in event.block_hashes:
                del blocks[block]
        else:
            namespace = Namespace(event.extra_key, event.cache_salt)
            prefix: tuple[int, ...] = ()
            if event.parent_block_hash is not None:
                parent_namespace, prefix = blocks[event.parent_block_hash]
                assert parent_namespace == namespace
            assert len(event.token_ids) == event.block_size * len(event.block_hashes)
            for i, block in enumerate(event.block_hashes):
                prefix += tuple(event.token_ids[i * event.block_size : (i + 1) * event.block_size])
                assert block not in blocks
                blocks[block] = (namespace, prefix)
    assert len(set(blocks.values())) == len(blocks)
    return set(blocks.values())


def tree_contents(cache: RadixCache) -> dict[Prefix, int]:
    """The page of every prefix of whole pages in the tree."""
    ends: dict[TreeNode, Prefix] = {}
    contents: dict[Prefix, int] = {}
    for node in cache.nodes():  # parents come first
        assert node.parent is not None
        first = node.key[0] if isinstance(node.key, tuple) else PUBLIC
        namespace, prefix = ends.get(node.parent, (first, ()))
        for i, page in enumerate(node.pages.tolist()):
            prefix += tuple(node.tokens[i * cache.page_size : (i + 1) * cache.page_size].tolist())
            contents[namespace, prefix] = page
        ends[node] = (namespace, prefix)
    return contents
