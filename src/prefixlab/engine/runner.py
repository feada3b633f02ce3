"""The Runner seam on torch: one batch in, its tokens' KV in their pages, its next tokens out.

Owns the order of a step (plan, forward, logits where wanted, sampling) and the KV pool. Keeps nothing of a
request between steps: parameters, seed and progress are read from `batch.requests`, KV from the pages.

**Deterministic mode** makes a token's logits bit-identical whatever shares its batch, however its prompt was
cut into chunks, and whichever of its pages came from a cache. Rounding depends on the shape of an operation
and on where an element stands in it, so both are made functions of the token's absolute position: everything
token-wise runs in tiles of TILE_SIZE rows (models/row_maps.py), a token at position p in row p mod TILE_SIZE;
attention runs per tile over KV padded to the tile's end (attention/plan.py); the sampler takes one row at a
time. Operations of one shape at equally aligned addresses repeat bit by bit on one machine with one number of
threads; that is all that is assumed of the libraries. It holds in float32 and bfloat16.

Invariant: a step that raises has computed no row as far as its caller may assume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from prefixlab.core.batch import Batch, StepResult, TokenLogprobs
from prefixlab.core.clock import Clock
from prefixlab.core.errors import EngineError
from prefixlab.core.request import Request
from prefixlab.engine.attention.paged import CausalMasks, PagedAttention
from prefixlab.engine.attention.plan import QUERY_BLOCK, Index, make_plan
from prefixlab.engine.kv_pool import KVPool
from prefixlab.engine.models.decoder import Decoder
from prefixlab.engine.models.row_maps import InTiles, RowMap, all_at_once
from prefixlab.engine.sampling.logprobs import token_logprobs
from prefixlab.engine.sampling.sampler import Sampled, Sampler

TILE_SIZE = 16
"""Rows of a tile in deterministic mode: enough for matrix products to be worth their name, few enough for
decode, where a tile may hold a single token."""

_LOGIT_ROWS = 256
"""Rows whose logits over the whole vocabulary exist at a time while prompt logprobs are made."""


class TorchRunner:
    """Runs a Decoder on CPU over a KVPool.

    Args:
        model: its weights' dtype must be the pool's.
        clock: what `duration_s` is measured on.
        seed: for requests without one of their own.
        deterministic: see the module.
    """

    def __init__(
        self, model: Decoder, pool: KVPool, clock: Clock, *, seed: int = 0, deterministic: bool = False
    ) -> None:
        self.pool = pool
        self._model = model
        self._clock = clock
        self._deterministic = deterministic
        self._tile_size = TILE_SIZE if deterministic else None
        self._by_rows: RowMap = InTiles(TILE_SIZE) if deterministic else all_at_once
        self._masks = CausalMasks(TILE_SIZE if deterministic else QUERY_BLOCK, model.dtype)
        self._sampler = Sampler(seed)

    @property
    def vocab_size(self) -> int:
        return self._model.config.vocab_size

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        """See `core.seams.Runner`."""
        start_s = self._clock.now()
        try:
            hidden, last_rows, token_rows = self._forward(batch)
            sampled = self._sample(batch, hidden, last_rows)
            prompt_logprobs = self._prompt_logprobs(batch, hidden, token_rows)
        except (RuntimeError, IndexError, MemoryError) as error:
            raise EngineError(f"a step of {batch.num_tokens} tokens failed: {error}") from error
        token_ids = np.full(batch.num_rows, -1, dtype=np.int32)
        sampled_rows = np.flatnonzero(batch.samples)
        token_ids[sampled_rows] = sampled.token_ids
        logprobs = {int(sampled_rows[i]): entry for i, entry in sampled.logprobs.items()}
        return StepResult(token_ids, self._clock.now() - start_s, logprobs, prompt_logprobs)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Compute a batch as `run` does, and return the logits of all its tokens instead of sampling: shape
        (T, vocab), float32, in batch order. For comparisons; `run` computes only the logits it needs."""
        hidden, _, token_rows = self._forward(batch)
        return self._logits(hidden, token_rows)

    def _forward(self, batch: Batch) -> tuple[Tensor, Index, Index]:
        """Hidden states by row, the row of each request's last token, and of every token."""
        plan = make_plan(batch, self._tile_size)
        attend = PagedAttention(self._model.config, self.pool, plan, self._masks)
        hidden = self._model.forward(plan.token_ids, plan.positions, attend, self._by_rows)
        return hidden, plan.last_rows, plan.token_rows

    def _logits(self, hidden: Tensor, rows: Index) -> Tensor:
        """Logits of some rows, shape (rows, vocab), float32."""
        if self._tile_size is None:
            (logits,) = self._model.logits(hidden[torch.from_numpy(rows)])
            return logits
        # Whole tiles, so that each row stands where it always stands.
        tiles, tile_of_row = np.unique(rows // self._tile_size, return_inverse=True)
        in_tiles = hidden.view(-1, self._tile_size, hidden.shape[1])[torch.from_numpy(tiles)].flatten(0, 1)
        (logits,) = self._by_rows(self._model.logits, in_tiles)
        return logits[torch.from_numpy(tile_of_row * self._tile_size + rows % self._tile_size)]

    def _sample(self, batch: Batch, hidden: Tensor, last_rows: Index) -> Sampled:
        rows = np.flatnonzero(batch.samples)
        requests = [batch.requests[i] for i in rows]
        if not requests:
            return Sampled(np.empty(0, dtype=np.int32), {})
        logits = self._logits(hidden, last_rows[rows])
        if not self._deterministic:
            return self._sampler.sample(logits, requests)
        each = [
            self._sampler.sample(logits[i : i + 1].clone(), requests[i : i + 1]) for i in range(len(requests))
        ]
        token_ids = np.concatenate([sampled.token_ids for sampled in each])
        return Sampled(
            token_ids, {i: sampled.logprobs[0] for i, sampled in enumerate(each) if sampled.logprobs}
        )

    def _prompt_logprobs(
        self, batch: Batch, hidden: Tensor, token_rows: Index
    ) -> dict[int, list[TokenLogprobs]]:
        """See `StepResult.prompt_logprobs`."""
        entries: dict[int, list[TokenLogprobs]] = {}
        first_token = 0
        for i, request in enumerate(batch.requests):
            start, length = int(batch.starts[i]), int(batch.lengths[i])
            if request.return_prompt_logprobs and start < request.num_prompt_tokens:
                num_predicted = min(length, request.num_prompt_tokens - 1 - start)
                rows = token_rows[first_token : first_token + num_predicted]
                targets = request.prompt_token_ids[start + 1 : start + 1 + num_predicted].tolist()
                first = [TokenLogprobs(int(request.prompt_token_ids[0]), None)] if start == 0 else []
                entries[i] = first + self._logprobs_of(request, hidden, rows, targets)
            first_token += length
        return entries

    def _logprobs_of(
        self, request: Request, hidden: Tensor, rows: Index, targets: Sequence[int]
    ) -> list[TokenLogprobs]:
        num_top = request.sampling.num_logprobs or 0
        entries: list[TokenLogprobs] = []
        for part in _slices(len(rows), _LOGIT_ROWS):
            logits = self._logits(hidden, rows[part])
            # One row at a time where the number of rows must not matter.
            step = 1 if self._deterministic else len(logits)
            for some in _slices(len(logits), step):
                wanted = targets[part][some]
                entries += token_logprobs(logits[some].clone(), wanted, [num_top] * len(wanted))
        return entries


def _slices(length: int, step: int) -> Iterator[slice]:
    for begin in range(0, length, max(step, 1)):
        yield slice(begin, min(begin + step, length))
