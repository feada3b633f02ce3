"""Where everything of one step lies: rows of the computation, slots of the pool, who sees what. Once per
step, not per layer.

Owns the translation from a Batch (requests, pages) to tensors of indices. A *row* is one token's place in the
computation, a *slot* its place in the KV pool.

**Plain layout.** Rows are the batch's tokens in order. Where a request computes several tokens, its KV is
gathered once and blocks of its queries attend to it (SequenceQueries). Requests that compute one token are
decoded together with others of similar context, padded to the longest (DecodeGroup).

**Tiled layout** (`tile_size` set; `--deterministic`). Rows come in tiles of `tile_size`, and a token at
position p stands in row p mod tile_size of a tile. Tokens of one request share tiles aligned to absolute
positions; requests that compute one token share a tile where their rows differ. Each query attends as part of
its tile, to its own KV padded to the end of its tile's span. So the shape of every operation a token goes
through, and its place in it, follow from its position alone: neither chunks, nor cache hits, nor neighbours
can change a bit of it. Rows nobody uses hold token 0 at position 0, and nobody reads what becomes of them.

Invariant: padding is always one of the sequence's own slots, so no request reads another's KV even masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prefixlab.core.batch import Batch, IntArray

QUERY_BLOCK = 512
"""Queries that attend together in the plain layout: bounds the mask, skips most of what causality hides."""

MAX_PADDING_SHARE = 0.25
MAX_GROUP_SLOTS = 1 << 16
"""A decode group's gathered keys stay within this many slots, so its working set stays bounded."""

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Rows [begin, end) attend to the first `kv_len` slots of their sequence, causally aligned at the end;
    of the results, rows [keep_begin, keep_end) are its own."""

    begin: int
    end: int
    kv_len: int
    keep_begin: int
    keep_end: int


@dataclass(frozen=True, slots=True)
class SequenceQueries:
    """One request's visible KV, shape (n,), int64 slots by position, and the queries that read it."""

    slots: Tensor
    blocks: list[QueryBlock]


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Single queries of similar context, attended together.

    Attributes:
        rows: shape (n,), int64: their rows.
        slots: shape (n * kv_len,), int64: each one's KV, padded to `kv_len` slots.
        mask: shape (n, 1, 1, kv_len), bool, True where visible; None where no padding is.
    """

    rows: Tensor
    slots: Tensor
    kv_len: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step in tensors.

    Attributes:
        token_ids, positions: shape (num_rows,), int64.
        token_rows: shape (T,): the row of each of the batch's tokens, in batch order.
        write_rows: the same as a tensor; None where rows are the tokens in order.
        write_slots: shape (T,), int64: the slot of each token.
        last_rows: shape (B,): the row of each request's last token.
    """

    token_ids: Tensor
    positions: Tensor
    token_rows: Index
    write_rows: Tensor | None
    write_slots: Tensor
    last_rows: Index
    sequences: list[SequenceQueries]
    groups: list[DecodeGroup]

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)

    @property
    def max_gathered_slots(self) -> int:
        """Slots of the largest gather of the step."""
        return max(
            [len(sequence.slots) for sequence in self.sequences] + [len(group.slots) for group in self.groups]
        )


def make_plan(batch: Batch, tile_size: int | None = None) -> StepPlan:
    """The plan of `batch`: plain, or tiled."""
    lengths, starts = batch.lengths.astype(np.int64), batch.starts.astype(np.int64)
    ends = np.cumsum(lengths)
    request_of_token = np.repeat(np.arange(batch.num_rows), lengths)
    positions = np.arange(batch.num_tokens) + (starts - ends + lengths)[request_of_token]
    pages = batch.page_table[batch.rows[request_of_token], positions // batch.page_size].astype(np.int64)
    write_slots = pages * batch.page_size + positions % batch.page_size

    if tile_size is None:
        num_rows, token_rows = batch.num_tokens, np.arange(batch.num_tokens)
    else:
        num_rows, token_rows = _place_in_tiles(positions, starts, lengths, ends, tile_size)
    row_token_ids, row_positions = np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=np.int64)
    row_token_ids[token_rows] = batch.input_ids
    row_positions[token_rows] = positions
    last_rows = token_rows[ends - 1]

    sequences, groups = [], []
    if tile_size is None:
        several = lengths > 1
        for i in np.flatnonzero(several).tolist():
            sequences.append(_sequence(batch, i, int(last_rows[i]), int(lengths[i])))
        single = np.flatnonzero(~several)
        groups = [
            _decode_group(batch, members, last_rows[members])
            for members in _group_by_context(single, starts[single] + 1)
        ]
    else:
        for i in range(batch.num_rows):
            sequences.append(_tiled_sequence(batch, i, int(last_rows[i]), tile_size))
    return StepPlan(
        token_ids=torch.from_numpy(row_token_ids),
        positions=torch.from_numpy(row_positions),
        token_rows=token_rows,
        write_rows=None if tile_size is None else torch.from_numpy(token_rows),
        write_slots=torch.from_numpy(write_slots),
        last_rows=last_rows,
        sequences=sequences,
        groups=groups,
    )


