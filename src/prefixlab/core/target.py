"""What crosses between a load generator and a server under measurement: a request, and its stream's chunks.

Owns the two plain types of the Target seam. `bench/` sends and times; `server/` offers the in-process target.
Invariant: a chunk says how many tokens it carries; nobody counts events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TargetRequest:
    """One request, in terms every API can be spelt in.

    Exactly one of `prompt_token_ids`, `prompt_text`, `messages` is set.
    """

    request_id: str
    max_new_tokens: int
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Merged into the body last, so it wins."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a stream. Counts are totals so far, so a lost or merged chunk costs no token."""

    arrival_s: float
    text: str = ""
    num_output_tokens: int | None = None
    """Output tokens so far, if the server says."""
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    """Null is not zero: None when the server does not report."""
    finish_reason: str | None = None
