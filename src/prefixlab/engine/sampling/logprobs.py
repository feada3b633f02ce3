"""Log-probabilities of tokens, as the model gave them: before penalties, temperature and filters.

Invariant: a token's logprob is the same whether it is reported as sampled, as prompt or among the likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prefixlab.core.batch import TokenLogprobs


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """The logprob of one token per row, and of the row's likeliest ones.

    Args:
        logits: shape (n, vocab), float32.
        token_ids: n tokens.
        num_top: how many of the likeliest to report, per row.
    """
    if not token_ids:
        return []
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids).unsqueeze(1)).squeeze(1).tolist()
    top_values, top_ids = logprobs.topk(min(max(num_top), logits.shape[1]), dim=-1)
    tops = [
        list(zip(ids, values, strict=True))
        for ids, values in zip(top_ids.tolist(), top_values.tolist(), strict=True)
    ]
    return [
        TokenLogprobs(token_id, logprob, tuple(top[:count]))
        for token_id, logprob, top, count in zip(token_ids, chosen, tops, num_top, strict=True)
    ]
