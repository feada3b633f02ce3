"""What changes logits before any token is chosen: penalties on tokens that occurred, stop ids held back.

Reads each request's tokens anew in every step and remembers nothing, so a retracted request goes on alike.

Invariant: rows whose request asks for none of this keep their logits bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prefixlab.core.request import Request


def apply_penalties(logits: Tensor, requests: Sequence[Request]) -> None:
    """Change `logits`, shape (n, vocab), float32, in place: row i is the next token of `requests[i]`.

    With c the count of a token among the outputs, and "seen" meaning prompt or output:

    - repetition r: a seen token's logit is divided by r if positive, else multiplied (arXiv 1909.05858);
    - then `frequency · c + presence · [c > 0]` is subtracted (OpenAI's API reference).
    """
    rows = [i for i, request in enumerate(requests) if _is_penalised(request)]
    if not rows:
        return
    penalised = [requests[i] for i in rows]
    vocab_size = logits.shape[1]
    counts = _counts([request.output_token_ids for request in penalised], vocab_size)
    in_prompt = _counts([request.prompt_token_ids for request in penalised], vocab_size)

    def column(name: str) -> Tensor:
        values = [getattr(request.sampling, name) for request in penalised]
        return torch.tensor(values, dtype=torch.float32).unsqueeze(1)

    index = torch.tensor(rows)
    selected = logits.index_select(0, index)
    repetition = column("repetition_penalty")
    repeated = torch.where(selected > 0, selected / repetition, selected * repetition)
    selected = torch.where((counts > 0) | (in_prompt > 0), repeated, selected)
    selected -= column("frequency_penalty") * counts + column("presence_penalty") * (counts > 0)
    logits.index_copy_(0, index, selected)


def hold_back_stop_ids(logits: Tensor, requests: Sequence[Request]) -> None:
    """Set the logits of stop ids to −∞, in place, for requests that have not reached `min_new_tokens`."""
    for i, request in enumerate(requests):
        if request.num_output_tokens < request.sampling.min_new_tokens:
            held_back = [token_id for token_id in request.stop_token_ids if token_id < logits.shape[1]]
            logits[i, held_back] = float("-inf")


def _is_penalised(request: Request) -> bool:
    sampling = request.sampling
    return (
        sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
        or sampling.repetition_penalty != 1.0
    )


def _counts(token_ids: Sequence[Sequence[int] | np.ndarray], vocab_size: int) -> Tensor:
    """How often each token occurs, shape (n, vocab), float32."""
    lengths = [len(ids) for ids in token_ids]
    rows = np.repeat(np.arange(len(token_ids)), lengths)
    flat = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in token_ids])
    counts = np.bincount(rows * vocab_size + flat, minlength=len(token_ids) * vocab_size)
    return torch.from_numpy(counts.astype(np.float32)).view(len(token_ids), vocab_size)
