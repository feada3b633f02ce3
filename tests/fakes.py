"""Shared test doubles and helpers: real, small implementations of our seams, and ways to look inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from prefixlab.cache.radix import RadixCache
from prefixlab.cache.tree_node import TreeNode
from prefixlab.core.batch import Batch, StepResult
from prefixlab.core.block_hash import PUBLIC, Namespace
from prefixlab.core.clock import VirtualClock
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


# FakeRunner --------------------------------------------------------------------------------------------

_MASK = 2**64 - 1
_TOKEN_FACTOR = 0x9E3779B97F4A7C15  # odd, so no power of it loses bits
_READ_FACTOR = 0xD6E8FEB86659FD93


def _powers(factor: int, start: int, stop: int) -> npt.NDArray[np.uint64]:
    """factor ** (i + 1) modulo 2 ** 64, for i in [start, stop)."""
    powers = np.full(stop - start, factor, dtype=np.uint64)
    if len(powers):
        powers[0] = pow(factor, start + 1, 2**64)
    return np.multiply.accumulate(powers)


def _scrambled(value: int) -> int:
    value = (value ^ (value >> 31)) * 0xBF58476D1CE4E5B9 & _MASK
    return value ^ (value >> 29)


def oracle_tokens(
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    vocab_size: int,
    stop_token_ids: frozenset[int] = frozenset(),
    min_new_tokens: int = 0,
) -> list[int]:
    """What a FakeRunner must produce for `prompt`, worked out with no cache, no pages and no batches."""
    kv = 0  # of the latest token: depends on all before it
    read = 0  # what reading the KV of all tokens gives
    output: list[int] = []
    known = list(prompt)
    position = 0
    while True:
        while position < len(known):
            kv = kv + (known[position] + 1) * pow(_TOKEN_FACTOR, position + 1, 2**64) & _MASK
            read = read + kv * pow(_READ_FACTOR, position + 1, 2**64) & _MASK
            position += 1
        token = _scrambled(read) % vocab_size
        output.append(token)
        known.append(token)
        stops = token in stop_token_ids and len(output) >= min_new_tokens
        if stops or len(output) == max_new_tokens:
            return output


class FakeRunner:
    """A Runner whose next token depends on everything it reads back through the page table.

    The KV it keeps of a token is a number made from that token and the KV before it; the next token is a hash
    of the KV of all positions. So a page mixed up, left stale, shared with another prefix or written twice
    gives other tokens than `oracle_tokens`.

    Args:
        num_pages, page_size: of the KV it keeps.
        vocab_size: tokens are 0 … vocab_size - 1.
        fixed_s, per_token_s: how long a batch takes.
        clock: moved on by that.
    """

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        vocab_size: int = 1000,
        fixed_s: float = 0.0,
        per_token_s: float = 0.0,
        clock: VirtualClock | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._page_size = page_size
        self._kv = np.zeros(num_pages * page_size, dtype=np.uint64)
        self._fixed_s = fixed_s
        self._per_token_s = per_token_s
        self._clock = clock
        self.num_computed_tokens = 0

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def run(self, batch: Batch) -> StepResult:
        written: list[npt.NDArray[np.intp]] = []
        first = 0
        for row, start, length in zip(batch.rows, batch.starts.tolist(), batch.lengths.tolist(), strict=True):
            tokens = batch.input_ids[first : first + length].astype(np.uint64)
            first += length
            slots = self._slots(batch, row, start + length)
            before = self._kv[slots[start - 1]] if start else np.uint64(0)
            steps = (tokens + np.uint64(1)) * _powers(_TOKEN_FACTOR, start, start + length)
            self._kv[slots[start:]] = before + np.add.accumulate(steps)
            written.append(slots[start:])
        all_written = np.concatenate(written)
        assert len(np.unique(all_written)) == len(all_written), "two tokens were written to one place"

        token_ids = np.full(batch.num_rows, -1, dtype=np.int32)
        for index in np.flatnonzero(batch.samples):  # after all are written, as a layer of a model does
            stop = int(batch.starts[index] + batch.lengths[index])
            kv = self._kv[self._slots(batch, batch.rows[index], stop)]
            read = int((kv * _powers(_READ_FACTOR, 0, stop)).sum(dtype=np.uint64))
            token_ids[index] = _scrambled(read) % self._vocab_size
        self.num_computed_tokens += batch.num_tokens
        duration_s = self._fixed_s + self._per_token_s * batch.num_tokens
        if self._clock is not None:
            self._clock.advance(duration_s)
        return StepResult(token_ids=token_ids, duration_s=duration_s)

    def _slots(self, batch: Batch, row: int, stop: int) -> npt.NDArray[np.intp]:
        """Where the KV of positions [0, stop) of `row` is."""
        positions = np.arange(stop)
        pages = batch.page_table[row, positions // self._page_size].astype(np.intp)
        return pages * self._page_size + positions % self._page_size
