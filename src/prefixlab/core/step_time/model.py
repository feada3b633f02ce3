"""From a step's shape to its duration. A model is plain data with a tag, so that it can be kept in a file.

Owns the seam `StepTime` and its kinds; a further kind (a grid of measurements, a fit of another form) is one
more class here, and one more member of `StepTimeModel`.

Invariant: a duration is finite and not negative, and depends on the shape alone.
"""

from __future__ import annotations

import math
from typing import Protocol

import msgspec

from prefixlab.core.errors import ConfigError
from prefixlab.core.step_time.shape import StepShape


class StepTime(Protocol):
    """How long a step takes."""

    def duration_s(self, shape: StepShape) -> float:
        """Seconds from the step's start to its tokens. A pure function."""
        ...


class LinearStepTime(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="linear"
):
    """A sum of costs, each proportional to one kind of work. Coefficients left out are 0.

    Weights are read once a step (`fixed_s`), multiplied with each new token (`prefill_token_s`,
    `decode_row_s`), and each token attends to its context: limited by arithmetic in prefill
    (`prefill_attention_s`), by reading KV in decode (`decode_context_s`).

    Attributes:
        fixed_s: of any step.
        prefill_token_s: per prompt token computed.
        prefill_attention_s: per pair of a prompt token computed and a token it attends to.
        decode_row_s: per request that gets one more token.
        decode_context_s: per token whose KV a decoding request reads.

    Raises:
        ConfigError: a coefficient is negative, or not finite.
    """

    fixed_s: float = 0.0
    prefill_token_s: float = 0.0
    prefill_attention_s: float = 0.0
    decode_row_s: float = 0.0
    decode_context_s: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be a finite number of seconds, at least 0, not {value}")

    def duration_s(self, shape: StepShape) -> float:
        return (
            self.fixed_s
            + self.prefill_token_s * shape.num_prefill_tokens
            + self.prefill_attention_s * shape.num_prefill_pairs
            + self.decode_row_s * shape.num_decode_rows
            + self.decode_context_s * shape.num_decode_context_tokens
        )


StepTimeModel = LinearStepTime
"""Every kind a file may hold: a union, once there are several."""
