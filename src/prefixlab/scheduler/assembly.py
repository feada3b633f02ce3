"""Pieces of prompts and decode rows, put together as the one Batch the runner sees.

Owns the layout of a batch only; decides nothing.

Invariant: prefill rows first, and `input_ids` holds the rows' tokens in the rows' order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefixlab.core.batch import Batch, IntArray
from prefixlab.core.request import Request
from prefixlab.scheduler.rows import DecodeGroup, RunningRows


class Piece(NamedTuple):
    """A stretch of one prompt (of a retracted request: of prompt and output) to compute in this step."""

    request: Request
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def is_last(self) -> bool:
        """Whether the request has a next token after it."""
        return self.end == self.request.num_tokens


def assemble(
    pieces: Sequence[Piece],
    group: DecodeGroup,
    rows: RunningRows,
    page_table: IntArray,
    page_size: int,
    num_waiting: int,
) -> Batch:
    """The batch of `pieces`, then everybody in `group`."""
    starts = rows.num_computed[group.rows]
    input_ids = rows.last_token[group.rows]
    if not pieces:
        return Batch(
            requests=group.requests,
            rows=group.rows,
            starts=starts,
            lengths=group.lengths,
            samples=group.samples,
            input_ids=input_ids,
            page_table=page_table,
            page_size=page_size,
            num_prefill_rows=0,
            num_waiting=num_waiting,
        )
    prompts = [piece.request.token_ids(piece.end)[piece.start :] for piece in pieces]
    return Batch(
        requests=[piece.request for piece in pieces] + group.requests,
        rows=np.concatenate((_ints([piece.request.row for piece in pieces]), group.rows)),
        starts=np.concatenate((_ints([piece.start for piece in pieces]), starts)),
        lengths=np.concatenate((_ints([piece.length for piece in pieces]), group.lengths)),
        samples=np.concatenate((np.array([piece.is_last for piece in pieces]), group.samples)),
        input_ids=np.concatenate((*prompts, input_ids)),
        page_table=page_table,
        page_size=page_size,
        num_prefill_rows=len(pieces),
        num_waiting=num_waiting,
    )


def _ints(values: Sequence[int]) -> IntArray:
    return np.array(values, dtype=np.int32)
