"""The radix tree against its slow twin: a dictionary from every prefix of whole pages to its page.

The twin knows no nodes, no splits and no heap. It keeps each page's facts apart and finds what to evict by
sorting all pages nothing follows, one page at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from prefixlab.cache.base import Handle, Receipt
from prefixlab.cache.config import EVICTION_POLICIES
from prefixlab.cache.eviction import policy_key
from prefixlab.cache.pages import PageAllocator
from prefixlab.cache.radix import RadixCache
from prefixlab.cache.tree_node import TreeNode
from prefixlab.core.block_hash import PUBLIC, Namespace, TokenIds, as_token_ids
from prefixlab.core.errors import CacheError
from tests.fakes import EventList, Prefix, fold_events, tree_contents

NUM_PAGES = 48
NAMESPACES = (PUBLIC, Namespace(extra_key="a"), Namespace(cache_salt="a"), Namespace("a", "a"))


@dataclass
class TwinPage:
    page: int
    created: int
    accessed: int
    hit_count: int
    priority: int


@dataclass
class Held:
    """A handle the cache gave out, and the prefix it stands for."""

    handle: Handle
    namespace: Namespace
    tokens: tuple[int, ...]
    is_void: bool = False


@dataclass(frozen=True)
class Prompt:
    """An earlier prompt, cut after some pages, and continued: so that prompts meet, part and come again."""

    earlier: int
    cut: int
    kinds: tuple[int, ...]
    """Pages that follow, see `tokens`."""
    tail: int
    """Tokens of a partial page at the end."""


prompts = st.builds(
    Prompt,
    earlier=st.integers(0, 1000),
    cut=st.sampled_from([99, 99, 99, 0, 1, 2, 3, 5]),
    kinds=st.lists(st.integers(0, 2), max_size=4).map(tuple),
    tail=st.integers(0, 15),
)
namespaces = st.sampled_from([PUBLIC, PUBLIC, *NAMESPACES])


class TreeAgainstTwin(RuleBasedStateMachine):
    @initialize(page_size=st.sampled_from([1, 3, 16]), policy=st.sampled_from(EVICTION_POLICIES))
    def begin(self, page_size: int, policy: str) -> None:
        self.page_size = page_size
        self.key = policy_key(policy, slru_protected_threshold=2)
        self.allocator = PageAllocator(NUM_PAGES)
        self.sink = EventList()
        self.tree = RadixCache(self.allocator, page_size, self.key, self.sink)
        self.twin: dict[Prefix, TwinPage] = {}
        self.tick = 0
        self.prompts: list[tuple[int, ...]] = [()]
        self.held = [Held(self.tree.root, PUBLIC, ())]
        self.locks: list[tuple[Receipt, Held]] = []

    def tokens(self, prompt: Prompt) -> TokenIds:
        """A prompt's tokens: whole pages that differ in their last token, their first token or not at all,
        and a partial page."""
        kinds = (self.prompts[prompt.earlier % len(self.prompts)][: prompt.cut] + prompt.kinds)[:9]
        self.prompts.append(kinds)
        size = self.page_size
        pages = {0: [0] * size, 1: [0] * (size - 1) + [1], 2: [2] + [0] * (size - 1)}
        return as_token_ids([token for kind in kinds for token in pages[kind]] + [0] * (prompt.tail % size))

    def prefixes(self, tokens: TokenIds, namespace: Namespace) -> list[Prefix]:
        ids = tuple(tokens.tolist())
        ends = range(self.page_size, len(ids) + 1, self.page_size)
        return [(namespace, ids[:end]) for end in ends]

    def cached(self, tokens: TokenIds, namespace: Namespace) -> list[Prefix]:
        return [prefix for prefix in self.prefixes(tokens, namespace) if prefix in self.twin]

    def protected(self) -> set[Prefix]:
        return {
            prefix
            for _, held in self.locks
            for prefix in self.prefixes(as_token_ids(held.tokens), held.namespace)
        }

    def forget(self, gone: set[Prefix]) -> None:
        for prefix in gone:
            del self.twin[prefix]
        for held in self.held:
            held.is_void |= (held.namespace, held.tokens) in gone

    @rule(prompt=prompts, namespace=namespaces)
    def peek(self, prompt: Prompt, namespace: Namespace) -> None:
        tokens = self.tokens(prompt)
        before = every_fact(self.tree)
        assert self.tree.peek(tokens, namespace) == len(self.cached(tokens, namespace)) * self.page_size
        assert every_fact(self.tree) == before

    @rule(prompt=prompts, namespace=namespaces)
    def match(self, prompt: Prompt, namespace: Namespace) -> None:
        tokens = self.tokens(prompt)
        match = self.tree.match(tokens, namespace)
        cached = self.cached(tokens, namespace)
        self.tick += 1
        for prefix in cached:
            self.twin[prefix].accessed = self.tick
        assert match.num_tokens == len(cached) * self.page_size
        assert match.pages.tolist() == [self.twin[prefix].page for prefix in cached]
        self.held.append(Held(match.handle, namespace, tuple(tokens[: match.num_tokens].tolist())))

    @rule(prompt=prompts, namespace=namespaces, priority=st.integers(-1, 2), again=st.booleans())
    def insert(self, prompt: Prompt, namespace: Namespace, priority: int, again: bool) -> None:
        tokens = self.tokens(prompt)
        num_pages = len(tokens) // self.page_size
        if num_pages > self.allocator.num_free_pages:
            return
        pages = self.allocator.alloc(num_pages)
        result = self.tree.insert(
            tokens, pages, namespace, priority=priority, counted_tokens=len(tokens) if again else 0
        )
        self.allocator.free(pages)  # what the tree did not share is free again

        cached = self.cached(tokens, namespace)
        self.tick += 1
        for prefix in cached:
            facts = self.twin[prefix]
            facts.accessed = self.tick
            facts.hit_count += not again
            facts.priority = max(facts.priority, priority)
        all_prefixes = self.prefixes(tokens, namespace)
        for prefix, page in list(zip(all_prefixes, pages.tolist(), strict=True))[len(cached) :]:
            self.twin[prefix] = TwinPage(page, self.tick, self.tick, 1, priority)
        assert result.num_existing_tokens == len(cached) * self.page_size
        assert result.pages.tolist() == [self.twin[prefix].page for prefix in all_prefixes]
        full = tuple(tokens[: num_pages * self.page_size].tolist())
        self.held.append(Held(result.handle, namespace, full))

    @rule(number=st.integers(0, 1000))
    def lock(self, number: int) -> None:
        held = self.held[number % len(self.held)]
        if held.is_void:
            with pytest.raises(CacheError):
                self.tree.lock(held.handle)
        else:
            self.locks.append((self.tree.lock(held.handle), held))

    @rule(number=st.integers(0, 1000))
    def unlock(self, number: int) -> None:
        if self.locks:
            receipt, _ = self.locks.pop(number % len(self.locks))
            self.tree.unlock(receipt)
            with pytest.raises(CacheError):
                self.tree.unlock(receipt)

    @rule(num_pages=st.integers(0, 5))
    def evict(self, num_pages: int) -> None:
        protected = self.protected()
        gone: set[Prefix] = set()
        left = {prefix: facts for prefix, facts in self.twin.items() if prefix not in protected}
        for _ in range(min(num_pages, len(left))):
            parents = {(namespace, ids[: -self.page_size]) for namespace, ids in left}
            first = min((prefix for prefix in left if prefix not in parents), key=lambda p: self.key(left[p]))
            del left[first]
            gone.add(first)
        num_free = self.allocator.num_free_pages
        assert self.tree.evict(num_pages) == len(gone)
        assert self.allocator.num_free_pages == num_free + len(gone)
        self.forget(gone)

    @rule(number=st.integers(0, 5))
    def reset(self, number: int) -> None:
        if number:  # seldom, or the tree never fills
            return
        if self.locks:
            with pytest.raises(CacheError):
                self.tree.reset()
        else:
            assert self.tree.reset() == len(self.twin)
            self.forget(set(self.twin))

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "tree"):
            return
        self.tree.check()
        self.allocator.check()
        assert tree_contents(self.tree) == {prefix: facts.page for prefix, facts in self.twin.items()}
        assert fold_events(self.sink.events) == set(self.twin)
        assert self.tree.num_protected_pages == len(self.protected())
        assert self.tree.num_evictable_pages == len(self.twin) - len(self.protected())
        assert self.allocator.num_free_pages == NUM_PAGES - len(self.twin)


def every_fact(tree: RadixCache) -> list[dict[str, object]]:
    """All there is to know of each node, arrays as lists so that they compare."""
    facts = []
    for node in tree.nodes():
        slots = {name: getattr(node, name) for name in TreeNode.__slots__}
        arrays = {"tokens": node.tokens.tolist(), "pages": node.pages.tolist()}
        facts.append({**slots, **arrays, "children": dict(node.children)})
    return facts


TestTreeAgainstTwin = TreeAgainstTwin.TestCase
TestTreeAgainstTwin.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)


@pytest.mark.slow
class TestTreeAgainstTwinForLong(TreeAgainstTwin.TestCase):
    settings = settings(deadline=None, max_examples=3000, stateful_step_count=60)
