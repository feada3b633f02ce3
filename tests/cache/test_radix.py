"""The radix tree by example: what is worth seeing with one's own eyes. Completeness is the twin's job."""

from __future__ import annotations

import numpy as np
import pytest

from prefixlab.cache.eviction import lru, policy_key
from prefixlab.cache.pages import PageAllocator
from prefixlab.cache.radix import RadixCache
from prefixlab.cache.tree_node import TreeNode
from prefixlab.core.block_hash import PUBLIC, Namespace, as_token_ids
from prefixlab.core.errors import CacheError
from tests.fakes import tree_contents


def make_tree(*, page_size: int = 1, num_pages: int = 64, policy: str = "lru") -> RadixCache:
    key = policy_key(policy, slru_protected_threshold=2)
    return RadixCache(PageAllocator(num_pages), page_size, key)


def put(tree: RadixCache, text: str, *, priority: int = 0, counted_tokens: int = 0) -> TreeNode:
    """Insert the letters of `text`, as a request that lets go of its pages right away."""
    tokens = as_token_ids(map(ord, text))
    pages = tree._allocator.alloc(len(tokens) // tree.page_size)
    result = tree.insert(tokens, pages, PUBLIC, priority=priority, counted_tokens=counted_tokens)
    tree._allocator.free(pages)
    tree.check()
    assert isinstance(result.handle, TreeNode)
    return result.handle


def use(tree: RadixCache, text: str) -> int:
    return tree.match(as_token_ids(map(ord, text)), PUBLIC).num_tokens


def shape(tree: RadixCache) -> set[tuple[str, ...]]:
    """Every node, as the labels from the root down to it."""
    paths: dict[TreeNode | None, tuple[str, ...]] = {}
    for node in tree.nodes():
        paths[node] = (*paths.get(node.parent, ()), "".join(map(chr, node.tokens.tolist())))
    return set(paths.values())


def texts(tree: RadixCache) -> set[str]:
    """Every leaf, as its whole text."""
    paths = shape(tree)
    return {
        "".join(path) for path in paths if not any(path == other[: len(path)] != other for other in paths)
    }


# Shape -------------------------------------------------------------------------------------------------


def test_prompts_that_part_share_a_node_up_to_there() -> None:
    tree = make_tree()
    put(tree, "the cat sat")
    put(tree, "the cow")
    put(tree, "the c")
    assert shape(tree) == {("the c",), ("the c", "at sat"), ("the c", "ow")}


def test_a_split_happens_at_whole_pages_only() -> None:
    tree = make_tree(page_size=4)
    put(tree, "abcdefghijkl")
    put(tree, "abcdefXXijkl")
    assert shape(tree) == {("abcd",), ("abcd", "efghijkl"), ("abcd", "efXXijkl")}


def test_the_partial_page_at_the_end_is_not_cached() -> None:
    tree = make_tree(page_size=4)
    assert use(tree, "abcdef") == 0
    put(tree, "abcdef")
    assert shape(tree) == {("abcd",)}
    assert use(tree, "abcdef") == 4
    put(tree, "abc")
    assert shape(tree) == {("abcd",)}


def test_an_insert_with_too_few_pages_is_an_error_that_changes_nothing() -> None:
    tree = make_tree(page_size=2)
    put(tree, "ab")
    with pytest.raises(CacheError, match="1 pages for 5 tokens"):
        tree.insert(as_token_ids([1, 2, 3, 4, 5]), tree._allocator.alloc(1), PUBLIC)
    assert texts(tree) == {"ab"}
    tree.check()


def test_a_match_inside_a_node_splits_it_and_a_peek_does_not() -> None:
    tree = make_tree()
    put(tree, "abcdef")
    assert tree.peek(as_token_ids(map(ord, "abcX")), PUBLIC) == 3
    assert shape(tree) == {("abcdef",)}
    assert use(tree, "abcX") == 3
    assert shape(tree) == {("abc",), ("abc", "def")}


def test_a_split_leaves_issued_handles_where_they_stood() -> None:
    tree = make_tree()
    handle = put(tree, "abcdef")
    receipt = tree.lock(handle)
    put(tree, "abX")
    assert handle.tokens.tolist() == [*map(ord, "cdef")]
    assert tree.num_protected_pages == 6
    tree.evict(64)
    assert texts(tree) == {"abcdef"}
    tree.unlock(receipt)
    tree.check()
    assert tree.num_evictable_pages == 6


def test_the_upper_half_of_a_split_takes_after_the_node() -> None:
    tree = make_tree()
    lower = put(tree, "abcdef", priority=3)
    put(tree, "abcdef")
    facts = (lower.hit_count, lower.priority, lower.created, lower.accessed)
    tree.lock(lower)
    use(tree, "ab")
    upper = lower.parent
    assert upper is not None
    assert (lower.hit_count, lower.priority, lower.created, lower.accessed) == facts
    assert (upper.hit_count, upper.priority, upper.created) == facts[:3]
    assert upper.lock_count == lower.lock_count == 1
    assert upper.accessed > lower.accessed


def test_a_walk_leaves_no_node_older_than_one_below_it() -> None:
    tree = make_tree()
    for text in ("abcdef", "abcX", "abY", "abcdefgh", "abc"):
        put(tree, text)
        use(tree, text[:2])
        for node in tree.nodes():
            assert node.parent is not None
            assert node.parent is tree.root or node.accessed <= node.parent.accessed


def test_namespaces_part_at_the_root() -> None:
    tree = make_tree(page_size=2)
    tokens = as_token_ids([1, 2, 3, 4])
    for namespace in (PUBLIC, Namespace("x", None), Namespace(None, "x"), Namespace("", None)):
        pages = tree._allocator.alloc(2)
        assert tree.insert(tokens, pages, namespace).num_existing_tokens == 0
    tree.check()
    contents = tree_contents(tree)
    assert len(contents) == len(set(contents.values())) == 8


def test_a_very_deep_tree_needs_no_recursion() -> None:
    depth = 1500
    tree = make_tree(num_pages=depth)
    tokens = np.arange(depth, dtype=np.int32)
    pages = tree._allocator.alloc(depth)
    for stop in range(1, depth + 1):
        handle = tree.insert(tokens[:stop], pages, PUBLIC).handle
    tree._allocator.free(pages)
    assert len(list(tree.nodes())) == depth
    receipt = tree.lock(handle)
    assert tree.num_protected_pages == depth
    tree.unlock(receipt)
    tree.check()
    assert tree.evict(depth - 1) == depth - 1
    assert tree.match(tokens, PUBLIC).num_tokens == 1


@pytest.mark.parametrize("parts_at", [1, 1023, 1024, 1025, 3000, 69_999])
def test_long_prompts_part_where_they_part(parts_at: int) -> None:
    tree = make_tree(num_pages=70_000)
    tokens = np.arange(70_000, dtype=np.int32)
    tree.insert(tokens, tree._allocator.alloc(70_000), PUBLIC)
    other = tokens.copy()
    other[parts_at] += 1
    assert tree.peek(other, PUBLIC) == tree.match(other, PUBLIC).num_tokens == parts_at
    assert tree.match(tokens, PUBLIC).pages.tolist() == tokens.tolist()


def test_nodes_pin_at_most_twice_the_memory_they_use() -> None:
    tree = make_tree(page_size=4, num_pages=20_000)
    tokens = np.arange(64_000, dtype=np.int32)
    pages = tree._allocator.alloc(16_000)
    tree.insert(tokens, pages, PUBLIC)
    tree._allocator.free(pages)
    for length in (40, 400, 4_000, 40_000):
        tree.match(tokens[:length], PUBLIC)
    for _ in range(30):
        tree.evict(500)
        for node in tree.nodes():
            for array in (node.tokens, node.pages):
                assert array.base is None or len(array.base) <= 2 * len(array)
    assert tree.num_evictable_pages == 1_000


def test_what_the_tree_hands_out_cannot_be_written_to() -> None:
    tree = make_tree()
    put(tree, "abcdef")
    match = tree.match(as_token_ids(map(ord, "abc")), PUBLIC)
    with pytest.raises(ValueError, match="read-only"):
        match.pages[0] = 0


# Hit counts and priorities -----------------------------------------------------------------------------


def hit_counts(tree: RadixCache) -> dict[str, int]:
    return {"".join(map(chr, node.tokens.tolist())): node.hit_count for node in tree.nodes()}


def test_a_request_counts_each_node_once_however_many_chunks_it_comes_in() -> None:
    tree = make_tree()
    put(tree, "abcd")
    put(tree, "abcdefgh", counted_tokens=4)
    put(tree, "abcdefghij", counted_tokens=8)
    assert hit_counts(tree) == {"abcd": 1, "efgh": 1, "ij": 1}
    put(tree, "abcdefghij")  # another request, in one piece
    assert hit_counts(tree) == {"abcd": 2, "efgh": 2, "ij": 2}


def test_matching_counts_no_hit() -> None:
    tree = make_tree()
    put(tree, "abcd")
    use(tree, "abcd")
    assert hit_counts(tree) == {"abcd": 1}


def test_an_insert_raises_priorities_along_its_path_and_lowers_none() -> None:
    tree = make_tree()
    put(tree, "abcd", priority=1)
    put(tree, "abX", priority=5)
    put(tree, "abcd", priority=0)
    assert {n.tokens.tobytes(): n.priority for n in tree.nodes()} == {
        as_token_ids(map(ord, text)).tobytes(): wanted for text, wanted in (("ab", 5), ("cd", 1), ("X", 5))
    }


# Eviction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "first_to_last"),
    [
        ("lru", "dd bb cc aa"),
        ("mru", "aa cc bb dd"),
        ("fifo", "aa bb cc dd"),
        ("filo", "dd cc bb aa"),
        ("lfu", "dd aa cc bb"),
        ("slru", "dd aa bb cc"),
        ("priority", "cc dd aa bb"),
    ],
)
def test_each_policy_evicts_in_its_order(policy: str, first_to_last: str) -> None:
    tree = make_tree(policy=policy)
    put(tree, "aa", priority=1)
    put(tree, "bb", priority=2)
    put(tree, "cc", priority=0)
    put(tree, "dd", priority=1)
    for text in ("bb", "bb", "cc"):
        put(tree, text)
    use(tree, "aa")  # hits now: aa and dd 1, cc 2, bb 3; last used: dd, bb, cc, aa
    order = []
    while before := texts(tree):
        tree.evict(2)
        order += before - texts(tree)
    assert order == first_to_last.split()


