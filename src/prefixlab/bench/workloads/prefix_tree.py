"""From prompts to pieces: which of them begin alike, and how far. The way back from `prompts.py`.

Owns finding out who shares what with whom where only the tokens are known. Of what several prompts share it
holds one copy.

Invariant: pieces fulfil what `Sketches` asks of them; two prompts have the same keys exactly as far as they
have the same tokens.
"""

from __future__ import annotations

from array import array

import numpy as np

from prefixlab.bench.workloads.sketch import IntArray
from prefixlab.bench.workloads.wording import common_prefix
from prefixlab.core.block_hash import TokenIds

_ROOT = 0
_ALONE = -1
"""The parent of nodes that no other prompt is compared with."""


class PrefixTree:
    """A radix tree. Nodes are numbered; the number is the key of the piece on the way to it."""

    def __init__(self) -> None:
        self._parents = array("q", [_ALONE])
        self._sizes = array("q", [0])
        self._tokens: list[TokenIds | None] = [None]
        self._children: list[dict[int, int]] = [{}]
        self._ends = array("q")
        """Node where each prompt ends."""
        self._roots: dict[int | None, int] = {None: _ROOT}

    def add(self, tokens: TokenIds, *, behind: int | None = None) -> None:
        """The next prompt, shape (n,), at least one token.

        Args:
            behind: which earlier one it continues, its tokens being only what is new: it is compared with
                what else continues that one.
        """
        if behind not in self._roots:
            self._roots[behind] = self._new(_ALONE, None, 0)
        node, place = self._roots[behind], 0
        while place < len(tokens):
            child = self._children[node].get(int(tokens[place]))
            if child is None:
                node = self._new(node, tokens[place:].copy())
                break
            edge = self._tokens[child]
            assert edge is not None, "a node that prompts are compared with has its tokens"
            shared = common_prefix(edge, tokens[place:])
            place += shared
            node = child if shared == len(edge) else self._split(child, shared)
        self._ends.append(node)

    def add_alone(self, num_tokens: int) -> None:
        """The next prompt, which shares nothing with any."""
        self._ends.append(self._new(_ALONE, None, num_tokens))

    def pieces(self) -> tuple[IntArray, IntArray, IntArray]:
        """`starts`, `keys` and `sizes`, as `Sketches` has them. Keys of nodes alone are negative."""
        starts, keys, sizes = array("q", [0]), array("q"), array("q")
        for end in self._ends:
            path = []
            node = end
            while node != _ALONE and self._sizes[node]:
                path.append(node)
                node = self._parents[node]
            alone = node == _ALONE
            keys.extend(-number if alone else number for number in reversed(path))
            sizes.extend(self._sizes[number] for number in reversed(path))
            starts.append(len(keys))
        return np.array(starts, np.int64), np.array(keys, np.int64), np.array(sizes, np.int64)

    def _new(self, parent: int, tokens: TokenIds | None, size: int = 0) -> int:
        """Of no tokens: where a tree begins, or a prompt nobody knows the tokens of."""
        number = len(self._parents)
        self._parents.append(parent)
        self._tokens.append(tokens)
        self._sizes.append(size if tokens is None else len(tokens))
        self._children.append({})
        if tokens is not None:
            self._children[parent][int(tokens[0])] = number
        return number

    def _split(self, lower: int, at: int) -> int:
        """A node in the middle of the way to `lower`, whose number stays: prompts end there."""
        edge = self._tokens[lower]
        assert edge is not None
        upper = self._new(self._parents[lower], edge[:at])
        self._children[upper][int(edge[at])] = lower
        self._parents[lower], self._tokens[lower], self._sizes[lower] = upper, edge[at:], len(edge) - at
        return upper
