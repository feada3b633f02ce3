from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.cache.config import EVICTION_POLICIES
from prefixlab.cache.eviction import EvictionQueue, lru, policy_key
from prefixlab.cache.tree_node import TreeNode
from prefixlab.core.errors import ConfigError


@dataclass(frozen=True)
class Facts:
    created: int
    accessed: int
    hit_count: int = 1
    priority: int = 0


# Four prefixes that every policy orders in its own way.
OLD_BUT_HOT = Facts(created=1, accessed=9, hit_count=5, priority=0)
OLD_AND_COLD = Facts(created=2, accessed=2, hit_count=1, priority=3)
TWICE_USED = Facts(created=3, accessed=5, hit_count=2, priority=1)
YOUNG = Facts(created=7, accessed=7, hit_count=1, priority=1)


@pytest.mark.parametrize(
    ("policy", "first_to_last"),
    [
        ("lru", [OLD_AND_COLD, TWICE_USED, YOUNG, OLD_BUT_HOT]),
        ("mru", [OLD_BUT_HOT, YOUNG, TWICE_USED, OLD_AND_COLD]),
        ("fifo", [OLD_BUT_HOT, OLD_AND_COLD, TWICE_USED, YOUNG]),
        ("filo", [YOUNG, TWICE_USED, OLD_AND_COLD, OLD_BUT_HOT]),
        ("lfu", [OLD_AND_COLD, YOUNG, TWICE_USED, OLD_BUT_HOT]),
        ("slru", [OLD_AND_COLD, YOUNG, TWICE_USED, OLD_BUT_HOT]),
        ("priority", [OLD_BUT_HOT, TWICE_USED, YOUNG, OLD_AND_COLD]),
    ],
)
def test_each_policy_has_its_order(policy: str, first_to_last: list[Facts]) -> None:
    key = policy_key(policy, slru_protected_threshold=2)
    assert sorted([YOUNG, TWICE_USED, OLD_BUT_HOT, OLD_AND_COLD], key=key) == first_to_last


def test_slru_protects_from_its_threshold_on() -> None:
    key = policy_key("slru", slru_protected_threshold=3)
    assert sorted([OLD_BUT_HOT, TWICE_USED, YOUNG], key=key) == [TWICE_USED, YOUNG, OLD_BUT_HOT]


def test_every_policy_of_the_config_has_a_key_and_no_other_has() -> None:
    for policy in EVICTION_POLICIES:
        assert policy_key(policy, slru_protected_threshold=2)(YOUNG) is not None
    with pytest.raises(ConfigError, match="--eviction-policy 'lruu'"):
        policy_key("lruu", slru_protected_threshold=2)


def leaf(accessed: int) -> TreeNode:
    node = TreeNode(None, b"", np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.int32))
    node.accessed = accessed
    return node


def test_a_node_added_anew_moves_to_its_new_place() -> None:
    queue = EvictionQueue(lru)
    first, second = leaf(1), leaf(2)
    queue.add(first)
    queue.add(second)
    first.accessed = 3
    queue.add(first)
    assert len(queue) == 2
    assert [queue.pop(), queue.pop(), queue.pop()] == [second, first, None]


def test_a_discarded_node_never_comes_out_and_may_come_back() -> None:
    queue = EvictionQueue(lru)
    node = leaf(1)
    queue.add(node)
    queue.discard(node)
    queue.discard(node)
    assert len(queue) == 0
    assert queue.pop() is None
    queue.add(node)
    assert queue.pop() is node


def test_equal_keys_come_out_in_the_order_they_went_in() -> None:
    queue = EvictionQueue(lru)
    nodes = [leaf(1) for _ in range(5)]
    for node in nodes:
        queue.add(node)
    assert [queue.pop() for _ in nodes] == nodes


def test_stale_entries_never_pile_up() -> None:
    queue = EvictionQueue(lru)
    nodes = [leaf(i) for i in range(10)]
    for tick in range(10_000):
        node = nodes[tick % 10]
        node.accessed = tick
        queue.add(node)
        assert len(queue._heap) <= 2 * len(queue) + 65


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "pop"]), st.integers(0, 7)), max_size=60))
def test_the_queue_agrees_with_sorting_everything(steps: list[tuple[str, int]]) -> None:
    nodes = [leaf(0) for _ in range(8)]
    queue = EvictionQueue(lru)
    queued: list[TreeNode] = []
    for tick, (verb, number) in enumerate(steps):
        node = nodes[number]
        if verb == "add":
            node.accessed = tick
            queue.add(node)
            queued = [*(other for other in queued if other is not node), node]
        elif verb == "discard":
            queue.discard(node)
            queued = [other for other in queued if other is not node]
        else:
            queued.sort(key=lambda other: other.accessed)
            assert queue.pop() is (queued.pop(0) if queued else None)
        assert len(queue) == len(queued)