def test_a_long_leaf_is_trimmed_from_its_tail_by_pages() -> None:
    tree = make_tree(page_size=2)
    put(tree, "abcdefgh")
    put(tree, "xy")
    assert tree.evict(1) == 1
    assert texts(tree) == {"abcdef", "xy"}
    assert tree.evict(2) == 2
    assert texts(tree) == {"ab", "xy"}


def test_trimming_goes_on_where_it_stopped() -> None:
    tree = make_tree()
    put(tree, "abcdef")
    put(tree, "uvw")
    for left in ("abcde", "abcd", "abc"):
        tree.evict(1)
        assert texts(tree) == {left, "uvw"}


def test_a_handle_whose_tail_was_trimmed_is_void() -> None:
    tree = make_tree()
    handle = put(tree, "abcd")
    tree.evict(1)
    with pytest.raises(CacheError, match="evicted"):
        tree.lock(handle)
    tree.check()


def test_a_handle_stays_void_when_its_prefix_comes_back() -> None:
    tree = make_tree()
    handle = put(tree, "abcd")
    tree.evict(4)
    put(tree, "abcd")
    with pytest.raises(CacheError, match="evicted"):
        tree.lock(handle)


def test_handles_from_before_a_reset_are_void() -> None:
    tree = make_tree()
    upper = put(tree, "ab")
    lower = put(tree, "abcd")
    tree.reset()
    for handle in (upper, lower):
        with pytest.raises(CacheError, match="evicted"):
            tree.lock(handle)
    put(tree, "abcd")
    assert tree.num_evictable_pages == 4


