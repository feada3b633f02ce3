from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.traces.hit_rates import NOWHERE, lru_curve, measure_reuse
from prefixlab.bench.traces.trace import Trace

BLOCK_SIZE = 4


def a_trace(
    rows: list[list[int]], prompt_tokens: list[int] | None = None, offsets_s: list[float] | None = None
) -> Trace:
    counts = [len(row) for row in rows]
    return Trace(
        "t",
        BLOCK_SIZE,
        offsets_s=np.array(offsets_s or range(len(rows)), np.float64),
        prompt_tokens=np.array(prompt_tokens or [max(1, BLOCK_SIZE * count) for count in counts], np.int64),
        output_tokens=np.ones(len(rows), np.int64),
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        hash_ids=np.array([block for row in rows for block in row], np.int64),
    )


def plain_lru(trace: Trace, capacity: int) -> tuple[int, int]:
    """Hit blocks and tokens, by a list of blocks in the order of their last use."""
    cache: OrderedDict[int, None] = OrderedDict()
    hit_blocks = hit_tokens = 0
    for row in range(len(trace)):
        leading, left = True, int(trace.prompt_tokens[row])
        for block in trace.hash_ids[trace.starts[row] : trace.starts[row + 1]].tolist():
            leading = leading and block in cache
            size = min(trace.block_size, left)
            left -= size
            hit_blocks += leading
            hit_tokens += leading * size
            cache[block] = None
            cache.move_to_end(block)
            if len(cache) > capacity:
                cache.popitem(last=False)
    return hit_blocks, hit_tokens


def plain_distances(blocks: list[int]) -> list[int]:
    """Of each reference, the other distinct blocks since its last use."""
    found = []
    for place, block in enumerate(blocks):
        before = [other for other in range(place) if blocks[other] == block]
        found.append(len(set(blocks[before[-1] + 1 : place])) if before else NOWHERE)
    return found


ROWS = st.lists(st.lists(st.integers(0, 11), max_size=8), min_size=1, max_size=14)
"""Any blocks in any order: also what no real trace has, one block twice in a request."""


@st.composite
def tree_rows(draw: st.DrawFn) -> list[list[int]]:
    """What a real trace has: a block is always behind the same blocks."""
    numbers: dict[tuple[int, ...], int] = {}
    rows = []
    for path in draw(st.lists(st.lists(st.integers(0, 2), max_size=7), min_size=1, max_size=16)):
        rows.append([numbers.setdefault(tuple(path[: n + 1]), len(numbers)) for n in range(len(path))])
    return rows


@given(rows=st.one_of(ROWS, tree_rows()), cut=st.integers(0, BLOCK_SIZE - 1), chunk_bits=st.integers(0, 5))
@settings(deadline=None, max_examples=300)
def test_one_pass_gives_what_a_plain_lru_cache_gives_at_every_capacity(
    rows: list[list[int]], cut: int, chunk_bits: int
) -> None:
    trace = a_trace(rows, [max(1, BLOCK_SIZE * len(row) - cut) for row in rows])
    curve = measure_reuse(trace, chunk_bits=chunk_bits).curve()
    for capacity in range(curve.unique_blocks + 2):
        hits = curve.at(capacity)
        assert (hits.hit_blocks, hits.hit_tokens) == plain_lru(trace, capacity)
    assert curve.ideal == curve.at(curve.unique_blocks)
    assert curve.num_blocks == sum(map(len, rows))
    assert curve.unique_blocks == len({block for row in rows for block in row})


@given(rows=st.one_of(ROWS, tree_rows()), chunk_bits=st.integers(0, 5))
@settings(deadline=None, max_examples=200)
def test_distances_count_the_distinct_blocks_in_between(rows: list[list[int]], chunk_bits: int) -> None:
    trace = a_trace(rows)
    reuse = measure_reuse(trace, chunk_bits=chunk_bits)
    flat = np.repeat(reuse.distances, reuse.lengths).tolist()
    assert flat == plain_distances(trace.hash_ids.tolist())
    places = [range(start, start + length) for start, length in zip(reuse.starts, reuse.lengths, strict=True)]
    assert [place for run in places for place in run] == list(range(len(trace.hash_ids)))


@given(rows=tree_rows())
@settings(deadline=None)
def test_the_ideal_is_what_the_sketches_of_the_trace_share(rows: list[list[int]]) -> None:
    trace = a_trace(rows)
    assert lru_curve(trace).ideal.hit_tokens == int(trace.sketches.shared_tokens.sum())


@given(rows=tree_rows(), large=st.integers(0, 2**62))
@settings(deadline=None)
def test_names_of_blocks_may_be_any_numbers(rows: list[list[int]], large: int) -> None:
    renamed = [[large + 3_000_000_019 * block for block in row] for row in rows]
    small, curve = lru_curve(a_trace(rows)), lru_curve(a_trace(renamed))
    assert curve.capacities.tolist() == small.capacities.tolist()
    assert curve.hit_blocks.tolist() == small.hit_blocks.tolist()


def test_what_lies_behind_the_first_miss_is_no_hit() -> None:
    curve = lru_curve(a_trace([[0, 1, 2], [3], [0, 9, 2]]))
    assert curve.ideal.hit_blocks == 1  # block 2 is there, but behind block 9, which is not


def test_a_cache_smaller_than_a_request_forgets_its_start_before_it_comes_again() -> None:
    curve = lru_curve(a_trace([[0, 1, 2, 3], [0, 1, 2, 3]]))
    assert [curve.at(capacity).hit_blocks for capacity in range(6)] == [0, 0, 0, 0, 4, 4]


def test_the_least_capacity_for_a_share_of_the_ideal_is_known() -> None:
    curve = lru_curve(a_trace([[0], [0], [1], [2], [3], [1], [2], [3]]))
    assert curve.capacities.tolist() == [1, 3]
    assert [curve.capacity_for(share) for share in (0.0, 0.25, 0.26, 1.0)] == [1, 1, 3, 3]
    assert lru_curve(a_trace([[0], [1]])).capacity_for(0.5) == 0


def test_requests_without_blocks_count_their_tokens_only() -> None:
    curve = lru_curve(a_trace([[], [5], [], [5], []], [3, 4, 2, 6, 1]))
    assert (curve.ideal.hit_blocks, curve.num_blocks) == (1, 2)
    assert (curve.ideal.hit_tokens, curve.num_tokens) == (4, 16)
    assert measure_reuse(a_trace([[], [5], [], [5], []])).ideal_hit_blocks.tolist() == [0, 0, 0, 1, 0]


def test_a_trace_without_blocks_has_no_hits() -> None:
    curve = lru_curve(a_trace([[], []], [3, 4]))
    assert (curve.ideal.rate_by_blocks, curve.ideal.rate_by_tokens) == (0, 0)


def test_progress_is_told_chunk_by_chunk() -> None:
    told: list[tuple[int, int]] = []
    measure_reuse(a_trace([[0, 1, 2], [0, 1, 3, 4]]), lambda *at: told.append(at), chunk_bits=2)
    assert told == [(4, 7), (7, 7)]