# Plain layout. -----------------------------------------------------------------------------------------


def _sequence(batch: Batch, i: int, last_row: int, length: int) -> SequenceQueries:
    kv_len = int(batch.starts[i]) + length
    first_row = last_row + 1 - length
    blocks = []
    for begin in range(0, length, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, length)
        rows = first_row + begin, first_row + end
        blocks.append(QueryBlock(*rows, kv_len - length + end, *rows))
    return SequenceQueries(torch.from_numpy(_slots(batch, batch.rows[i : i + 1], kv_len)[0]), blocks)


def _group_by_context(members: Index, kv_lens: Index) -> list[Index]:
    """Split `members` into groups of similar context: padded to their longest, at most a quarter is padding
    of any member, and the gathered KV stays within MAX_GROUP_SLOTS (a single member may exceed it)."""
    order = np.argsort(-kv_lens, kind="stable")
    groups, first = [], 0
    while first < len(order):
        longest = int(kv_lens[order[first]])
        last = int(np.searchsorted(-kv_lens[order], -(1 - MAX_PADDING_SHARE) * longest, side="right"))
        last = min(last, first + max(1, MAX_GROUP_SLOTS // longest))
        groups.append(members[order[first:last]])
        first = last
    return groups


def _decode_group(batch: Batch, members: Index, rows: Index) -> DecodeGroup:
    kv_lens = batch.starts[members].astype(np.int64) + 1
    longest = int(kv_lens.max())
    slots = _slots(batch, batch.rows[members], longest)
    mask = None
    if kv_lens.min() < longest:
        visible = np.arange(longest) < kv_lens[:, None]
        slots = np.where(visible, slots, slots[:, :1])
        mask = torch.from_numpy(visible).view(len(members), 1, 1, longest)
    return DecodeGroup(torch.from_numpy(rows), torch.from_numpy(slots.reshape(-1)), longest, mask)


# Tiled layout. -----------------------------------------------------------------------------------------


def _place_in_tiles(
    positions: Index, starts: Index, lengths: Index, ends: Index, tile_size: int
) -> tuple[int, Index]:
    """How many rows the tiles have, and the row of each token."""
    token_rows = np.empty(len(positions), dtype=np.int64)
    num_tiles = 0
    num_in_row = np.zeros(tile_size, dtype=np.int64)
    singles = np.flatnonzero(lengths == 1)
    for token in ends[singles] - 1:
        row = positions[token] % tile_size
        token_rows[token] = num_in_row[row] * tile_size + row
        num_in_row[row] += 1
    num_tiles = int(num_in_row.max())
    for i in np.flatnonzero(lengths > 1):
        first_tile = starts[i] // tile_size
        tokens = slice(ends[i] - lengths[i], ends[i])
        token_rows[tokens] = positions[tokens] - first_tile * tile_size + num_tiles * tile_size
        num_tiles += int((starts[i] + lengths[i] - 1) // tile_size - first_tile) + 1
    return num_tiles * tile_size, token_rows


def _tiled_sequence(batch: Batch, i: int, last_row: int, tile_size: int) -> SequenceQueries:
    start, length = int(batch.starts[i]), int(batch.lengths[i])
    kv_len = start + length
    last_tile, first_tile = (kv_len - 1) // tile_size, start // tile_size
    slots = _slots(batch, batch.rows[i : i + 1], (last_tile + 1) * tile_size)[0]
    slots[kv_len:] = slots[0]
    blocks = []
    for tile in range(first_tile, last_tile + 1):
        begin = last_row // tile_size * tile_size - (last_tile - tile) * tile_size
        end = begin + tile_size
        keep = (begin, end) if length > 1 else (last_row, last_row + 1)
        blocks.append(QueryBlock(begin, end, (tile + 1) * tile_size, *keep))
    return SequenceQueries(torch.from_numpy(slots), blocks)


def _slots(batch: Batch, rows: IntArray, kv_len: int) -> Index:
    """Slots of positions [0, kv_len) of page-table `rows`, shape (rows, kv_len); beyond a row's pages
    whatever the table holds, which may be no page at all."""
    num_pages = min(-(-kv_len // batch.page_size), batch.page_table.shape[1])
    pages = batch.page_table[rows, :num_pages].astype(np.int64)
    slots = (pages[:, :, None] * batch.page_size + np.arange(batch.page_size)).reshape(len(rows), -1)
    if slots.shape[1] < kv_len:
        slots = np.pad(slots, ((0, 0), (0, kv_len - slots.shape[1])))
    return np.ascontiguousarray(slots[:, :kv_len])
