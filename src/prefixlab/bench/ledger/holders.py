"""Who had brought a prompt's beginning when it was sent, and whether that was done by then. Pure.

Owns reading that from a workload's sketches and the times in its records. What a server made of it is for
`causes.py` to ask.

Invariant: nothing here looks at what servers say of hits; of prompts nobody knows the sharing of, -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from prefixlab.bench.records.table import BoolArray, FloatArray, IntArray, RecordTable
from prefixlab.bench.workloads.prompts import fit, shared_tokens
from prefixlab.bench.workloads.sketch import Sketches
from prefixlab.bench.workloads.wording import Wording

UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class Holders:
    """By row of the records, shape (n,) each; -1 where it is not known.

    Attributes:
        shared: leading tokens of the prompt that an earlier one brought, whatever became of that one.
        ready: of those, the tokens of prompts whose first token had come when this one was sent.
        ended: of those, the tokens of prompts whose answer had ended by then: what every server keeps.
        here: of those shared, what was brought to the server that this one went to.
        distance: tokens that were computed between the last prompt that began with the same and this one.
    """

    shared: IntArray
    ready: IntArray
    ended: IntArray
    here: IntArray
    distance: IntArray

    @classmethod
    def unknown(cls, num_rows: int) -> Holders:
        return cls(*(np.full(num_rows, UNKNOWN, np.int64) for _ in fields(cls)))

    @classmethod
    def warmed(cls, num_rows: int, num_shared_tokens: int) -> Holders:
        """All prompts begin with one that had been answered before the first of them was sent."""
        held = np.full(num_rows, num_shared_tokens, np.int64)
        return cls(held, held, held, held, np.full(num_rows, UNKNOWN, np.int64))

    @classmethod
    def concat(cls, parts: Sequence[Holders]) -> Holders:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def holders_of(
    sketches: Sketches,
    wording: Wording | None,
    table: RecordTable,
    request_ids: Sequence[str],
    servers: IntArray | None = None,
) -> Holders:
    """Of one repeat.

    Args:
        wording: of prompts that are made up.
        request_ids: of the whole plan, in its order; `table` may have them in any.
        servers: which each request is for, shape (len(request_ids),).
    """
    content = sketches if wording is None or not _has_template(wording) else fit(sketches, wording)
    shared = sketches.shared_tokens if wording is None else shared_tokens(sketches, wording)
    trie = content.trie
    place = {name: number for number, name in enumerate(request_ids)}
    plan = np.array([place.get(name, UNKNOWN) for name in table.request_id], np.int64)
    known = plan >= 0
    rows = np.repeat(np.arange(len(shared)), np.diff(content.starts))
    # Times of another stretch do not compare: what came there is ready for nobody here.
    timed = known & (table.segment == table.segment.min(initial=0))
    sent_s = np.full(len(shared), -np.inf)
    sent_s[plan[timed]] = np.nan_to_num(table.sent_s[timed], nan=-np.inf)

    def before_sent(times_s: FloatArray) -> IntArray:
        """Tokens that somebody had brought by then: of each node the earliest counts."""
        done_s = np.full(len(shared), np.inf)
        done_s[plan[timed]] = np.nan_to_num(times_s[timed], nan=np.inf)
        of_node = np.full(int(trie.nodes.max(initial=-1)) + 1, np.inf)
        np.minimum.at(of_node, trie.nodes, done_s[rows])
        return _leading(of_node[trie.nodes] < sent_s[rows], content, trie.shared)

    ready = before_sent(table.first_arrival_s)
    ended = before_sent(np.where(table.ok, table.last_s, np.nan))
    here = trie.shared
    if servers is not None:
        at_server = trie.nodes * (int(servers.max(initial=0)) + 1) + servers[rows]
        _, group = np.unique(at_server, return_inverse=True)
        first = np.full(int(group.max(initial=-1)) + 1, len(shared))
        np.minimum.at(first, group, rows)
        here = _leading(first[group] < rows, content, trie.shared)
    elsewhere = shared - trie.shared  # a template's head, or the history a turn goes on from
    columns = (
        shared,
        elsewhere + ready,
        elsewhere + ended,
        elsewhere + here,
        _distances(content, rows),
    )
    return Holders(*(np.where(known, column[plan], UNKNOWN) for column in columns))


def _leading(some: BoolArray, content: Sketches, most: IntArray) -> IntArray:
    """Tokens of the pieces where `some` is true, request by request; a node's ancestors are where it is."""
    tokens = np.add.reduceat(np.where(some, content.sizes, 0), content.starts[:-1])
    least: IntArray = np.minimum(tokens, most)
    return least


def _distances(content: Sketches, rows: IntArray) -> IntArray:
    """In tokens that an ideal cache would have to compute and hold, shape (n,)."""
    nodes = content.trie.nodes
    order = np.lexsort((rows, nodes))
    before = np.full(len(nodes), UNKNOWN, np.int64)
    same = np.diff(nodes[order]) == 0
    before[order[1:]] = np.where(same, rows[order[:-1]], UNKNOWN)
    pieces = np.where(before >= 0, np.arange(len(nodes)), UNKNOWN)
    deepest = np.maximum.reduceat(pieces, content.starts[:-1])
    computed = content.prompt_tokens + content.output_tokens - content.shared_tokens
    sum_before = np.concatenate(([0], np.cumsum(computed)))
    own = np.arange(len(deepest))
    last = before[np.maximum(deepest, 0)]
    distance: IntArray = np.where(deepest >= 0, sum_before[own] - sum_before[last], UNKNOWN)
    return distance


def _has_template(wording: Wording) -> bool:
    return bool(wording.num_head_tokens or wording.num_tail_tokens)
