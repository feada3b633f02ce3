"""What runs in one step, and what came of it: the only things that cross between scheduler and runner.

Prefill, chunked prefill, decode and a mixture are one shape: rows of `length` new tokens after `start` tokens
that are already in the pages. A decode row has length 1. The scheduler makes a Batch in `step()`, a Runner
turns it into a StepResult, `commit()` accounts for it.

Invariant: the KV of positions [0, start) of a row is in its pages; pages for [start, start + length) exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prefixlab.core.request import Request

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work.

    Attributes:
        requests: the B requests, prefill rows first.
        rows: shape (B,), int32: each request's row of `page_table`.
        starts: shape (B,), int32: tokens of the row already in its pages.
        lengths: shape (B,), int32: tokens to compute now, ≥ 1.
        samples: shape (B,), bool: whether the row's last token yields a next token (False for a chunk
            that is not the prompt's last).
        input_ids: shape (lengths.sum(),), int32: the tokens to compute, row after row.
        page_table: shape (max rows, max pages per row), int32: the scheduler's whole table, shared, not
            copied. `page_table[row, p // page_size]` holds position p at offset `p % page_size`.
        page_size: tokens per page.
        num_prefill_rows: how many leading rows are prefill.
        num_waiting: requests left in the queue, for whoever reports.
    """

    requests: list[Request]
    rows: IntArray
    starts: IntArray
    lengths: IntArray
    samples: BoolArray
    input_ids: IntArray
    page_table: IntArray
    page_size: int
    num_prefill_rows: int
    num_waiting: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.requests)

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return len(self.input_ids)

    @property
    def num_prefill_tokens(self) -> int:
        return int(self.lengths[: self.num_prefill_rows].sum())


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: of the token that stands there, and of the likeliest ones."""

    token_id: int
    logprob: float | None
    """None only for a prompt's first token, which nothing precedes."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), most likely first."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a runner made of a batch.

    Attributes:
        token_ids: shape (B,), int32: the sampled token of each row; -1 where the row samples nothing.
        duration_s: how long the step took, on the runner's own terms (wall time, or simulated).
        logprobs: by row index, for rows whose request asked.
        prompt_logprobs: by row index, for rows whose request asked. A row that computes [s, e) predicts the
            prompt's tokens s + 1 … e, so those are its entries (those within the prompt), after an entry
            without a logprob for token 0 if s = 0. Joined over chunks: one entry per prompt token. A request
            that was retracted starts at 0 again, and so does its list.
    """

    token_ids: IntArray
    duration_s: float
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
