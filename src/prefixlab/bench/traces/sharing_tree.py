"""The tree of a trace's prefixes: which beginnings many requests have, and how long these are.

Owns its shape. A node is a stretch of blocks that the same requests go through, as in a radix tree: it ends
where some of them end or go different ways.

Invariant: the nodes' blocks are the trace's distinct blocks, each in one node; a parent comes before its
children.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefixlab.bench.traces.hit_rates import NOWHERE, Reuse
from prefixlab.bench.workloads.sketch import IntArray


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """A node that several requests go through.

    Attributes:
        num_requests: that begin with all of it.
        prefix_blocks, prefix_tokens: from the start of the prompt to the node's end.
        node_blocks, node_tokens: of the node alone.
        repeated_tokens: of the node, in all its requests but the first: what a cache would save here.
    """

    num_requests: int
    prefix_blocks: int
    prefix_tokens: int
    node_blocks: int
    node_tokens: int
    repeated_tokens: int


@dataclass(frozen=True, slots=True)
class SharingTree:
    """
    Attributes:
        num_roots: different first blocks.
        num_nodes, num_leaves: a leaf is where nothing goes on.
        most_nodes: on the way to one leaf.
        most_blocks: of one request.
        unique_blocks: of which blocks_used_once are in one request only.
        most_shared: by repeated tokens, most first.
    """

    num_roots: int
    num_nodes: int
    num_leaves: int
    most_nodes: int
    most_blocks: int
    unique_blocks: int
    blocks_used_once: int
    most_shared: tuple[SharedPrefix, ...]


@dataclass(frozen=True, eq=False)
class Nodes:
    """Columns, shape (num_nodes,).

    Attributes:
        parents: NOWHERE for a root.
        blocks_before: blocks between the start of the prompt and the node.
        num_blocks, num_tokens: the node's own.
        num_requests: that go through it.
    """

    parents: IntArray
    blocks_before: IntArray
    num_blocks: IntArray
    num_tokens: IntArray
    num_requests: IntArray

    @classmethod
    def of(cls, reuse: Reuse) -> Nodes:
        """From where each block was used first. Time is that of the distinct blocks."""
        trace, blocks, counts = reuse.trace, reuse.blocks, reuse.counts
        is_new = reuse.distances == NOWHERE
        lengths = reuse.lengths[is_new]
        ends = np.cumsum(lengths)
        # Places of first uses, ascending: each run of new blocks spelt out.
        firsts = np.arange(int(lengths.sum())) + np.repeat(reuse.starts[is_new] - (ends - lengths), lengths)
        rows = np.repeat(reuse.rows[is_new], lengths)
        uses = counts[blocks[firsts]]
        begins_row = firsts == trace.starts[rows]
        # A block that as many requests have as the one before it: the same requests, so the same node.
        goes_on = np.zeros(len(firsts), np.bool_)
        goes_on[1:] = (np.diff(firsts) == 1) & (np.diff(uses) == 0) & ~begins_row[1:]
        heads = np.flatnonzero(~goes_on)
        node_of = np.empty(len(counts), np.int64)
        node_of[blocks[firsts]] = np.cumsum(~goes_on) - 1
        places = firsts[heads]
        parents = np.where(begins_row[heads], NOWHERE, node_of[blocks[places - 1]])
        num_blocks = np.diff(np.append(heads, len(firsts)))
        ends_row = places + num_blocks == trace.starts[rows[heads] + 1]
        num_tokens = num_blocks * trace.block_size
        num_tokens -= np.where(ends_row, reuse.missing_tokens[rows[heads]], 0)
        return cls(parents, places - trace.starts[rows[heads]], num_blocks, num_tokens, uses[heads])

    def depths(self) -> list[int]:
        """Nodes from the root to each, itself included."""
        depths: list[int] = []
        for parent in self.parents.tolist():
            depths.append(1 if parent == NOWHERE else depths[parent] + 1)
        return depths


def grow_tree(reuse: Reuse, num_shown: int = 10) -> SharingTree:
    """The tree of the trace, with its `num_shown` most shared prefixes."""
    nodes = Nodes.of(reuse)
    block_size = reuse.trace.block_size
    repeated = (nodes.num_requests - 1) * nodes.num_tokens
    order = np.argsort(-repeated, kind="stable")[:num_shown]
    return SharingTree(
        num_roots=int(np.count_nonzero(nodes.parents == NOWHERE)),
        num_nodes=len(nodes.parents),
        num_leaves=len(nodes.parents) - len(np.unique(nodes.parents[nodes.parents != NOWHERE])),
        most_nodes=max(nodes.depths(), default=0),
        most_blocks=int(np.diff(reuse.trace.starts).max(initial=0)),
        unique_blocks=reuse.unique_blocks,
        blocks_used_once=int(np.count_nonzero(reuse.counts == 1)),
        most_shared=tuple(
            SharedPrefix(
                num_requests=int(nodes.num_requests[node]),
                prefix_blocks=int(nodes.blocks_before[node] + nodes.num_blocks[node]),
                prefix_tokens=int(nodes.blocks_before[node] * block_size + nodes.num_tokens[node]),
                node_blocks=int(nodes.num_blocks[node]),
                node_tokens=int(nodes.num_tokens[node]),
                repeated_tokens=int(repeated[node]),
            )
            for node in order.tolist()
            if repeated[node] > 0
        ),
    )
