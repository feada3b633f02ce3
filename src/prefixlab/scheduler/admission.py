"""Who may come in, and how much of a prompt is computed at once: token and page arithmetic, pure functions.

Owns figures only: the order is `policies.py`, the doing is `prefill.py`.

Pages are what admission counts. A request comes in when its tokens and a part of its possible output fit
beside what the running ones are expected to need. That part, the new-token ratio, sinks while nothing goes
wrong and jumps after a retraction, so that the scheduler learns how long answers are here.

Invariant: a request that runs alone is never held back by a figure from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prefixlab.core.batch import BoolArray, IntArray
from prefixlab.core.request import Request
from prefixlab.scheduler.config import SchedulerConfig

INITIAL_RATIO = 0.7
FLOOR_OF_INITIAL = 0.14
NUM_DECAY_STEPS = 600
RETRACTION_MARGIN_TOKENS = 20
"""After a retraction every running request is expected to decode this many tokens more than it has."""
MAX_RESERVED_OUTPUT_TOKENS = 4096
"""A request may ask for any number of tokens; no more than this is expected of one."""


@dataclass(frozen=True, slots=True)
class RatioRule:
    """How the new-token ratio moves: the part of a request's possible output that is kept free for it."""

    initial: float
    floor: float
    decay_per_step: float

    @classmethod
    def from_conservativeness(cls, conservativeness: float) -> RatioRule:
        initial = min(INITIAL_RATIO * conservativeness, 1.0)
        floor = initial * FLOOR_OF_INITIAL
        return cls(initial, floor, (initial - floor) / NUM_DECAY_STEPS)

    def after_decode(self, ratio: float) -> float:
        """The ratio after a decode step in which everybody had room."""
        return max(ratio - self.decay_per_step, self.floor)

    def after_retraction(self, num_output_tokens: int, max_new_tokens: int, num_requests: int) -> float:
        """The ratio after a retraction, from the sums over those still running."""
        expected = num_output_tokens + RETRACTION_MARGIN_TOKENS * num_requests
        return min(1.0, expected / (max_new_tokens + 1))


def is_length_certain(request: Request) -> bool:
    """Whether nothing but `max_new_tokens` can stop it: neither an id nor a string."""
    return not request.stop_token_ids and not request.sampling.stop


def num_pages_at_end(
    num_tokens: IntArray | int,
    num_tokens_left: IntArray | int,
    length_is_certain: BoolArray | bool,
    ratio: float,
    page_size: int,
) -> npt.NDArray[np.int64]:
    """Pages requests are expected to hold when they end. Works on one request or on arrays of them.

    Args:
        num_tokens: prompt and output tokens they have now.
        num_tokens_left: output tokens they may still get.
        length_is_certain: see `is_length_certain`; then all of that is reserved.
        ratio: the new-token ratio, for the others.
    """
    expected: Any = np.minimum(num_tokens_left, MAX_RESERVED_OUTPUT_TOKENS)
    expected = np.where(length_is_certain, expected, np.ceil(expected * ratio))
    # At least the next token; and the last token's KV is never computed, so it needs no place.
    num_places = num_tokens + np.maximum(expected, 1).astype(np.int64) - 1
    num_pages: npt.NDArray[np.int64] = -(-num_places // page_size)
    return num_pages


class TokenBudget:
    """The prompt tokens one step may still compute.

    Args:
        config: `max_prefill_tokens` for all prompts together, `chunked_prefill_size` for a piece of one.
        page_size: a piece ends on a page unless it is the prompt's last.
    """

    def __init__(self, config: SchedulerConfig, page_size: int) -> None:
        self._num_left = config.max_prefill_tokens
        self._chunk_tokens = None if config.chunked_prefill_size == -1 else config.chunked_prefill_size
        self._page_size = page_size
        self._may_split = True
        self._is_untouched = True

    @property
    def is_spent(self) -> bool:
        return self._num_left <= 0

    def piece(self, num_tokens: int) -> int:
        """How many of a prompt's `num_tokens` uncomputed tokens to compute in this step; 0: not now."""
        if self._chunk_tokens is None:
            # Whole prompts only: one larger than the budget must run some time, so it runs alone.
            return num_tokens if num_tokens <= self._num_left or self._is_untouched else 0
        limit = min(self._chunk_tokens, self._num_left)
        if num_tokens <= limit:
            return num_tokens
        return limit // self._page_size * self._page_size if self._may_split else 0

    def spend(self, piece_tokens: int, *, is_last_piece: bool) -> None:
        """A piece will be computed. After one that is not its prompt's last no other prompt is split: one at
        a time, so that the first to come is the first to be done."""
        self._num_left -= piece_tokens
        self._is_untouched = False
        self._may_split = self._may_split and is_last_piece
