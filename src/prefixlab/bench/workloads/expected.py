"""What a cache of given size serves of each prompt: the hit oracle for requests one after another.

Owns the model of that cache. It knows whole pages; forgets what was used longest ago, the ends of prompts
before their beginnings; keeps prompts and answers, but for an answer's last token. So does a radix tree with
LRU, and so does a queue of free blocks. Without a capacity it forgets nothing, and `hit_oracle` says all.

Invariant: a pure function of sketches, wording and cache size; each request has ended before the next begins.
Answers to the same prompt, as long, are taken to be the same.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.workloads.prompts import fit, shared_tokens
from prefixlab.bench.workloads.sketch import NOBODY, IntArray, Sketches
from prefixlab.bench.workloads.wording import Wording

Extent = tuple[int, int]
"""A run of pages that are used together: what it is known by, and how many pages."""
_HEAD = -1
"""Of the pages that a template begins every prompt with."""


@dataclass(frozen=True)
class ExpectedHits:
    """A cache that is empty before the first request.

    Attributes:
        capacity_tokens: what it holds; None: it forgets nothing.
    """

    page_size: int
    capacity_tokens: int | None = None

    def of(self, sketches: Sketches, wording: Wording | None = None, *, knows_head: bool = False) -> IntArray:
        """Tokens served of each prompt, shape (n,).

        Args:
            wording: what puts something around it, if anything.
            knows_head: the cache has seen what `wording` begins every prompt with.
        """
        shared = sketches.shared_tokens if wording is None else shared_tokens(sketches, wording)
        num_head_pages = 0 if wording is None or not knows_head else wording.num_head_tokens // self.page_size
        shared = shared + np.where(np.arange(len(shared)) == 0, num_head_pages * self.page_size, 0)
        total, answered = sketches.prompt_tokens, sketches.prompt_tokens + sketches.output_tokens - 1
        full, taken, at_end = (total - 1) // self.page_size, self._pages(total), self._pages(answered)
        ideal = np.minimum(shared // self.page_size, full)
        if self.capacity_tokens is None:
            return ideal * self.page_size
        capacity = self.capacity_tokens // self.page_size
        if num_head_pages + (at_end - ideal).sum() <= capacity:  # nothing is ever forgotten
            return ideal * self.page_size
        cache, served = LruPages(capacity), np.zeros(len(sketches), np.int64)
        if num_head_pages:
            cache.serve([(_HEAD, num_head_pages)], (), 0, num_head_pages, num_head_pages)
        requests = zip(
            _requests(sketches, wording, self.page_size),
            *(column.tolist() for column in (full, taken, at_end)),
            strict=True,
        )
        for row, ((path, answer), *numbers) in enumerate(requests):
            served[row] = cache.serve(path, answer, *numbers)
        return served * self.page_size

    def _pages(self, tokens: IntArray) -> IntArray:
        return -(-tokens // self.page_size)


class LruPages:
    """The pages of such a cache, by extents. An extent is always used whole, and forgotten from its end."""

    def __init__(self, capacity_pages: int | None) -> None:
        self._capacity = math.inf if capacity_pages is None else capacity_pages
        self._held: OrderedDict[int, int] = OrderedDict()
        """Pages of each extent, in the order in which they go."""
        self._num_held = 0

    def peek(self, path: Sequence[Extent], readable: int) -> int:
        """How many leading pages of `path` it holds, of the first `readable`."""
        return sum(pages for _, pages in self._hits(path, readable))

    def serve(
        self, path: Sequence[Extent], answer: Sequence[Extent], readable: int, peak: int, peak_at_end: int
    ) -> int:
        """One request from start to end.

        Args:
            path: the prompt's extents. Their full pages are kept.
            answer: those behind them, the page that prompt and answer share included.
            readable: pages that may be served, no more than the prompt has.
            peak: pages it takes while its prompt is computed, the last one perhaps in part.
            peak_at_end: pages it takes when it ends.

        Returns:
            Pages served.
        """
        hits = list(self._hits(path, readable))
        found = sum(pages for _, pages in hits)
        self._touch(hits)
        self._make_room(peak - found)
        self._keep(path)
        num_full = sum(pages for _, pages in path)
        self._make_room(peak_at_end - num_full)
        self._keep((*path, *answer))
        return found

    def _hits(self, path: Sequence[Extent], readable: int) -> Iterator[Extent]:
        for key, pages in path:
            held = min(self._held.get(key, 0), readable)
            if held:
                yield key, held
            if held < pages:
                return
            readable -= held

    def _touch(self, path: Sequence[Extent]) -> None:
        for key, _ in reversed(path):
            self._held.move_to_end(key)

    def _keep(self, path: Sequence[Extent]) -> None:
        held = self._held
        for key, pages in reversed(path):  # what is deepest goes first
            self._num_held += pages - held.pop(key, 0)
            held[key] = pages

    def _make_room(self, num_pages: int) -> None:
        """Forget until so many more fit."""
        excess = self._num_held + num_pages - self._capacity
        while excess > 0 and self._held:
            key, pages = self._held.popitem(last=False)
            gone = int(min(pages, excess))
            if gone < pages:
                self._held[key] = pages - gone
                self._held.move_to_end(key, last=False)
            self._num_held -= gone
            excess -= gone


@dataclass(frozen=True, eq=False)
class _Paths:
    """Extents of all requests, one behind another.

    Attributes:
        starts: shape (n + 1,), of each request's.
        keys, pages: shape (m,).
    """

    starts: IntArray
    keys: IntArray
    pages: IntArray

    def of(self, row: int) -> list[Extent]:
        here = slice(int(self.starts[row]), int(self.starts[row + 1]))
        return list(zip(self.keys[here].tolist(), self.pages[here].tolist(), strict=True))


def _requests(
    sketches: Sketches, wording: Wording | None, page_size: int
) -> Iterator[tuple[list[Extent], list[Extent]]]:
    """Of each request the extents of its prompt, and of the answer to it; no extent is empty."""
    content = sketches if wording is None else fit(sketches, wording)
    num_head, num_tail = (0, 0) if wording is None else (wording.num_head_tokens, wording.num_tail_tokens)
    total, num_requests = sketches.prompt_tokens, len(sketches)
    answered = total + sketches.output_tokens
    before = np.full(num_requests, NOBODY)
    if sketches.continues is not None and sketches.after is not None:
        before[sketches.continues] = sketches.after[sketches.continues]
    begins = np.full(num_requests, num_head)
    later = before >= 0
    begins[later] = answered[before[later]]
    ends = np.where(later, total, total - num_tail)
    pieces = _of_pieces(content, begins, (total - 1) // page_size, page_size)
    # Behind the pieces: a template's tail, as far as it may be read and beyond; then the answer, and the page
    # that its last token fills, which only a prompt that continues it brings into the cache.
    num_keys = int(pieces.keys.max(initial=0)) + 1
    prompts = _numbered(content.trie.nodes[content.starts[1:] - 1], content.sizes[content.starts[1:] - 1])
    tails = num_keys + 2 * prompts
    answers = num_keys + 2 * (num_requests + _numbered(prompts, sketches.output_tokens))
    head = (_HEAD, num_head // page_size)
    bounds = [
        tokens // page_size for tokens in (ends, np.maximum(total - 1, ends), total, answered - 1, answered)
    ]
    behind = (tails, answers, before, *np.diff(bounds, axis=0))
    needed = set(before[later].tolist())
    kept: dict[int, list[Extent]] = {}
    columns = (column.tolist() for column in behind)
    for row, (tail, answer, history, *pages) in enumerate(zip(*columns, strict=True)):
        beginning = [head] if history == NOBODY else kept[history]
        path = [*beginning, *pieces.of(row), (tail, pages[0]), (tail + 1, pages[1])]
        path = [extent for extent in path if extent[1]]
        reply = [(answer, pages[2])] if pages[2] else []
        if row in needed:
            kept[row] = [*path, *reply, (answer + 1, pages[3])]
        yield path, reply


def _of_pieces(content: Sketches, begins: IntArray, readable: IntArray, page_size: int) -> _Paths:
    """The extents that pieces make: runs of them that no request leaves or joins, cut where one ends.

    Args:
        begins: shape (n,), tokens before the first piece.
        readable: shape (n,), pages of each prompt that may be served.
    """
    starts, nodes, trie = content.starts, content.trie.nodes, content.trie
    rows = np.repeat(np.arange(len(content)), np.diff(starts))
    reached = np.cumsum(content.sizes)
    behind = reached + (begins - np.concatenate(([0], reached))[starts[:-1]])[rows]
    before = behind - content.sizes
    is_first = np.zeros(len(nodes), np.bool_)
    is_first[starts[:-1]] = True
    ended_at = np.zeros(len(trie.num_siblings), np.bool_)
    ended_at[nodes[starts[1:] - 1]] = True
    joins = is_first | (trie.num_siblings[nodes] > 1)
    joins[1:] |= ended_at[nodes[:-1]]
    runs = np.flatnonzero(joins)
    run_rows, run_keys = rows[runs], nodes[runs]
    lows = before[runs] // page_size
    last = np.append(runs[1:], len(nodes)) - 1
    highs = behind[last] // page_size
    # Where a run may be left: at the end of what is read, and at the end of each request in it.
    middles = np.clip(readable[run_rows], lows, highs)
    base = int(highs.max(initial=0)) + 1
    codes = [run_keys * base + pages for pages in (lows, middles, highs)]
    cuts = np.unique(np.concatenate(codes))
    low, high = np.searchsorted(cuts, codes[0]), np.searchsorted(cuts, codes[2])
    counts = high - low
    keys = np.repeat(low + 1 - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
    pages = cuts[keys] - cuts[keys - 1]
    of_rows = np.zeros(len(content) + 1, np.int64)
    np.add.at(of_rows, run_rows + 1, counts)
    return _Paths(np.cumsum(of_rows), keys, pages)


def _numbered(left: IntArray, right: IntArray) -> IntArray:
    """Equal pairs get equal numbers, from 0, shape (n,)."""
    _, numbers = np.unique(np.stack([left, right]), axis=1, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64)
