"""What a listener hears of each step. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step, for listeners. Times in seconds on the scheduler's clock."""

    now_s: float
    duration_s: float
    num_prefill_rows: int
    num_prefill_tokens: int
    num_decode_rows: int
    num_cached_tokens: int
    """Prompt tokens that first admissions in this step took from the cache."""
    num_waiting: int
    num_running: int
    num_retracted: int
    """Requests sent back to the queue since the last commit, for pages or for priority."""
    num_free_pages: int
    num_evictable_pages: int
    new_token_ratio: float
