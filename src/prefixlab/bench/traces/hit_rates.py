"""What a cache of any size finds of a trace's blocks: stack distances, and the hit rates that follow.

Owns the flat cache: blocks in one list, no time, requests one after another in the order of the trace. One
pass gives the least recently used cache of every capacity at once, because a larger one always holds what a
smaller one holds (Mattson et al., Evaluation techniques for storage hierarchies, 1970). A policy without that
property has no such pass and is simulated capacity by capacity; that is not done here.

What counts. A request looks up its blocks from the start, one after another, and each becomes the most
recently used, whether it was there or not. A block is a hit if it is still in the cache and so was every
block before it in the same request: what lies behind the first miss has to be computed. Answers are not
cached.

Invariant: hits grow with capacity; with room for every distinct block they are those of a cache that forgets
nothing. Tokens of a hit are those of its block that the prompt has: a last, partial block counts what it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.sketch import IntArray

OnProgress = Callable[[int, int], None]
"""(block references done, of how many)."""

NOWHERE = -1
CHUNK_BITS = 21
"""References taken at once, as a power of two: bounds memory, changes no result."""


@dataclass(frozen=True, slots=True)
class Hits:
    """What one capacity finds. `num_blocks` and `num_tokens` are all that was asked for."""

    capacity_blocks: int
    hit_blocks: int
    hit_tokens: int
    num_blocks: int
    num_tokens: int

    @property
    def rate_by_blocks(self) -> float:
        return self.hit_blocks / max(1, self.num_blocks)

    @property
    def rate_by_tokens(self) -> float:
        return self.hit_tokens / max(1, self.num_tokens)


@dataclass(frozen=True, eq=False)
class HitCurve:
    """Hits against capacity: steps, none left out.

    Attributes:
        capacities: shape (s,), blocks, ascending: the capacities at which there are more hits than with one
            block less.
        hit_blocks, hit_tokens: shape (s,), from that capacity on.
        num_blocks: all references; num_tokens: all tokens of all prompts, those without a block's name too.
        unique_blocks: distinct blocks; a cache of so many never forgets one.
    """

    capacities: IntArray
    hit_blocks: IntArray
    hit_tokens: IntArray
    num_blocks: int
    num_tokens: int
    unique_blocks: int

    def at(self, capacity_blocks: int) -> Hits:
        step = int(np.searchsorted(self.capacities, capacity_blocks, side="right")) - 1
        found = (0, 0) if step < 0 else (int(self.hit_blocks[step]), int(self.hit_tokens[step]))
        return Hits(capacity_blocks, *found, self.num_blocks, self.num_tokens)

    @property
    def ideal(self) -> Hits:
        """Of a cache that forgets nothing."""
        return self.at(self.unique_blocks)

    def capacity_for(self, share: float) -> int:
        """The least capacity, in blocks, with at least `share` of the ideal hits (by blocks)."""
        if not len(self.capacities):
            return 0
        wanted = np.ceil(share * int(self.hit_blocks[-1]) - 1e-9)
        return int(self.capacities[np.searchsorted(self.hit_blocks, wanted)])


@dataclass(frozen=True, eq=False)
class Reuse:
    """Every reference to a block, in runs: stretches of one request that repeat a stretch of an earlier one.

    Within a run the distance is the same for every block, which is what makes tens of millions of references
    few: a conversation that is sent again with one turn more is one run and a new end.

    Attributes:
        starts, lengths: shape (r,), where each run begins among the trace's references, and how many it has.
        rows: shape (r,), the request it is of.
        tokens: shape (r,).
        earlier_rows: shape (r,), the request that used these blocks last; NOWHERE where nobody had.
        distances: shape (r,), other distinct blocks used since then; NOWHERE where nobody had.
        missing_tokens: shape (n,), by how much each request's last block is not full.
        blocks: shape (m,), the block of each reference, as an index below `len(counts)`.
        counts: how often each block is referred to; an index that no reference has counts 0.
    """

    trace: Trace
    starts: IntArray
    lengths: IntArray
    rows: IntArray
    tokens: IntArray
    earlier_rows: IntArray
    distances: IntArray
    missing_tokens: IntArray
    blocks: IntArray
    counts: IntArray

    @property
    def unique_blocks(self) -> int:
        return int(np.count_nonzero(self.counts))

    @property
    def needs(self) -> IntArray:
        """The capacity from which on each run is a hit, all before it in its request included; shape (r,).
        One more than there are references where no capacity helps."""
        never = len(self.blocks) + 1
        alone = np.where(self.distances == NOWHERE, never, self.distances + 1)
        # A running maximum that begins anew with each request: what is compared is lifted by its number.
        lift = self.rows * (never + 1)
        return np.maximum.accumulate(alone + lift) - lift

    @property
    def ideal_hit_blocks(self) -> IntArray:
        """Leading blocks of each request that a cache that forgets nothing holds; shape (n,)."""
        hit = self.needs <= len(self.blocks)
        found = np.bincount(self.rows[hit], weights=self.lengths[hit], minlength=len(self.trace))
        return found.astype(np.int64)

    def curve(self) -> HitCurve:
        needs = self.needs
        hit = needs <= len(self.blocks)
        capacities, group = np.unique(needs[hit], return_inverse=True)
        # Counts far below 2**53, so sums of doubles are exact.
        blocks = np.bincount(group, weights=self.lengths[hit], minlength=len(capacities))
        tokens = np.bincount(group, weights=self.tokens[hit], minlength=len(capacities))
        return HitCurve(
            capacities,
            np.cumsum(blocks).astype(np.int64),
            np.cumsum(tokens).astype(np.int64),
            num_blocks=len(self.blocks),
            num_tokens=int(self.trace.prompt_tokens.sum()),
            unique_blocks=self.unique_blocks,
        )


def lru_curve(trace: Trace, on_progress: OnProgress = lambda done, total: None) -> HitCurve:
    """The hit rates of every capacity of a least recently used cache. Time as `measure_reuse`."""
    return measure_reuse(trace, on_progress).curve()


def measure_reuse(
    trace: Trace, on_progress: OnProgress = lambda done, total: None, *, chunk_bits: int = CHUNK_BITS
) -> Reuse:
    """How far apart the uses of each block are.

    Time grows with the references, in chunks that are sorted, and with r log r for r runs. Memory beyond the
    trace: about 1 byte a reference where ids are numbers without large gaps (30 where not), 140 a run.
    """
    blocks = _small_numbers(trace.hash_ids)
    counts = np.bincount(blocks, minlength=1)
    starts, earlier = _runs(trace, blocks, len(counts), chunk_bits, on_progress)
    lengths = np.diff(np.append(starts, len(blocks)))
    rows = _rows_of(trace, starts)
    tokens = lengths * trace.block_size
    is_last = starts + lengths == trace.starts[rows + 1]
    missing_tokens = np.maximum(0, np.diff(trace.starts) * trace.block_size - trace.prompt_tokens)
    tokens[is_last] -= missing_tokens[rows[is_last]]
    earlier_rows = np.where(earlier == NOWHERE, NOWHERE, _rows_of(trace, earlier))
    distances = _distances(lengths, earlier)
    return Reuse(
        trace, starts, lengths, rows, tokens, earlier_rows, distances, missing_tokens, blocks, counts
    )


def _rows_of(trace: Trace, references: IntArray) -> IntArray:
    """The request each reference is of; never one without ids, though it begins where the next one does."""
    return np.searchsorted(trace.starts, references, side="right") - 1


def _small_numbers(ids: IntArray) -> IntArray:
    """The same blocks under numbers fit to be indices."""
    if len(ids) and int(ids.max()) >= 4 * len(ids):
        return np.unique(ids, return_inverse=True)[1].astype(np.int64)
    return ids


def _runs(
    trace: Trace, blocks: IntArray, num_numbers: int, chunk_bits: int, on_progress: OnProgress
) -> tuple[IntArray, IntArray]:
    """Where runs begin, and where what each repeats begins (NOWHERE: a run of blocks nobody had used).

    A run lies in one request and repeats a stretch of one request, block after block.
    """
    total = len(blocks)
    begins_row = np.zeros(total + 1, np.bool_)  # one more, so that NOWHERE finds False
    begins_row[trace.starts[:-1][np.diff(trace.starts) > 0]] = True
    last_used = np.full(num_numbers, NOWHERE, np.int64)
    starts: list[IntArray] = []
    earlier: list[IntArray] = []
    for begin in range(0, total, 1 << chunk_bits):
        chunk = blocks[begin : begin + (1 << chunk_bits)]
        previous = _previous_uses(chunk, begin, last_used, chunk_bits)
        goes_on = np.zeros(len(chunk), np.bool_)
        goes_on[1:] = (previous[1:] == previous[:-1] + 1) & (previous[1:] != 0)
        goes_on[1:] |= (previous[1:] == NOWHERE) & (previous[:-1] == NOWHERE)
        goes_on &= ~begins_row[begin : begin + len(chunk)] & ~begins_row[previous]
        at = np.flatnonzero(~goes_on)
        starts.append(at + begin)
        earlier.append(previous[at])
        on_progress(begin + len(chunk), total)
    nothing = np.zeros(0, np.int64)
    return np.concatenate([nothing, *starts]), np.concatenate([nothing, *earlier])


def _previous_uses(chunk: IntArray, begin: int, last_used: IntArray, chunk_bits: int) -> IntArray:
    """Where each reference's block was used last, or NOWHERE; brings `last_used` up to date."""
    # Block and place in one number: sorting plain numbers is several times as fast as a stable argsort.
    both = (chunk << chunk_bits) | np.arange(len(chunk))
    both.sort()
    places = both & ((1 << chunk_bits) - 1)
    both >>= chunk_bits
    is_first = np.ones(len(chunk), np.bool_)
    is_first[1:] = both[1:] != both[:-1]
    is_last = np.append(is_first[1:], True)
    previous = np.empty(len(chunk), np.int64)
    previous[places[is_first]] = last_used[both[is_first]]
    previous[places[~is_first]] = places[~is_last] + begin
    last_used[both[is_last]] = places[is_last] + begin
    return previous


