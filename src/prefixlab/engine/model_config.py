"""The shape of one decoder model, what it costs, and how a Hugging Face config.json spells it.

One parametrised family: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Llama 3, Qwen2, Qwen3 and
Mistral differ in the fields below and nowhere else. Imports no torch.

Invariant: a ModelConfig that exists describes a model this engine computes exactly; whatever else a
config.json asks for is refused by name, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefixlab.core.errors import ConfigError, EngineError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3.1's stretch of low rotary frequencies to a longer context.

    Wavelengths above `original_max_len / low_freq_factor` are stretched by `factor`, those below
    `original_max_len / high_freq_factor` are kept, and those between are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_len: int


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. `architecture` is the model_type of Hugging Face.

    Attributes:
        head_dim: width of one head; need not be hidden_size / num_heads.
        qkv_bias, output_bias: biases of the attention's input and output projections.
        qk_norm: RMSNorm over each head's query and key before the rotation (Qwen3).
        tied_embeddings: the output layer is the embedding matrix.
        max_len: tokens the model was made for (max_position_embeddings).
        sliding_window: tokens each token sees, where that is fewer than all; the engine refuses contexts
            beyond it.
        dtype: of the checkpoint: float32 or bfloat16.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_len: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: Llama3RopeScaling | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    sliding_window: int | None = None
    dtype: str = "bfloat16"
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "max_len",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise EngineError(f"the model's {name} must be at least 1, not {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise EngineError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads evenly"
            )
        if self.head_dim % 2:
            raise EngineError(f"rotary positions need an even head_dim, not {self.head_dim}")
        if self.dtype not in DTYPE_BYTES:
            raise EngineError(f"weights of type {self.dtype} are not supported (float32 and bfloat16 are)")

    # What it costs. --------------------------------------------------------------------------------

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of one layer's keys (or values) for one token."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_layer_parameters(self) -> int:
        """Weights of one decoder layer."""
        attention = (
            self.hidden_size * (self.query_size + 2 * self.kv_size) + self.query_size * self.hidden_size
        )
        biases = (self.query_size + 2 * self.kv_size) * self.qkv_bias + self.hidden_size * self.output_bias
        norms = 2 * self.hidden_size + 2 * self.head_dim * self.qk_norm
        return attention + biases + norms + 3 * self.hidden_size * self.intermediate_size

    @property
    def num_parameters(self) -> int:
        """All weights; a tied output layer counts once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return embeddings + self.num_layers * self.num_layer_parameters + self.hidden_size

    def weight_bytes(self, dtype: str) -> int:
        return self.num_parameters * DTYPE_BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.num_layers * self.kv_size * DTYPE_BYTES[dtype]

    def flops_per_token(self, context_len: int, *, with_logits: bool = True) -> int:
        """Floating-point operations to compute one token that sees `context_len` tokens (itself included).

        Two per weight of every matrix product, and per visible token 2 · head_dim for the score and as much
        for the weighted sum, in every head. Norms, rotations and the softmax are left out, as is usual for
        MFU (Chowdhery et al., arXiv 2204.02311, appendix B).
        """
        matrices = self.hidden_size * (2 * self.query_size + 2 * self.kv_size + 3 * self.intermediate_size)
        attention = 4 * context_len * self.query_size
        logits = 2 * self.hidden_size * self.vocab_size if with_logits else 0
        return self.num_layers * (2 * matrices + attention) + logits


# Hugging Face's spelling. ------------------------------------------------------------------------------

# Whose projections have biases: what the code of each architecture does when its config is silent.
_QKV_BIAS_ALWAYS = {"qwen2"}
_BIAS_BY_FIELD = {"llama", "qwen3"}
_QK_NORM = {"qwen3"}
_HEAD_DIM_DEFAULTS = {"qwen3": 128}
_WINDOW_NEEDS_SWITCH = {"qwen2", "qwen3"}
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral")


