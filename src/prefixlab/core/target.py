"""What crosses between a load generator and a server under measurement: a request, and its stream.

Owns the plain types of the Target seam. `bench/` sends and times; `server/` may offer the in-process target.
Invariant: a chunk says how many tokens it carries; nobody counts events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from prefixlab.core.block_hash import TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class TargetRequest:
    """One request, in terms every API can be spelt in.

    Exactly one of `prompt_token_ids` (shape (n,), int32), `prompt_text`, `messages` is set.
    """

    request_id: str
    max_new_tokens: int
    prompt_token_ids: TokenIds | None = None
    prompt_text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Merged into the body last, so it wins."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The first item of a stream: the request is on its way. Times are the target's clock's.

    Attributes:
        sent_s: when its first byte was written, on a connection that was open.
        connect_started_s: when a connection was begun for it; None when an open one was reused.
        connected_s: when that connection stood.
    """

    sent_s: float
    connect_started_s: float | None = None
    connected_s: float | None = None


class Chunk(msgspec.Struct, frozen=True):
    """One piece of a stream. Counts are totals so far, so a lost or merged chunk costs no token.

    A Struct, because decoding makes one per token: a frozen dataclass takes ten times as long to make.
    """

    arrival_s: float
    text: str = ""
    carries_tokens: bool = False
    """Whether generated content came with this chunk. A role, a bare finish reason or usage carries none."""
    num_output_tokens: int | None = None
    """Output tokens so far, if the server says."""
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    """Null is not zero: None when the server does not report."""
    finish_reason: str | None = None
    is_reasoning: bool | None = False
    """What came with it is the model's thinking, not its answer. None: it does not say, as half a character
    does not, and goes with what came before."""
    num_reasoning_tokens: int | None = None
    """How many of the output tokens so far were reasoning, if the server says."""
    token_ids: list[int] | None = None
    """The tokens that came with it, where the server names them and was asked to."""
