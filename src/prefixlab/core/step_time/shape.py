"""The shape of a step: what of a batch its duration depends on. Sums only, so that a planner can make one up.

Owns the counting. Invariant: a shape says nothing of which tokens or whose; equal work gives equal shapes,
however it is spread over requests (but for how many of them there are).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefixlab.core.batch import Batch


@dataclass(frozen=True, slots=True)
class StepShape:
    """One step's work.

    Attributes:
        num_prefill_rows: requests of which part of a prompt is computed.
        num_prefill_tokens: prompt tokens computed, all rows together.
        num_prefill_context_tokens: tokens that were in those rows' pages before.
        num_prefill_pairs: (token, token it attends to) pairs of prefill: a row that computes n tokens after s
            has n·s + n·(n + 1)/2 of them.
        num_decode_rows: requests that get one more token.
        num_decode_context_tokens: tokens whose KV those rows read, their new ones included.
    """

    num_prefill_rows: int = 0
    num_prefill_tokens: int = 0
    num_prefill_context_tokens: int = 0
    num_prefill_pairs: int = 0
    num_decode_rows: int = 0
    num_decode_context_tokens: int = 0

    @classmethod
    def of(cls, batch: Batch) -> StepShape:
        num_prefill = batch.num_prefill_rows
        starts, lengths = batch.starts.astype(np.int64), batch.lengths.astype(np.int64)
        before, new = starts[:num_prefill], lengths[:num_prefill]
        return cls(
            num_prefill_rows=num_prefill,
            num_prefill_tokens=int(new.sum()),
            num_prefill_context_tokens=int(before.sum()),
            num_prefill_pairs=int((new * before + new * (new + 1) // 2).sum()),
            num_decode_rows=batch.num_rows - num_prefill,
            num_decode_context_tokens=int((starts[num_prefill:] + lengths[num_prefill:]).sum()),
        )

    @classmethod
    def of_prefill(cls, num_tokens: int, num_context_tokens: int = 0) -> StepShape:
        """One prompt, or a piece of one, computed alone after what is cached of it."""
        pairs = num_tokens * num_context_tokens + num_tokens * (num_tokens + 1) // 2
        return cls(1, num_tokens, num_context_tokens, pairs)
