"""Any sketches at all, for tests: walks in random trees, some cut short, some repeated, some continued."""

from __future__ import annotations

import zlib

import numpy as np
from hypothesis import strategies as st

from prefixlab.bench.workloads.sketch import NOBODY, Sketches


def size_of(path: tuple[int, ...], low: int, high: int) -> int:
    """Of the node that a path of keys leads to: always the same."""
    return low + zlib.crc32(repr(path).encode()) % (high - low + 1)


@st.composite
def any_sketches(
    draw: st.DrawFn,
    *,
    max_requests: int = 12,
    low: int = 1,
    high: int = 9,
    fewest_siblings: int = 3,
    max_output: int = 6,
    sessions: bool = False,
) -> Sketches:
    """`low` … `high`: tokens of a piece."""
    keys = st.integers(0, fewest_siblings - 1)
    pieces: list[list[tuple[int, int]]] = []
    after: list[int] = []
    for number in range(draw(st.integers(1, max_requests))):
        before = draw(st.integers(NOBODY, number - 1)) if sessions and number else NOBODY
        after.append(before)
        if before != NOBODY:
            fork = draw(st.integers(0, 2))  # what continues one answer may share its beginning
            shared = [] if fork == 2 else [(fork, size_of((before, fork), low, high))]
            pieces.append([*shared, (-1 - number, draw(st.integers(low, high)))])
            continue
        path = tuple(draw(st.lists(keys, min_size=0, max_size=4)))
        row = [(key, size_of(path[: depth + 1], low, high)) for depth, key in enumerate(path)]
        if not row or sessions or draw(st.booleans()):  # sessions: what is continued stands once
            row.append((-1 - number, draw(st.integers(low, high))))
        else:  # a prompt may end anywhere inside a piece
            key, size = row[-1]
            row[-1] = (key, draw(st.integers(low, size)))
        pieces.append(row)
    outputs = draw(st.lists(st.integers(1, max_output), min_size=len(pieces), max_size=len(pieces)))
    if not sessions:
        return Sketches.of(pieces, outputs)
    waits = np.array(after, np.int64)
    return Sketches.of(pieces, outputs, after=waits, continues=waits != NOBODY)
