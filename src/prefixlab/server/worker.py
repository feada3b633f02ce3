"""What every handler needs to know of this worker, in one frozen object. Made once, by `launch.py` or a test.

Owns no behaviour beyond small derived facts. Invariant: what is here does not change while the server runs;
what changes is read from `loop.stats`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefixlab.core.clock import Clock, wall_time_s
from prefixlab.core.seams import Tokenizer
from prefixlab.server.config import ServerConfig
from prefixlab.server.loop import EngineLoop
from prefixlab.server.metrics import ServerMetrics


@dataclass(frozen=True, slots=True)
class Worker:
    """See the module.

    Attributes:
        vocab_size: token ids of a prompt lie below it.
        eos_token_ids: what ends a request that does not ignore the end of sequence.
        supports_force_miss: whether the cache can be told to miss.
        honours_priority: whether a request's priority changes anything under the policies in force.
        settings: every setting as resolved, secrets masked, for `/server_info`.
        kv_events: where KV events are published, for whoever wants to subscribe; None if nowhere.
    """

    config: ServerConfig
    loop: EngineLoop
    metrics: ServerMetrics
    tokenizer: Tokenizer
    clock: Clock
    model_name: str
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_model_len: int
    page_size: int
    num_pages: int
    supports_force_miss: bool = True
    honours_priority: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    kv_events: dict[str, Any] | None = None
    started_unix_s: float = field(default_factory=wall_time_s)

    @property
    def max_total_tokens(self) -> int:
        """Tokens all pages hold together."""
        return self.num_pages * self.page_size

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt plus output that can ever run."""
        return min(self.max_model_len, self.max_total_tokens)
