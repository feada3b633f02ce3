from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.traces.hit_rates import NOWHERE, measure_reuse
from prefixlab.bench.traces.sharing_tree import Nodes, grow_tree
from prefixlab.bench.traces.trace import Trace

BLOCK_SIZE = 4
Path = tuple[int, ...]


def a_trace(paths: list[Path], cut: int) -> Trace:
    """Requests whose blocks are where they lie in a tree; the last block of each lacks `cut` tokens, but of
    those that others go on behind."""
    numbers: dict[Path, int] = {}
    rows = [[numbers.setdefault(path[: n + 1], len(numbers)) for n in range(len(path))] for path in paths]
    inner = {path[:n] for path in paths for n in range(len(path))}
    tokens = [len(path) * BLOCK_SIZE - (0 if path in inner else cut) for path in paths]
    counts = [len(row) for row in rows]
    return Trace(
        "t",
        BLOCK_SIZE,
        offsets_s=np.arange(len(rows), dtype=np.float64),
        prompt_tokens=np.maximum(1, np.array(tokens, np.int64)),
        output_tokens=np.ones(len(rows), np.int64),
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        hash_ids=np.array([block for row in rows for block in row], np.int64),
    )


def plain_nodes(paths: list[Path]) -> list[tuple[int, int, int]]:
    """(blocks before, blocks, requests) of each node, by counting who goes through every prefix."""
    through = Counter(path[: n + 1] for path in paths for n in range(len(path)))
    nodes = []
    for prefix, count in through.items():
        if len(prefix) > 1 and through[prefix[:-1]] == count:
            continue  # not where a node begins
        end = prefix
        while True:
            nexts = [path for path in through if path[:-1] == end and through[path] == count]
            if not nexts:
                break
            (end,) = nexts
        nodes.append((len(prefix) - 1, len(end) - len(prefix) + 1, count))
    return sorted(nodes)


@given(
    paths=st.lists(st.lists(st.integers(0, 2), max_size=7).map(tuple), min_size=1, max_size=16),
    cut=st.integers(0, BLOCK_SIZE - 1),
)
@settings(deadline=None)
def test_nodes_are_the_stretches_that_the_same_requests_go_through(paths: list[Path], cut: int) -> None:
    trace = a_trace(paths, cut)
    reuse = measure_reuse(trace)
    nodes = Nodes.of(reuse)
    columns = (nodes.blocks_before, nodes.num_blocks, nodes.num_requests)
    assert sorted(zip(*(column.tolist() for column in columns), strict=True)) == plain_nodes(paths)
    assert (nodes.parents < np.arange(len(nodes.parents))).all()
    for node, parent in enumerate(nodes.parents.tolist()):
        before = 0 if parent == NOWHERE else nodes.blocks_before[parent] + nodes.num_blocks[parent]
        assert nodes.blocks_before[node] == before
    tree = grow_tree(reuse)
    assert tree.num_roots == len({path[0] for path in paths if path})
    assert tree.unique_blocks == int(nodes.num_blocks.sum())
    hits = reuse.curve().ideal
    assert hits.hit_tokens == int(((nodes.num_requests - 1) * nodes.num_tokens).sum())


def test_only_as_many_prefixes_are_shown_as_asked_for_and_none_that_is_not_shared() -> None:
    reuse = measure_reuse(a_trace([(0, 1), (0, 2), (1, 1), (1, 2), (2, 0)], 0))
    assert len(grow_tree(reuse, 1).most_shared) == 1
    assert [prefix.num_requests for prefix in grow_tree(reuse).most_shared] == [2, 2]
