"""The radix tree: pages of KV found by the tokens they hold, shared by every prompt that starts alike.

Owns the tree's shape, its locks and its sums, and one reference to each page in it. Does not own a request's
pages, nor decide what is worth keeping (`eviction.py`), nor know requests (`manager.py`). Time is a counter:
each match or insert is one tick, and stamps the whole path it walked, so no node is older than one below it.

Invariant: the pages of all nodes are distinct; evictable + protected = cached; a node is protected exactly
while a lock is held at or below it; the eviction queue holds exactly the unlocked leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from prefixlab.cache.base import Handle, InsertResult, Match, Receipt
from prefixlab.cache.events import TreeEvents
from prefixlab.cache.eviction import Evictable, EvictionQueue, Key
from prefixlab.cache.pages import PageAllocator
from prefixlab.cache.tree_node import TreeNode, common_length, frozen_copy
from prefixlab.core.batch import IntArray
from prefixlab.core.block_hash import Namespace, TokenIds
from prefixlab.core.errors import CacheError
from prefixlab.core.seams import EventSink

_TOKEN_BYTES = 4
_NO_TOKENS: IntArray = frozen_copy(np.empty(0, dtype=np.int32))


class RadixCache:
    """A PrefixCache that shares. See the module.

    Args:
        allocator: where its pages come from and go back to.
        page_size: tokens per page, ≥ 1.
        eviction_key: the policy; the node with the lowest key goes first.
        events: told of every page stored and removed; None costs nothing.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        page_size: int,
        eviction_key: Callable[[Evictable], Key],
        events: EventSink | None = None,
    ) -> None:
        self.page_size = page_size
        self._allocator = allocator
        self._queue = EvictionQueue(eviction_key)
        self._events = TreeEvents(events, page_size) if events is not None else None
        self._root = TreeNode(None, b"", _NO_TOKENS, _NO_TOKENS)
        self._locks: dict[Receipt, TreeNode] = {}
        self._tick = 0
        self._num_evictable_pages = 0
        self._num_protected_pages = 0

    @property
    def supports_prefix_sharing(self) -> bool:
        return True

    @property
    def root(self) -> Handle:
        return self._root

    @property
    def num_evictable_pages(self) -> int:
        return self._num_evictable_pages

    @property
    def num_protected_pages(self) -> int:
        return self._num_protected_pages

    # Find and add. -----------------------------------------------------------------------------------

    def peek(self, tokens: TokenIds, namespace: Namespace) -> int:
        return self._walk(tokens, namespace)[1]

    def match(self, tokens: TokenIds, namespace: Namespace) -> Match:
        path, num_tokens = self._visit(tokens, namespace)
        end = path[-1] if path else self._root
        if end.ticket:
            self._queue.add(end)
        return Match(num_tokens, _pages_of(path), end)

    def insert(
        self,
        tokens: TokenIds,
        pages: IntArray,
        namespace: Namespace,
        *,
        priority: int = 0,
        counted_tokens: int = 0,
    ) -> InsertResult:
        page_size = self.page_size
        num_pages = len(tokens) // page_size
        if len(pages) < num_pages:
            raise CacheError(f"{len(pages)} pages for {len(tokens)} tokens, {page_size} to a page")
        path, num_existing_tokens = self._visit(tokens, namespace)
        position = 0
        for node in path:
            position += len(node.tokens)
            node.priority = max(node.priority, priority)
            node.hit_count += position > counted_tokens
        end = path[-1] if path else self._root
        if num_existing_tokens < num_pages * page_size:
            new_tokens = tokens[num_existing_tokens : num_pages * page_size]
            new_pages = pages[num_existing_tokens // page_size : num_pages]
            end = self._add_leaf(end, new_tokens, new_pages, namespace, priority)
            path.append(end)
        elif end.ticket:
            self._queue.add(end)
        return InsertResult(num_existing_tokens, _pages_of(path), end)

    def _walk(self, tokens: TokenIds, namespace: Namespace) -> tuple[list[TreeNode], int, int]:
        """The nodes that `tokens` lead along, how many tokens match in all (whole pages), and how many of the
        last node lie beyond the match; the other nodes match whole. Changes nothing."""
        page_size = self.page_size
        stop = len(tokens) // page_size * page_size
        path: list[TreeNode] = []
        position = 0
        child = self._root.children.get((namespace, tokens[:page_size].tobytes()))
        if child is None:
            return path, 0, 0
        # Bytes, because they compare in place with a node's tokens and yield the next key in one cut.
        data = tokens[:stop].tobytes()
        while child is not None:
            path.append(child)
            length = len(child.tokens)
            if not data.startswith(child.tokens.data, _TOKEN_BYTES * position):
                matched = common_length(child.tokens, tokens[position:stop]) // page_size * page_size
                return path, position + matched, length - matched
            position += length
            child = child.children.get(data[_TOKEN_BYTES * position : _TOKEN_BYTES * (position + page_size)])
        return path, position, 0

    def _visit(self, tokens: TokenIds, namespace: Namespace) -> tuple[list[TreeNode], int]:
        """Walk, split the last node where the match ends inside it, and stamp the path with a new tick."""
        path, num_tokens, num_beyond = self._walk(tokens, namespace)
        if num_beyond:
            path[-1] = path[-1].split(len(path[-1].tokens) - num_beyond, self.page_size)
        self._tick += 1
        for node in path:
            node.accessed = self._tick
        return path, num_tokens

    def _add_leaf(
        self, parent: TreeNode, tokens: TokenIds, pages: IntArray, namespace: Namespace, priority: int
    ) -> TreeNode:
        self._allocator.share(pages)
        first_page = tokens[: self.page_size].tobytes()
        key = (namespace, first_page) if parent is self._root else first_page
        leaf = TreeNode(parent, key, frozen_copy(tokens), frozen_copy(pages))
        leaf.created = leaf.accessed = self._tick
        leaf.hit_count = 1
        leaf.priority = priority
        parent.children[leaf.key] = leaf
        self._queue.discard(parent)
        self._queue.add(leaf)
        self._num_evictable_pages += len(pages)
        if self._events is not None:
            self._events.stored(leaf, namespace)
        return leaf

    # Protect. ----------------------------------------------------------------------------------------

    def lock(self, handle: Handle) -> Receipt:
        if not isinstance(handle, TreeNode) or self._top_of(handle) is not self._root:
            raise CacheError("the handle was evicted, or another cache issued it")
        for node in self._upwards(handle):
            if not node.lock_count:
                self._queue.discard(node)
                self._num_evictable_pages -= len(node.pages)
                self._num_protected_pages += len(node.pages)
            node.lock_count += 1
        receipt = object()
        self._locks[receipt] = handle
        return receipt

    def unlock(self, receipt: Receipt) -> None:
        handle = self._locks.pop(receipt, None)
        if handle is None:
            raise CacheError("the receipt was given back before, or another cache issued it")
        for node in self._upwards(handle):
            node.lock_count -= 1
            if not node.lock_count:
                self._num_protected_pages -= len(node.pages)
                self._num_evictable_pages += len(node.pages)
                if not node.children:
                    self._queue.add(node)

    def _upwards(self, node: TreeNode) -> Iterator[TreeNode]:
        """`node` and what is above it, without the root."""
        while node.parent is not None:
            yield node
            node = node.parent

    def _top_of(self, node: TreeNode) -> TreeNode:
        while node.parent is not None:
            node = node.parent
        return node

    # Forget. -----------------------------------------------------------------------------------------

    def evict(self, num_pages: int) -> int:
        removed: list[TreeNode] = []
        num_removed = 0
        while num_removed < num_pages:
            leaf = self._queue.pop()
            if leaf is None:
                break
            num_kept = len(leaf.pages) - (num_pages - num_removed)
            if num_kept > 0:
                # Cutting the tail is a split whose suffix goes: a handle on the old leaf is void, as the
                # contract says, rather than standing for less than it did.
                leaf.split(num_kept * self.page_size, self.page_size)
            self._remove_leaf(leaf)
            removed.append(leaf)
            num_removed += len(leaf.pages)
        if removed:
            self._num_evictable_pages -= num_removed
            self._allocator.free(_pages_of(removed))
            if self._events is not None:
                self._events.removed(removed)
        return num_removed

    def _remove_leaf(self, leaf: TreeNode) -> None:
        parent = leaf.parent
        assert parent is not None and not leaf.children and not leaf.lock_count
        del parent.children[leaf.key]
        leaf.parent = None
        if parent is not self._root and not parent.children and not parent.lock_count:
            self._queue.add(parent)

    def reset(self) -> int:
        if self._locks:
            raise CacheError(f"the cache cannot be reset: {len(self._locks)} locks are held")
        pages = self.cached_pages()
        self._allocator.free(pages)
        for node in self.nodes():
            self._queue.discard(node)
        for node in self._root.children.values():
            node.parent = None  # handles at and below it no longer lead to the root, so they are void
        self._root.children.clear()
        self._num_evictable_pages = 0
        if self._events is not None:
            self._events.cleared()
        return len(pages)

    # Look at it all, slowly. -------------------------------------------------------------------------

    def nodes(self) -> Iterator[TreeNode]:
        """Every node but the root, parents before children."""
        pending = list(self._root.children.values())
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())

    def cached_pages(self) -> IntArray:
        return _pages_of(list(self.nodes()))

    def check(self) -> None:
        num_locks: dict[TreeNode, int] = {}
        for handle in self._locks.values():
            for node in self._upwards(handle):
                num_locks[node] = num_locks.get(node, 0) + 1
        sizes = {False: 0, True: 0}
        num_queued = 0
        for node in self.nodes():
            assert node.parent is not None and node.parent.children.get(node.key) is node, "a broken link"
            first_page = node.tokens[: self.page_size].tobytes()
            assert (node.key[1] if isinstance(node.key, tuple) else node.key) == first_page, "a stale key"
            assert isinstance(node.key, tuple) == (node.parent is self._root), "namespaces branch at the root"
            assert len(node.tokens) == len(node.pages) * self.page_size > 0, "tokens and pages disagree"
            assert node.lock_count == num_locks.pop(node, 0), "a lock count is off"
            assert node.parent is self._root or node.accessed <= node.parent.accessed, "a child is newer"
            is_evictable = not node.children and not node.lock_count
            assert bool(node.ticket) == is_evictable, "the queue is not the unlocked leaves"
            sizes[node.lock_count > 0] += len(node.pages)
            num_queued += bool(node.ticket)
        assert not num_locks, "a lock is held on a node outside the tree"
        assert sizes[False] == self._num_evictable_pages, "the sum of evictable pages is off"
        assert sizes[True] == self._num_protected_pages, "the sum of protected pages is off"
        assert num_queued == len(self._queue), "the queue holds a node outside the tree"
        pages = self.cached_pages()
        assert len(np.unique(pages)) == len(pages), "a page is in the tree twice"
        assert (self._allocator.references[pages] > 0).all(), "the tree holds a free page"


def _pages_of(nodes: list[TreeNode]) -> IntArray:
    """The pages of `nodes`, in their order."""
    if len(nodes) == 1:
        return nodes[0].pages
    return np.concatenate([node.pages for node in nodes]) if nodes else _NO_TOKENS
