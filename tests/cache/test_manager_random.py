"""The manager under random requests, against a memory that remembers what was written to each page.

Requests come and go with shared prefixes, forced misses, checkpoints, decode, retraction and too few pages.
After every call all pages are accounted for, and every page a running request would read holds exactly the
tokens it takes it to hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prefixlab.cache.config import CACHES, EVICTION_POLICIES, CacheConfig
from prefixlab.cache.manager import CacheManager
from prefixlab.core.block_hash import PUBLIC, Namespace, as_token_ids
from prefixlab.core.hit_oracle import expected_cached_tokens
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams

NUM_PAGES = 24
MAX_ROWS = 4
WIDTH = 60

Content = tuple[Namespace, tuple[int, ...]]


@dataclass
class Running:
    request: Request
    num_computed: int


numbers = st.integers(0, 1000)


class ManagerUnderRandomRequests(RuleBasedStateMachine):
    @initialize(
        page_size=st.sampled_from([1, 3, 4]),
        cache=st.sampled_from([*CACHES, "radix", "radix"]),
        policy=st.sampled_from(EVICTION_POLICIES),
    )
    def begin(self, page_size: int, cache: str, policy: str) -> None:
        config = CacheConfig(page_size=page_size, cache=cache, eviction_policy=policy)
        self.page_size = page_size
        self.manager = CacheManager(config, num_pages=NUM_PAGES, max_rows=MAX_ROWS, max_tokens_per_row=WIDTH)
        self.memory: dict[int, Content] = {}
        self.running: list[Running] = []
        self.waiting: list[Request] = []

    def tokens_of_page(self, request: Request, index: int, num_computed: int) -> Content:
        """A page's KV is a function of all tokens before it too, so it is known by the whole prefix."""
        stop = min((index + 1) * self.page_size, num_computed)
        return request.namespace, tuple(request.token_ids(stop).tolist())

    def compute(self, running: Running, num_tokens: int) -> None:
        """Write the KV of tokens [num_computed, num_tokens) as a runner would."""
        row = self.manager.page_table[running.request.row]
        for index in range(running.num_computed // self.page_size, -(-num_tokens // self.page_size)):
            self.memory[int(row[index])] = self.tokens_of_page(running.request, index, num_tokens)
        running.num_computed = num_tokens

    @rule(
        shared=st.integers(0, 20),
        own=st.lists(st.integers(0, 2), min_size=1, max_size=12),
        salted=st.booleans(),
        force_miss=st.sampled_from([False, False, False, True]),
        logprobs=st.sampled_from([False, False, False, True]),
        priority=st.integers(0, 2),
    )
    def arrive(
        self, shared: int, own: list[int], salted: bool, force_miss: bool, logprobs: bool, priority: int
    ) -> None:
        request = Request(
            "r",
            as_token_ids([0, 1] * (shared // 2) + own),
            SamplingParams(),
            namespace=Namespace(cache_salt="a") if salted else PUBLIC,
            priority=priority,
            force_miss=force_miss,
            return_prompt_logprobs=logprobs,
        )
        self.waiting.append(request)

    @precondition(lambda self: getattr(self, "waiting", None) and len(self.running) < MAX_ROWS)
    @rule(number=numbers)
    def admit(self, number: int) -> None:
        request = self.waiting.pop(number % len(self.waiting))
        promised = self.manager.lookup(request, touch=False).num_tokens
        match = self.manager.lookup(request, touch=True)
        assert match.num_tokens == promised == len(match.pages) * self.page_size
        num_tokens = request.num_tokens
        assert promised <= expected_cached_tokens(num_tokens, num_tokens, self.page_size)
        if request.force_miss or request.return_prompt_logprobs:
            assert promised == 0
        num_beside = self.manager.num_available_pages_beside(match)
        row = next(i for i in range(MAX_ROWS) if all(r.request.row != i for r in self.running))
        self.manager.admit(request, match, row)
        assert self.manager.num_available_pages == num_beside
        self.running.append(Running(request, match.num_tokens))

    @precondition(lambda self: getattr(self, "running", None))
    @rule(number=numbers, length=st.integers(1, 16), checkpoint=st.booleans())
    def prefill(self, number: int, length: int, checkpoint: bool) -> None:
        running = self.running[number % len(self.running)]
        num_tokens = min(running.num_computed + length, running.request.num_tokens)
        num_available = self.manager.num_available_pages
        num_missing = -(-num_tokens // self.page_size) - self.manager.num_row_pages[running.request.row]
        has_grown = self.manager.grow(running.request, num_tokens)
        assert has_grown == (num_missing <= num_available)
        if has_grown:
            self.compute(running, num_tokens)
            if checkpoint:
                self.manager.checkpoint(running.request, num_tokens)

    @precondition(lambda self: getattr(self, "running", None))
    @rule(token=st.integers(0, 2))
    def decode(self, token: int) -> None:
        """One token for everybody whose prompt is computed."""
        ready = [r for r in self.running if r.request.num_tokens - r.num_computed <= 1]
        ready = [r for r in ready if r.request.num_tokens <= WIDTH - 2]
        rows = as_token_ids([r.request.row for r in ready])
        num_places = self.manager.num_row_pages[rows] * self.page_size
        num_computed = np.array([r.num_computed for r in ready], dtype=np.int32)
        before = self.manager.stats()
        if self.manager.grow_rows(rows, num_computed >= num_places):
            for running in ready:
                if running.num_computed == running.request.num_tokens:
                    running.request.output_token_ids.append(token)
                self.compute(running, running.request.num_tokens)
                running.request.output_token_ids.append(token)
        else:
            assert self.manager.stats() == before

    @precondition(lambda self: getattr(self, "running", None))
    @rule(number=numbers, insert=st.booleans(), comes_back=st.booleans())
    def release(self, number: int, insert: bool, comes_back: bool) -> None:
        running = self.running.pop(number % len(self.running))
        self.manager.release(running.request, num_computed_tokens=running.num_computed, insert=insert)
        if comes_back and running.request.num_tokens < WIDTH:
            self.waiting.append(running.request)

    @precondition(lambda self: hasattr(self, "running") and not self.running)
    @rule()
    def reset(self) -> None:
        num_cached = self.manager.stats().num_cached_pages
        assert self.manager.reset() == num_cached
        assert self.manager.stats().num_free_pages == NUM_PAGES

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        if hasattr(self, "manager"):
            self.manager.check()

    @invariant()
    def every_page_holds_what_its_reader_expects(self) -> None:
        for running in getattr(self, "running", ()):
            row = self.manager.page_table[running.request.row].tolist()
            for index in range(-(-running.num_computed // self.page_size)):
                expected = self.tokens_of_page(running.request, index, running.num_computed)
                assert self.memory[row[index]] == expected


TestManagerUnderRandomRequests = ManagerUnderRandomRequests.TestCase
TestManagerUnderRandomRequests.settings = settings(deadline=None, max_examples=200, stateful_step_count=50)


@pytest.mark.slow
class TestManagerUnderRandomRequestsForLong(ManagerUnderRandomRequests.TestCase):
    settings = settings(deadline=None, max_examples=3000, stateful_step_count=60)