def read_model_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a folder's config.json.

    Raises:
        EngineError: the file is missing or broken, or describes a model this engine does not compute.
    """
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise EngineError(f"{folder} holds no config.json") from None
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise EngineError(f"{path} is not a JSON object")
    return parse_model_config(fields, str(path))


def parse_model_config(fields: Mapping[str, Any], source: str) -> ModelConfig:
    """A ModelConfig from config.json's fields; `source` names them in errors. Raises EngineError."""
    architecture = fields.get("model_type")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise EngineError(f"{source}: unknown architecture {architecture!r} (known: {known})")
    _refuse_what_is_not_computed(fields, source)

    def size(name: str, default: int | None = None) -> int:
        value = fields.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise EngineError(f"{source}: {name} must be a whole number, not {value!r}")
        return value

    num_heads = size("num_attention_heads")
    hidden_size = size("hidden_size")
    theta, scaling = _rope(fields, source)
    bias = bool(fields.get("attention_bias")) if architecture in _BIAS_BY_FIELD else False
    return ModelConfig(
        architecture=architecture,
        vocab_size=size("vocab_size"),
        hidden_size=hidden_size,
        num_layers=size("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=size("num_key_value_heads", num_heads),
        head_dim=size("head_dim", _HEAD_DIM_DEFAULTS.get(architecture, hidden_size // num_heads)),
        intermediate_size=size("intermediate_size"),
        max_len=size("max_position_embeddings"),
        rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=bias or architecture in _QKV_BIAS_ALWAYS,
        output_bias=bias,
        qk_norm=architecture in _QK_NORM,
        tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
        sliding_window=_sliding_window(architecture, fields),
        dtype=_dtype(fields),
        eos_token_ids=eos_ids(fields.get("eos_token_id")),
    )


def eos_ids(value: Any) -> tuple[int, ...]:
    """`eos_token_id` as it is spelt in JSON: null, one id, or a list."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _refuse_what_is_not_computed(fields: Mapping[str, Any], source: str) -> None:
    if fields.get("quantization_config"):
        method = fields["quantization_config"].get("quant_method", "unnamed")
        raise EngineError(f"{source}: quantised weights ({method}) are not supported")
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise EngineError(
            f"{source}: activation hidden_act={fields['hidden_act']!r} is not supported (silu is)"
        )
    if fields.get("mlp_bias"):
        raise EngineError(f"{source}: mlp_bias is not supported")


def _rope(fields: Mapping[str, Any], source: str) -> tuple[float, Llama3RopeScaling | None]:
    """Base and scaling. Two spellings: rope_theta with rope_scaling, or both in rope_parameters."""
    parameters = fields.get("rope_parameters") or {}
    scaling = fields.get("rope_scaling") or parameters
    theta = float(parameters.get("rope_theta") or fields.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise EngineError(f"{source}: a partial_rotary_factor is not supported")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise EngineError(
            f"{source}: rope scaling of type {kind!r} is not supported (default and llama3 are)"
        )
    try:
        return theta, Llama3RopeScaling(
            factor=float(scaling["factor"]),
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
            original_max_len=int(scaling["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise EngineError(f"{source}: rope scaling of type 'llama3' lacks {error.args[0]}") from None


def _sliding_window(architecture: str, fields: Mapping[str, Any]) -> int | None:
    """The window, if a layer really uses it: Qwen has a switch and a first layer for it, Mistral neither."""
    window = fields.get("sliding_window")
    if window is None:
        return None
    if architecture in _WINDOW_NEEDS_SWITCH:
        if not fields.get("use_sliding_window"):
            return None
        layer_types = fields.get("layer_types")
        if layer_types is not None:
            return int(window) if "sliding_attention" in layer_types else None
        first = fields.get("max_window_layers", 28)
        return int(window) if first < fields.get("num_hidden_layers", 0) else None
    return int(window) if architecture == "mistral" else None


def _dtype(fields: Mapping[str, Any]) -> str:
    """The checkpoint's type. float16 is slow on CPU and becomes float32, which holds it exactly."""
    name = str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch.")
    return "float32" if name == "float16" else name


def check_max_model_len(config: ModelConfig, asked: int | None) -> int:
    """The longest sequence to serve: `asked`, or what the model was made for.

    Raises:
        ConfigError: longer than the model's positions, or than a sliding window, which this engine does not
            compute.
    """
    max_model_len = config.max_len if asked is None else asked
    if max_model_len > config.max_len:
        raise ConfigError(
            f"--max-model-len {max_model_len}: the model has positions for {config.max_len} tokens"
        )
    if config.sliding_window is not None and config.sliding_window < max_model_len:
        raise ConfigError(
            f"the model's attention has a sliding window of {config.sliding_window} tokens, which is not "
            f"supported beyond that length: --max-model-len {config.sliding_window} or less serves it exactly"
        )
    return max_model_len