def _distances(lengths: IntArray, earlier: IntArray) -> IntArray:
    """Of each run, how many other distinct blocks were used since its blocks were.

    Let t repeat p. Blocks used between them count once, where they are used first after p: where their own
    previous use lies before p. All references up to p have theirs before p too, so it is the references
    before t whose previous use lies before p, less p + 1. With p and t one further on, both grow by one: so
    a run has one distance.
    """
    is_new = earlier == NOWHERE
    new_before = np.cumsum(np.where(is_new, lengths, 0))
    repeated = np.flatnonzero(~is_new)
    distances = np.full(len(lengths), NOWHERE, np.int64)
    smaller_before = _weight_of_smaller_before(earlier[repeated], lengths[repeated])
    distances[repeated] = new_before[repeated] + smaller_before - (earlier[repeated] + 1)
    return distances


def _weight_of_smaller_before(values: IntArray, weights: IntArray) -> IntArray:
    """For each place the weights of all earlier places with a smaller value, added up. Values are distinct.

    Places are halved again and again, each half in order of value: what the left half has below a value of
    the right half is a running sum. log n passes over all, from the largest halves down.
    """
    sums = np.zeros(len(values), np.int64)
    places = np.argsort(values, kind="stable")
    for bit in reversed(range(max(0, len(values) - 1).bit_length())):
        half = 1 << bit
        is_right = (places & half) != 0
        lefts, rights = places[~is_right], places[is_right]
        # A pair of halves that has a right one at all has a whole left one. So of the k-th place to the
        # right, k // half left halves lie in earlier pairs; and before it lie all places but k to the left.
        k = np.arange(len(rights))
        running = np.concatenate(([0], np.cumsum(weights[lefts])))
        sums[rights] += running[np.flatnonzero(is_right) - k] - running[k & -half]
        whole = len(places) // (2 * half) * half
        pairs = places[: 2 * whole].reshape(-1, 2, half)
        pairs[:, 0], pairs[:, 1] = lefts[:whole].reshape(-1, half), rights[:whole].reshape(-1, half)
        places[2 * whole :] = np.concatenate((lefts[whole:], rights[whole:]))
    return sums
