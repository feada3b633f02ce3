"""What prompts are made of, before a single token is chosen: pieces, each with a key and a length.

Owns the form in which every workload of made-up tokens says who shares what: two prompts begin with the same
tokens exactly as far as their pieces have the same keys. Generators and traces make sketches; `prompts.py`
puts tokens to them, `expected.py` says what a cache should find. Columns, because a trace has millions of
pieces.

Invariant: pieces lie one after another without gaps, each of at least one token; a piece that another follows
has one length wherever its key stands at that place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

NOBODY = -1
"""In `after`: waits for no other request."""


OPTIONAL_COLUMNS = ("offsets_s", "after", "delays_s", "continues", "session_ids", "turns")


@dataclass(frozen=True, eq=False)
class Sketches:
    """Requests in the order in which they are sent, or in closed loop taken.

    Attributes:
        starts: shape (n + 1,); the pieces of request i are `starts[i]:starts[i + 1]`, at least one.
        keys: shape (m,), of each piece. Negative keys stand in one place only: nobody shares that piece.
        sizes: shape (m,), tokens of each piece.
        output_tokens: shape (n,), at least 1 each.
        offsets_s: shape (n,), when each goes, from the first; None where the workload does not say.
        after: shape (n,), index of the request whose end this one waits for, or NOBODY. A later turn of a
            session waits for the turn before; it is always further back in the plan than that one.
        delays_s: shape (n,), how long it then waits on (think time).
        continues: shape (n,), the pieces are only what is new: the prompt begins with the whole prompt of
            `after`, and what the server really answered to it.
        session_ids: of each request; None where there are no sessions.
        turns: shape (n,), from 0.
    """

    starts: IntArray
    keys: IntArray
    sizes: IntArray
    output_tokens: IntArray
    offsets_s: FloatArray | None = None
    after: IntArray | None = None
    delays_s: FloatArray | None = None
    continues: npt.NDArray[np.bool_] | None = None
    session_ids: Sequence[str] | None = None
    turns: IntArray | None = None

    @classmethod
    def of(
        cls,
        pieces: Iterable[Sequence[tuple[int, int]]],
        output_tokens: Sequence[int],
        **columns: Any,
    ) -> Sketches:
        """From (key, size) pairs, request by request: for the small and the hand-made."""
        rows = [list(row) for row in pieces]
        counts = [len(row) for row in rows]
        flat = np.array([pair for row in rows for pair in row], np.int64).reshape(-1, 2)
        starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        outputs = np.asarray(output_tokens, np.int64)
        return cls(starts, flat[:, 0].copy(), flat[:, 1].copy(), outputs, **columns)

    def __post_init__(self) -> None:
        n = len(self)
        assert self.starts[0] == 0 and self.starts[-1] == len(self.keys) == len(self.sizes)
        assert (np.diff(self.starts) > 0).all(), "a request without a piece"
        assert (self.sizes > 0).all() and (self.output_tokens > 0).all(), "something of no length"
        for name in ("output_tokens", *OPTIONAL_COLUMNS):
            column = getattr(self, name)
            assert column is None or len(column) == n, f"{name} is of another length"
        if self.after is not None:
            assert (self.after < np.arange(n)).all(), "a request waits for a later one"

    def __len__(self) -> int:
        return len(self.starts) - 1

    def first(self, count: int) -> Sketches:
        """The first `count` requests; what waits for another waits for an earlier one, so it is there."""
        if count >= len(self):
            return self
        end = int(self.starts[count])
        cut: dict[str, Any] = {
            name: None if (column := getattr(self, name)) is None else column[:count]
            for name in ("output_tokens", *OPTIONAL_COLUMNS)
        }
        return Sketches(self.starts[: count + 1], self.keys[:end], self.sizes[:end], **cut)

    @property
    def own_tokens(self) -> IntArray:
        """Tokens of each request's pieces, shape (n,)."""
        return np.add.reduceat(self.sizes, self.starts[:-1])

    @cached_property
    def prompt_tokens(self) -> IntArray:
        """Tokens of each whole prompt, shape (n,): where it continues, history and reply included, the reply
        as long as asked for."""
        total = self.own_tokens.copy()
        if self.continues is not None and self.after is not None:
            for row in np.flatnonzero(self.continues).tolist():  # `after` comes first
                before = int(self.after[row])
                total[row] += total[before] + self.output_tokens[before]
        return total

    @cached_property
    def trie(self) -> Trie:
        return Trie.of(self)

    @cached_property
    def shared_tokens(self) -> IntArray:
        """How many leading tokens of each prompt stood in an earlier one, or in the answer to it; shape (n,).

        Exact for a cache that forgets nothing, every earlier request having finished. Of an answer all but
        the last token, whose keys and values only a prompt that continues it brings.
        """
        trie = self.trie
        shared = trie.shared
        if self.continues is not None and self.after is not None:
            rows = np.flatnonzero(self.continues)
            before = self.after[rows]
            shared = shared.copy()
            shared[rows] += self.prompt_tokens[before] + self.output_tokens[before]
            shared[rows[np.unique(before, return_index=True)[1]]] -= 1  # the first that continues an answer
        return shared


