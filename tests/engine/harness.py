"""Helpers of the engine's tests: small models, and a page table driven by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prefixlab.core.batch import Batch
from prefixlab.core.clock import VirtualClock
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.engine.kv_pool import KVPool
from prefixlab.engine.model_config import ModelConfig
from prefixlab.engine.models.decoder import Decoder, Weights
from prefixlab.engine.runner import TorchRunner
from prefixlab.engine.weights import dummy_weights

GREEDY = SamplingParams(temperature=0.0)

SMALL = ModelConfig(
    architecture="qwen3",
    vocab_size=300,
    hidden_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=64,
    max_len=512,
    qk_norm=True,
    tied_embeddings=True,
    dtype="float32",
)
"""A model for tests of everything but the model."""


def make_runner(
    config: ModelConfig = SMALL,
    *,
    weights: Weights | None = None,
    dtype: torch.dtype = torch.float32,
    num_pages: int = 64,
    page_size: int = 16,
    deterministic: bool = False,
    seed: int = 0,
) -> TorchRunner:
    model = Decoder(config, dummy_weights(config, dtype, 0) if weights is None else weights, config.max_len)
    pool = KVPool(config, num_pages, page_size, dtype)
    return TorchRunner(model, pool, VirtualClock(), seed=seed, deterministic=deterministic)


class Table:
    """A page table whose rows get pages in an order that looks nothing like theirs.

    `batch` makes a Batch from (row, tokens so far, tokens now) entries.
    """

    def __init__(
        self, num_pages: int, page_size: int, *, num_rows: int = 8, max_len: int = 512, seed: int = 0
    ) -> None:
        self.page_size = page_size
        pages_per_row = -(-max_len // self.page_size)
        # −1 where a row has no page: nothing may be read through it.
        self.pages = np.full((num_rows, pages_per_row), -1, dtype=np.int32)
        self._free = np.random.default_rng(seed).permutation(num_pages).tolist()

    @classmethod
    def of(cls, runner: TorchRunner) -> Table:
        """A table over all pages of `runner`."""
        return cls(runner.pool.num_pages, runner.pool.page_size)

    def grow(self, row: int, num_tokens: int) -> None:
        """Give `row` pages for tokens [0, num_tokens)."""
        for i in range(-(-num_tokens // self.page_size)):
            if self.pages[row, i] < 0:
                self.pages[row, i] = self._free.pop()

    def share(self, source: int, target: int, num_tokens: int) -> None:
        """Let `target` read the full pages of the first `num_tokens` tokens of `source`."""
        assert num_tokens % self.page_size == 0
        num_pages = num_tokens // self.page_size
        self.pages[target, :num_pages] = self.pages[source, :num_pages]

    def give_back(self, row: int) -> None:
        self._free += [page for page in self.pages[row].tolist() if page >= 0]
        self.pages[row] = -1

    def batch(
        self,
        *entries: tuple[int, int, Sequence[int]],
        requests: Sequence[Request] | None = None,
        samples: Sequence[bool] | None = None,
    ) -> Batch:
        for row, start, tokens in entries:
            self.grow(row, start + len(tokens))
        if requests is None:
            requests = [make_request(tokens, request_id=str(row)) for row, _, tokens in entries]
        return Batch(
            requests=list(requests),
            rows=np.array([row for row, _, _ in entries], dtype=np.int32),
            starts=np.array([start for _, start, _ in entries], dtype=np.int32),
            lengths=np.array([len(tokens) for _, _, tokens in entries], dtype=np.int32),
            samples=np.array([True] * len(entries) if samples is None else samples, dtype=np.bool_),
            input_ids=np.concatenate([np.asarray(tokens, dtype=np.int32) for _, _, tokens in entries]),
            page_table=self.pages,
            page_size=self.page_size,
            num_prefill_rows=sum(len(tokens) > 1 for _, _, tokens in entries),
        )


def make_request(
    prompt: Sequence[int], sampling: SamplingParams = GREEDY, *, request_id: str = "r", **fields: object
) -> Request:
    return Request(request_id, np.asarray(prompt, dtype=np.int32), sampling, **fields)  # type: ignore[arg-type]


def random_tokens(length: int, seed: int, vocab_size: int = 300) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()
