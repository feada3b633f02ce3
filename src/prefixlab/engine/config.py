"""Settings of the engine: one frozen dataclass, from which flags and environment variables are made.

Owns what is asked for; `load.py` turns it into what is loaded. Imports no torch.

Invariant: an EngineConfig that exists asks for nothing this engine would ignore.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

LOAD_FORMATS = ("auto", "safetensors", "dummy")
DTYPES = ("auto", "float32", "bfloat16")
DEVICES = ("cpu",)


@dataclass(frozen=True)
class EngineConfig:
    """Which model, in which form, on what."""

    model: str = setting(
        "tiny",
        "built-in shape, Hugging Face folder, or hub id; sim simulates one, and needs none",
        aliases=("--model-path",),
    )
    tokenizer: str | None = setting(
        None, "folder or hub id of the tokenizer, or 'byte' (default: the model's; byte for built-in shapes)"
    )
    revision: str | None = setting(None, "branch, tag or commit of a hub id (default: main)")
    load_format: str = setting(
        "auto",
        "weights: from safetensors files, or dummy (seeded random; what auto means for tiny)",
        choices=LOAD_FORMATS,
    )
    dtype: str = setting("auto", "type of weights and KV; auto is the checkpoint's own", choices=DTYPES)
    device: str = setting("cpu", "where the model runs")
    seed: int = setting(0, "seed of dummy weights, and of requests that bring no seed of their own")
    max_model_len: int | None = setting(
        None,
        "longest prompt plus output, in tokens (default: what the model was made for)",
        aliases=("--context-length",),
    )
    kv_memory_bytes: int | None = setting(
        None, "bytes for the KV pages, where --num-pages is not given (default: a tenth of the free memory)"
    )
    deterministic: bool = setting(
        False, "bit-identical tokens and logits whatever the batch, the chunks and the cache; slower"
    )

    def __post_init__(self) -> None:
        # What flags cannot refuse for us: configs are also made in Python.
        for name, value, choices in (
            ("load-format", self.load_format, LOAD_FORMATS),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in choices:
                raise ConfigError(f"--{name} must be one of {', '.join(choices)}, not {value!r}")
        if self.device not in DEVICES:
            raise ConfigError(
                f"--device {self.device}: only {' and '.join(DEVICES)} can run the model so far"
            )
        if not self.model:
            raise ConfigError("--model must not be empty")
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"--seed must fit 64 bits, not {self.seed}")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError(
                f"--max-model-len must be at least 2 (a prompt and an output token), not {self.max_model_len}"
            )
        if self.kv_memory_bytes is not None and self.kv_memory_bytes < 1:
            raise ConfigError(f"--kv-memory-bytes must be at least 1, not {self.kv_memory_bytes}")
