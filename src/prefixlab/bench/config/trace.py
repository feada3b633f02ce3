"""Settings of `bench trace`. Owns which options there are and their defaults.

Invariant: `resolve` returns every number decided or refuses by the flag's name; defaults live only here.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError


@dataclass(frozen=True)
class TraceConfig:
    """`bench trace` as given."""

    num_prompts: int = setting(50, "requests to replay, from the start of the trace; 0 for all")
    speedup: float = setting(1.0, "2 replays twice as fast as recorded")
    length_scale: float | None = setting(
        None, "multiplies every length and the block size (default: 1; embedded: 0.25)"
    )
    block_size: int | None = setting(
        None, "tokens per hash id (default: inferred from lengths and numbers of ids)"
    )
    max_len: int | None = setting(
        None, "longest prompt plus output; longer requests are cut (default: what the server says)"
    )
    seed: int = setting(42, "seed of the token ids that stand for each block")
    output_file: str | None = setting(None, "append the result as a JSON line to this file", metavar="FILE")
    strict: bool = setting(False, "exit with 3 unless the cache served what an ideal one would have")
    dry_run: bool = setting(False, "print what would be sent, and stop")

    def __post_init__(self) -> None:
        if self.num_prompts < 0:
            raise ConfigError(f"--num-prompts must not be negative, not {self.num_prompts}")
        if not 0 < self.speedup < float("inf"):
            raise ConfigError(f"--speedup must be a positive number, not {self.speedup}")
        if self.length_scale is not None and not 0 < self.length_scale <= 1:
            raise ConfigError(f"--length-scale must lie in (0, 1], not {self.length_scale}")
        if self.block_size is not None and self.block_size < 1:
            raise ConfigError(f"--block-size must be at least 1, not {self.block_size}")
        if self.max_len is not None and self.max_len < 2:
            raise ConfigError(f"--max-len must be at least 2 (prompt and output), not {self.max_len}")
        if self.seed < 0:
            raise ConfigError(f"--seed must not be negative, not {self.seed}")
