"""The next token of each row: greedy, or drawn from what temperature, top-k, top-p and min-p leave.

Owns the order of those steps: penalties and held-back stop ids, temperature, top-k, top-p over what top-k
left, min-p, the draw. Stateless: a request's token depends on its logits, its parameters, its seed and the
number of its output tokens, and on nothing else in the batch.

Filters compare probabilities with thresholds rather than cutting a sorted list, so tokens of equal
probability are kept or dropped together, and the order in which equals are sorted cannot matter.

Invariant: a token that a filter dropped, or that has probability 0, is never returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prefixlab.core.batch import IntArray, TokenLogprobs
from prefixlab.core.errors import EngineError
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.engine.sampling.draw import request_seed, uniforms
from prefixlab.engine.sampling.logprobs import token_logprobs
from prefixlab.engine.sampling.penalties import apply_penalties, hold_back_stop_ids

_FIRST_NUCLEUS = 1024
"""Candidates sorted in search of a nucleus before all of them are: nearly always enough."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens of n rows, shape (n,), int32, and logprobs by row for those whose request asked."""

    token_ids: IntArray
    logprobs: dict[int, TokenLogprobs]


class Sampler:
    """Args: `seed`, from which requests without a seed get theirs."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def sample(self, logits: Tensor, requests: Sequence[Request]) -> Sampled:
        """The next token of each of `requests`.

        Args:
            logits: shape (n, vocab), float32; changed in place.

        Raises:
            EngineError: a row's logits are not finite: the model or its input is broken.
        """
        finite = torch.isfinite(logits.amax(dim=1))  # NaN anywhere in a row reaches its maximum
        if not finite.all():
            broken = requests[int(finite.int().argmin())].request_id
            raise EngineError(f"the model computed logits that are not finite for request {broken}")
        asked = [i for i, request in enumerate(requests) if request.sampling.num_logprobs is not None]
        asked_logits = logits[asked] if asked else logits[:0]  # a copy, from before anything changes them
        apply_penalties(logits, requests)
        hold_back_stop_ids(logits, requests)
        token_ids = logits.argmax(dim=1)
        drawn = [i for i, request in enumerate(requests) if not request.sampling.greedy]
        if drawn:
            index = torch.tensor(drawn)
            token_ids[index] = self._draw(logits[index], [requests[i] for i in drawn])
        result = token_ids.numpy().astype(np.int32)
        entries = token_logprobs(
            asked_logits,
            [int(result[i]) for i in asked],
            [requests[i].sampling.num_logprobs or 0 for i in asked],
        )
        return Sampled(result, dict(zip(asked, entries, strict=True)))

    def _draw(self, logits: Tensor, requests: Sequence[Request]) -> Tensor:
        probs = filtered_probs(logits, [request.sampling for request in requests])
        seeds = np.array([request_seed(request, self._seed) for request in requests], dtype=np.uint64)
        indexes = np.array([request.num_output_tokens for request in requests], dtype=np.uint64)
        # Inverse of the cumulative distribution, in float64: the first token whose cumulated weight exceeds
        # the number drawn, hence never one of weight 0.
        cumulated = probs.cumsum(dim=1, dtype=torch.float64)
        points = torch.from_numpy(uniforms(seeds, indexes)).unsqueeze(1) * cumulated[:, -1:]
        chosen = torch.searchsorted(cumulated, points, right=True).squeeze(1)
        # Rounding could put a point at the very end: then the last token of any weight is meant.
        last = (cumulated < cumulated[:, -1:]).sum(dim=1)
        return torch.minimum(chosen, last)


def filtered_probs(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Weights to draw from, shape (n, vocab), float32: probabilities where kept, 0 where dropped.

    Args:
        logits: shape (n, vocab), float32, one row per entry of `params`; temperatures above 0.
    """
    logits = logits / _column([max(p.temperature, 1e-5) for p in params])
    vocab_size = logits.shape[1]
    top_k = [p.top_k if 0 < p.top_k < vocab_size else 0 for p in params]
    if any(top_k):
        # The k-th largest value of each row; −∞ drops nothing.
        largest = logits.topk(max(top_k), dim=1).values
        kth = largest.gather(1, torch.tensor([max(k, 1) - 1 for k in top_k]).unsqueeze(1))
        kth[[k == 0 for k in top_k]] = float("-inf")
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probs = torch.softmax(logits, dim=1)
    threshold = torch.zeros(len(params), 1)
    if any(p.top_p < 1.0 for p in params):
        threshold = _nucleus_thresholds(probs, [p.top_p for p in params])
    if any(p.min_p > 0.0 for p in params):
        floor = _column([p.min_p for p in params]) * probs.amax(dim=1, keepdim=True)
        threshold = torch.maximum(threshold, floor)
    return probs.masked_fill(probs < threshold, 0.0)


def _nucleus_thresholds(probs: Tensor, top_p: Sequence[float]) -> Tensor:
    """The least probability within each row's nucleus, shape (n, 1): the fewest likeliest tokens that
    together reach `top_p` (arXiv 1904.09751); 0 where it is 1."""
    wanted = _column(top_p)
    for num_candidates in (_FIRST_NUCLEUS, probs.shape[1]):
        largest = probs.topk(min(num_candidates, probs.shape[1]), dim=1).values
        reached = largest.cumsum(dim=1, dtype=torch.float64) >= wanted
        # The last candidate, if rounding keeps even all of them below a top_p near 1.
        first = torch.where(reached.any(dim=1), reached.int().argmax(dim=1), largest.shape[1] - 1)
        if num_candidates >= probs.shape[1] or bool((reached.any(dim=1) | (wanted.squeeze(1) >= 1)).all()):
            break
    return largest.gather(1, first.unsqueeze(1)).masked_fill(wanted >= 1.0, 0.0)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)
