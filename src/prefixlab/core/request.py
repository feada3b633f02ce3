"""A request, from arrival to its last token. Progress is derived from counters, not stored as states.

Who writes what: the edge (server, LLM, simulator) creates it; the scheduler owns `status`, times and
counters; the cache manager owns `row`, `lease` and `num_inserted_tokens`, and sets on admission how much was
cached and counts as computed; nobody else writes. A request is on one thread at a time.

Invariant: `0 <= num_computed_tokens < num_tokens` while it has tokens to compute; `num_inserted_tokens` never
falls, not even when the request is retracted and starts anew.
"""

from __future__ import annotations

import enum

import numpy as np

from prefixlab.core.block_hash import PUBLIC, Namespace, TokenIds
from prefixlab.core.sampling_params import SamplingParams


class RequestStatus(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(enum.Enum):
    """Why a request ended. STOP and LENGTH are successes; the others carry `Request.error`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    TIMEOUT = "timeout"
    ERROR = "error"


class Request:
    """One prompt and what became of it.

    Args:
        request_id: unique among live requests of one scheduler.
        prompt_token_ids: shape (n,), int32, n ≥ 1.
        sampling: validated parameters.
        arrival_s: when it entered, on the scheduler's clock.
        namespace: requests share pages only within one.
        priority: higher runs first (unless the scheduler is told otherwise).
        force_miss: every lookup of this request answers "nothing matched".
        return_prompt_logprobs: compute log-probabilities of the prompt too; such a request reads nothing
            from the cache, since every position's logits are needed.
        stop_token_ids: ids that end it (the model's end-of-sequence ids and the request's own), already
            resolved by the edge; empty under `ignore_eos` unless the request names its own.
    """

    __slots__ = (
        "arrival_s",
        "error",
        "finish_reason",
        "finished_s",
        "first_token_s",
        "force_miss",
        "last_token_s",
        "lease",
        "matched_stop",
        "namespace",
        "num_cached_tokens",
        "num_cached_tokens_by_tier",
        "num_computed_tokens",
        "num_inserted_tokens",
        "num_retractions",
        "output_token_ids",
        "priority",
        "prompt_token_ids",
        "request_id",
        "return_prompt_logprobs",
        "row",
        "sampling",
        "scheduled_s",
        "status",
        "stop_token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: TokenIds,
        sampling: SamplingParams,
        *,
        arrival_s: float = 0.0,
        namespace: Namespace = PUBLIC,
        priority: int = 0,
        force_miss: bool = False,
        return_prompt_logprobs: bool = False,
        stop_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.sampling = sampling
        self.arrival_s = arrival_s
        self.namespace = namespace
        self.priority = priority
        self.force_miss = force_miss
        self.return_prompt_logprobs = return_prompt_logprobs
        self.stop_token_ids = stop_token_ids

        self.status = RequestStatus.WAITING
        self.row = -1
        """Row of the page table while running, else -1."""
        self.lease: object | None = None
        """What the cache manager keeps for this request while it holds pages. Opaque to others."""
        self.output_token_ids: list[int] = []
        self.num_computed_tokens = 0
        """Tokens whose KV is in this request's pages (cached ones included). For running decode rows the
        scheduler's table is the truth and this is written back when the row is given up."""
        self.num_inserted_tokens = 0
        """Tokens this request has already put into the tree: hit counts are per request, not per chunk."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens served from cache at first admission; fixed from then on. None before."""
        self.num_cached_tokens_by_tier: dict[str, int] = {}
        self.num_retractions = 0
        self.scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self.finished_s: float | None = None
        self.finish_reason: FinishReason | None = None
        self.matched_stop: int | str | None = None
        """The stop id or stop string that ended it, if one did."""
        self.error: Exception | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def token_ids(self, stop: int | None = None) -> TokenIds:
        """Prompt then output tokens `[0, stop)`, shape (stop,), int32. No copy within the prompt."""
        num_prompt = len(self.prompt_token_ids)
        if stop is None:
            stop = self.num_tokens
        if stop <= num_prompt:
            return self.prompt_token_ids[:stop]
        output = np.array(self.output_token_ids[: stop - num_prompt], dtype=np.int32)
        return np.concatenate((self.prompt_token_ids, output))

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.status.value}, prompt={self.num_prompt_tokens}, "
            f"output={self.num_output_tokens}, computed={self.num_computed_tokens}, row={self.row})"
        )