def test_a_parent_goes_only_after_its_children() -> None:
    tree = make_tree()
    put(tree, "abcd")
    put(tree, "abXY")
    assert tree.evict(3) == 3
    assert texts(tree) == {"abX"}
    assert tree.evict(3) == 3
    assert texts(tree) == set()


def test_a_lock_protects_its_path_and_nothing_beside_it() -> None:
    tree = make_tree()
    put(tree, "abcd")
    middle = put(tree, "ab")
    put(tree, "abXY")
    receipt = tree.lock(middle)
    assert (tree.num_protected_pages, tree.num_evictable_pages) == (2, 4)
    assert tree.evict(64) == 4
    assert texts(tree) == {"ab"}
    tree.unlock(receipt)
    assert tree.evict(64) == 2


def test_two_locks_protect_until_both_are_given_back() -> None:
    tree = make_tree()
    handle = put(tree, "abcd")
    first, second = tree.lock(handle), tree.lock(handle)
    tree.unlock(first)
    assert tree.evict(64) == 0
    tree.unlock(second)
    assert tree.evict(64) == 4


# check() finds what is broken --------------------------------------------------------------------------


def test_check_finds_every_kind_of_damage() -> None:
    def broken(damage: str) -> RadixCache:
        tree = make_tree(page_size=2)
        node = put(tree, "abcd")
        other = put(tree, "abXY")
        top = node.parent
        assert top is not None
        match damage:
            case "size":
                tree._num_evictable_pages += 1
            case "lock":
                node.lock_count += 1
            case "receipt":
                tree._locks[object()] = node
            case "queue":
                tree._queue.discard(node)
            case "page":
                other.pages = node.pages
            case "free page":
                tree._allocator.free(node.pages)
            case "link":
                node.parent = other
            case "key":
                node.tokens = node.tokens + 1
            case "length":
                node.tokens = node.tokens[:1]
            case "time":
                node.accessed = top.accessed + 1
        return tree

    kinds = ("size", "lock", "receipt", "queue", "page", "free page", "link", "key", "length", "time")
    broken("nothing").check()
    for damage in kinds:
        with pytest.raises(AssertionError):
            broken(damage).check()


def test_the_tree_says_what_it_is() -> None:
    tree = RadixCache(PageAllocator(4), 2, lru)
    assert tree.supports_prefix_sharing
    assert tree.page_size == 2
