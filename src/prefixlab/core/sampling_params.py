"""How one request's tokens are chosen and when it stops. Frozen; validated once, at the edge.

Invariant: a SamplingParams that exists is valid (`validate` ran, or it was built from defaults).
"""

from __future__ import annotations

import msgspec

from prefixlab.core.errors import InvalidRequestError


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Field names are SGLang's native ones; the OpenAI edge translates (`max_tokens` → `max_new_tokens`).

    Penalties follow the usual definitions: presence and frequency count *output* tokens (OpenAI),
    repetition counts prompt and output (CTRL, arXiv 1909.05858).
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    num_logprobs: int | None = None
    """None: no logprobs. n ≥ 0: the sampled token's and the n most likely ones'."""

    def validate(self) -> SamplingParams:
        """Return self, or raise InvalidRequestError that names the field at fault."""
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "must be at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens,
             "must lie between 0 and max_new_tokens"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "must be a finite number, at least 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "must lie in (0, 1]"),
            ("top_k", self.top_k == -1 or self.top_k >= 1, "must be -1 (off) or at least 1"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "must lie in [0, 1]"),
            ("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "must lie in [-2, 2]"),
            ("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "must lie in [-2, 2]"),
            ("repetition_penalty", 0.0 < self.repetition_penalty <= 2.0, "must lie in (0, 2]"),
            ("seed", self.seed is None or -(2**63) <= self.seed < 2**64, "must fit 64 bits"),
            ("stop", all(self.stop), "must not hold an empty string"),
            ("num_logprobs", self.num_logprobs is None or 0 <= self.num_logprobs <= 20,
             "must lie between 0 and 20"),
        )  # fmt: skip
        for field, ok, rule in checks:
            if not ok:
                raise InvalidRequestError(f"{field} {rule}, not {getattr(self, field)!r}", field)
        return self

    def for_choice(self, index: int) -> SamplingParams:
        """The parameters of one of `n` choices: those of a seeded request differ, and each is repeatable."""
        if self.seed is None or index == 0:
            return self
        return msgspec.structs.replace(self, seed=(self.seed + index) % 2**64)

    def stop_ids(self, eos_token_ids: frozenset[int]) -> frozenset[int]:
        """The ids that end the request: its own and, unless it ignores them, the model's."""
        own = frozenset(self.stop_token_ids)
        return own if self.ignore_eos else own | eos_token_ids

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken: temperature 0, or only one candidate."""
        return self.temperature == 0.0 or self.top_k == 1