@dataclass(frozen=True, eq=False)
class Trie:
    """The tree that the keys form.

    Attributes:
        nodes: shape (m,), of each piece: equal where the beginnings up to and with it are equal.
        ranks: shape (num_nodes,), which of its siblings a node is, by first appearance.
        num_siblings: shape (num_nodes,), itself included.
        shared: shape (n,), leading tokens of each request's pieces that stood in an earlier one's.
        repeats: shape (n,), an earlier request was the very same.
    """

    nodes: IntArray
    ranks: IntArray
    num_siblings: IntArray
    shared: IntArray
    repeats: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, sketches: Sketches) -> Trie:
        """Level by level: time is that of sorting the pieces."""
        starts, keys, sizes = sketches.starts, sketches.keys, sketches.sizes
        counts = np.diff(starts)
        nodes = np.full(len(keys), -1, np.int64)
        parents = np.full(len(sketches), 0, np.int64)  # the node each request is at; 0 is the root
        if sketches.continues is not None and sketches.after is not None:
            # What continues an answer stands beside what else continues it, and nobody else.
            parents[sketches.continues] = -1 - sketches.after[sketches.continues]
        shared = np.zeros(len(sketches), np.int64)
        agrees = np.ones(len(sketches), np.bool_)  # so far all of it stood in an earlier request
        ranks: list[IntArray] = []
        siblings: list[IntArray] = []
        num_nodes = 0
        rows = np.arange(len(sketches))
        level = 0
        while len(rows):
            at = starts[rows] + level
            node, rank, count, first = _children(parents[rows], keys[at], rows)
            size = sizes[at]
            longest = _longest_before(node, size)
            _check_sizes(node, size, counts[rows] > level + 1)
            seen = agrees[rows] & (rows > first[node])
            shared[rows] += np.where(seen, np.minimum(size, longest), 0)
            agrees[rows] = seen & (longest >= size)
            nodes[at] = node + num_nodes
            parents[rows] = node + num_nodes + 1
            ranks.append(rank)
            siblings.append(count)
            num_nodes += len(rank)
            level += 1
            rows = rows[counts[rows] > level]
        ends = starts[1:] - 1
        repeats = _seen_before(nodes[ends], sizes[ends])
        return cls(nodes, np.concatenate(ranks), np.concatenate(siblings), shared, repeats)


def _children(
    parents: IntArray, keys: IntArray, rows: IntArray
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """The nodes at one level, numbered from 0: of each row, then of each node its rank among its siblings,
    how many these are, and the row it first appears in. `rows` ascend."""
    order = np.lexsort((keys, parents))
    sorted_parents, sorted_keys = parents[order], keys[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (np.diff(sorted_parents) != 0) | (np.diff(sorted_keys) != 0)
    node = np.empty(len(order), np.int64)
    node[order] = np.cumsum(begins) - 1
    first = rows[order[begins]]  # lexsort is stable, so the first of a group is its earliest row
    node_parents = sorted_parents[begins]
    by_age = np.lexsort((first, node_parents))
    family = np.ones(len(by_age), np.bool_)
    family[1:] = np.diff(node_parents[by_age]) != 0
    family_starts = np.flatnonzero(family)
    sizes = np.diff(np.append(family_starts, len(by_age)))
    rank, count = np.empty(len(by_age), np.int64), np.empty(len(by_age), np.int64)
    rank[by_age] = np.arange(len(by_age)) - np.repeat(family_starts, sizes)
    count[by_age] = np.repeat(sizes, sizes)
    return node, rank, count, first


def _longest_before(node: IntArray, size: IntArray) -> IntArray:
    """Of each row the largest size that its node had in a row before; 0 in the first."""
    order = np.argsort(node, kind="stable")
    nodes, sizes = node[order], size[order]
    # A running maximum that begins anew with each node: sizes are lifted by the node's number.
    lift = int(size.max(initial=0)) + 1
    running = np.maximum.accumulate(sizes + nodes * lift) - nodes * lift
    before = np.zeros(len(order), np.int64)
    same = np.diff(nodes) == 0
    before[1:][same] = running[:-1][same]
    found = np.empty(len(order), np.int64)
    found[order] = before
    return found


def _seen_before(nodes: IntArray, sizes: IntArray) -> npt.NDArray[np.bool_]:
    """Of each row, whether one before is equal in both."""
    order = np.lexsort((sizes, nodes))
    seen = np.zeros(len(order), np.bool_)
    seen[order[1:]] = (np.diff(nodes[order]) == 0) & (np.diff(sizes[order]) == 0)
    return seen


def _check_sizes(node: IntArray, size: IntArray, inner: npt.NDArray[np.bool_]) -> None:
    """Inner pieces of a node have one size, and none that ends a prompt there is longer."""
    most = np.zeros(int(node.max(initial=-1)) + 1, np.int64)
    np.maximum.at(most, node, size)
    assert (size[inner] == most[node[inner]]).all(), "a piece that others follow has two lengths"
