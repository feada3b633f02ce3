"""A node of the radix tree: a run of whole pages that every prompt below it starts with.

Owns its tokens, its page numbers and what eviction wants to know of it; links itself on a split. The tree
decides when to split and keeps all sums; the eviction queue owns `ticket`.

Invariant: a node holds at least one page (the root none); no two children of a node start with the same page;
`lock_count` is the number of locks at or below it, so a locked node's parent is locked.
"""

from __future__ import annotations

import numpy as np

from prefixlab.core.batch import IntArray
from prefixlab.core.block_hash import Namespace, TokenIds

ChildKey = bytes | tuple[Namespace, bytes]
"""A child is found by the bytes of its first page; at the root by namespace too, so namespaces never meet."""

_FIRST_LOOK_TOKENS = 1024


class TreeNode:
    """See the module. Arrays are read-only and may be views: they are handed out as they are."""

    __slots__ = (
        "accessed",
        "children",
        "created",
        "digests",
        "hit_count",
        "key",
        "lock_count",
        "pages",
        "parent",
        "priority",
        "ticket",
        "tokens",
    )

    def __init__(self, parent: TreeNode | None, key: ChildKey, tokens: TokenIds, pages: IntArray) -> None:
        self.parent = parent
        """None for the root and for a node that was evicted."""
        self.key = key
        """What `parent.children` has it under."""
        self.tokens = tokens
        self.pages = pages
        self.children: dict[ChildKey, TreeNode] = {}
        self.lock_count = 0
        self.hit_count = 0
        """Requests that inserted a prefix reaching into this node, each counted once."""
        self.priority = 0
        self.created = 0
        self.accessed = 0
        """Ticks of the tree's counter, which stands in for time."""
        self.digests: tuple[bytes, ...] = ()
        """Block digest of each page; empty while nobody listens to events."""
        self.ticket = 0
        """Its live entry in the eviction queue, 0 if it has none."""

    def split(self, num_tokens: int, page_size: int) -> TreeNode:
        """Put a new node above this one that takes its first `num_tokens` (a multiple of `page_size`).

        This object stays the suffix, so whoever holds it as the end of a prefix still does. The new node
        takes after it in everything eviction looks at. Returns the new node.
        """
        assert self.parent is not None
        num_pages = num_tokens // page_size
        prefix = TreeNode(self.parent, self.key, _own(self.tokens[:num_tokens]), _own(self.pages[:num_pages]))
        prefix.lock_count = self.lock_count
        prefix.hit_count = self.hit_count
        prefix.priority = self.priority
        prefix.created = self.created
        prefix.accessed = self.accessed
        prefix.digests = self.digests[:num_pages]

        self.parent.children[self.key] = prefix
        self.parent = prefix
        self.tokens = _own(self.tokens[num_tokens:])
        self.pages = _own(self.pages[num_pages:])
        self.digests = self.digests[num_pages:]
        self.key = self.tokens[:page_size].tobytes()
        prefix.children[self.key] = self
        return prefix


def frozen_copy(array: IntArray) -> IntArray:
    """A read-only copy: the tree never keeps, and never hands out, an array somebody else could write to."""
    array = array.copy()
    array.setflags(write=False)
    return array


def _own(view: IntArray) -> IntArray:
    """`view`, or a copy of it where it pins more than twice its size: what nodes keep stays within twice
    what they hold, and cutting a long leaf page by page copies each token O(1) times."""
    base = view.base
    if isinstance(base, np.ndarray) and len(base) > 2 * len(view):
        return frozen_copy(view)
    return view


def common_length(a: TokenIds, b: TokenIds) -> int:
    """Leading tokens that `a` and `b` share."""
    length = min(len(a), len(b))
    look = _FIRST_LOOK_TOKENS
    if length > look and not np.array_equal(a[:look], b[:look]):
        length = look  # prompts that part mostly do so early: don't compare 70,000 tokens to find that out
    if not length:
        return 0
    differs = a[:length] != b[:length]
    first = int(differs.argmax())
    return first if differs[first] else length
