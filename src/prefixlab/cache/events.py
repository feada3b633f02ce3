"""Tells a sink what the tree stored and removed, as KV events.

Owns the block digests on nodes, made only here, so a tree without a sink never hashes. Does not batch or
send: the sink does.

Invariant: folding all events gives the tree's content exactly: every page of every node, no other.
"""

from __future__ import annotations

from collections.abc import Iterable

from prefixlab.cache.tree_node import TreeNode
from prefixlab.core.block_hash import Namespace, block_digests, event_hash, namespace_seed
from prefixlab.core.kv_events import MEDIUM_DEVICE, AllBlocksCleared, BlockRemoved, BlockStored
from prefixlab.core.seams import EventSink


class TreeEvents:
    """One sink's view of one tree. Says "all cleared" at the start, so a listener forgets earlier runs."""

    def __init__(self, sink: EventSink, page_size: int) -> None:
        self._sink = sink
        self._page_size = page_size
        self.cleared()

    def stored(self, leaf: TreeNode, namespace: Namespace) -> None:
        """A new leaf hangs in the tree: one event for its run of pages."""
        parent = leaf.parent
        assert parent is not None
        is_first = parent.parent is None
        seed = namespace_seed(namespace) if is_first else parent.digests[-1]
        leaf.digests = tuple(block_digests(leaf.tokens, self._page_size, seed))
        event = BlockStored(
            block_hashes=[event_hash(digest) for digest in leaf.digests],
            parent_block_hash=None if is_first else event_hash(seed),
            token_ids=leaf.tokens.tolist(),
            block_size=self._page_size,
            medium=MEDIUM_DEVICE,
            cache_salt=namespace.cache_salt,
            extra_key=namespace.extra_key,
        )
        self._sink.emit([event])

    def removed(self, nodes: Iterable[TreeNode]) -> None:
        """Nodes left the tree: one event for all their pages."""
        hashes = [event_hash(digest) for node in nodes for digest in node.digests]
        self._sink.emit([BlockRemoved(block_hashes=hashes, medium=MEDIUM_DEVICE)])

    def cleared(self) -> None:
        """Nothing is left."""
        self._sink.emit([AllBlocksCleared()])
