"""Built-in shapes: `tiny`, which ships whole, and those of well-known models, for dummy weights.

Facts of the real ones are from their published config.json. `tiny` is our own: small enough for tests on two
cores, with prefill still compute-bound at 2,048 tokens, and with a head_dim that is not hidden_size / heads.

Invariant: a name here never needs a download.
"""

from __future__ import annotations

from prefixlab.core.text.byte_tokenizer import DEFAULT_VOCAB_SIZE
from prefixlab.engine.model_config import Llama3RopeScaling, ModelConfig

TINY = ModelConfig(
    architecture="qwen3",
    vocab_size=DEFAULT_VOCAB_SIZE,
    hidden_size=384,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=1024,
    max_len=131_072,
    rope_theta=1_000_000.0,
    qk_norm=True,
    tied_embeddings=True,
    dtype="float32",
)


def _qwen3(
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    *,
    tied_embeddings: bool = False,
) -> ModelConfig:
    return ModelConfig(
        architecture="qwen3",
        vocab_size=151_936,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=intermediate_size,
        max_len=40_960,
        rope_theta=1_000_000.0,
        qk_norm=True,
        tied_embeddings=tied_embeddings,
        eos_token_ids=(151_645, 151_643),
    )


def _llama31(hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int) -> ModelConfig:
    return ModelConfig(
        architecture="llama",
        vocab_size=128_256,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=intermediate_size,
        max_len=131_072,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 8_192),
        eos_token_ids=(128_001, 128_008, 128_009),
    )


SHAPES: dict[str, ModelConfig] = {
    "tiny": TINY,
    "Qwen3-0.6B": _qwen3(1_024, 28, 16, 3_072, tied_embeddings=True),
    "Qwen3-1.7B": _qwen3(2_048, 28, 16, 6_144, tied_embeddings=True),
    "Qwen3-4B": _qwen3(2_560, 36, 32, 9_728, tied_embeddings=True),
    "Qwen3-8B": _qwen3(4_096, 36, 32, 12_288),
    "Qwen3-14B": _qwen3(5_120, 40, 40, 17_408),
    "Qwen3-32B": _qwen3(5_120, 64, 64, 25_600),
    "Llama-3.1-8B": _llama31(4_096, 32, 32, 14_336),
    "Llama-3.1-70B": _llama31(8_192, 80, 64, 28_672),
}
"""By name, as `--model` takes it."""
