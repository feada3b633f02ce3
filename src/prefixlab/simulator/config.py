"""Settings of the simulated model: one frozen dataclass, from which flags and environment variables are made.

Owns what is asked for, in the units people read; `profile.py` makes step times of it. Imports next to
nothing, so that a list of options is instant.

Invariant: a SimConfig that exists can be simulated, if the profile it names can be read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError
from prefixlab.core.text.byte_tokenizer import FIRST_WORD_ID
from prefixlab.simulator.faults.spec import fault_help, parse_faults

SIM = "sim"
"""What `--model` calls the simulated model."""
DEFAULT_PROFILE = "h200-llama-3.1-8b"
DEFAULT_MAX_MODEL_LEN = 131_072
DEFAULT_KV_TOKENS = 800_000
"""What 141 GB hold of 131,072 bytes each, a tenth kept free, beside 16 GB of weights and 6 GB of buffers."""


@dataclass(frozen=True)
class SimConfig:
    """How long steps take, and what comes out of them, under `--model sim`."""

    sim_profile: str = setting(
        DEFAULT_PROFILE, "step times: a built-in profile, or a JSON file in that format", metavar="PROFILE"
    )
    sim_step_ms: float | None = setting(None, "time of any step (default: the profile's)")
    sim_prefill_tokens_per_s: float | None = setting(
        None, "prompt tokens computed per second, attention apart (default: the profile's)"
    )
    sim_prefill_attention_ns: float | None = setting(
        None, "nanoseconds per pair of a prompt token and one it attends to (default: the profile's)"
    )
    sim_decode_ms_per_row: float | None = setting(
        None, "time per request that gets a token (default: the profile's)"
    )
    sim_decode_context_ns: float | None = setting(
        None, "nanoseconds per token of context read in decode (default: the profile's)"
    )
    sim_speedup: float = setting(1.0, "all steps are so many times faster; inf takes no time at all")
    sim_vocab_size: int = setting(32_000, "token ids of the simulated model")
    sim_eos_rate: float = setting(
        0.0, "chance of each token to end a request that does not ignore the end of sequence"
    )
    sim_fault: tuple[str, ...] = setting(
        (),
        "wrong on purpose, at the edge of the API (repeatable), to see whether a load generator, ours or "
        f"another, finds out; /server_info and /metrics name what was given: {fault_help()}",
        metavar="FAULT",
    )

    def __post_init__(self) -> None:
        parse_faults(self.sim_fault)
        for name in (
            "sim_step_ms",
            "sim_prefill_attention_ns",
            "sim_decode_ms_per_row",
            "sim_decode_context_ns",
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"--{name.replace('_', '-')} must be a number, at least 0, not {value}")
        if self.sim_prefill_tokens_per_s is not None and not self.sim_prefill_tokens_per_s > 0:
            raise ConfigError(
                "--sim-prefill-tokens-per-s must be more than 0 (inf costs nothing), "
                f"not {self.sim_prefill_tokens_per_s}"
            )
        if not self.sim_speedup > 0:
            raise ConfigError(f"--sim-speedup must be more than 0, not {self.sim_speedup}")
        if self.sim_vocab_size <= FIRST_WORD_ID:
            raise ConfigError(
                f"--sim-vocab-size must be more than {FIRST_WORD_ID} (bytes and special tokens come first), "
                f"not {self.sim_vocab_size}"
            )
        if not 0 <= self.sim_eos_rate <= 1:
            raise ConfigError(f"--sim-eos-rate must lie in 0 … 1, not {self.sim_eos_rate}")
