"""The decoder: embedding, layers, output. Everything here treats each token alone; attention is handed in.

That split is the point: a layer is `project` (token → query, key, value), attention over the pages (not
ours), and `finish` (token and what it attended to → token). So the same weights and the same loop serve a
plain step and a batch-invariant one, which differ only in how rows of tokens are handed to these two.

Invariant: row i of every result depends on row i of the arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, silu

from prefixlab.engine.model_config import ModelConfig
from prefixlab.engine.models.rope import rotary_tables, rotate
from prefixlab.engine.models.row_maps import RowMap

Weights = Mapping[str, Tensor]
"""By our names; `parameter_shapes` lists them."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query (T, heads, head_dim), key (T, kv_heads, head_dim), value) → shape (T, heads · head_dim)."""


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of the model under our name. Query, key and value are one matrix, gate and up another."""
    hidden, qkv_size = config.hidden_size, config.query_size + 2 * config.kv_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, hidden), "norm": (hidden,)}
    if not config.tied_embeddings:
        shapes["head"] = (config.vocab_size, hidden)
    for i in range(config.num_layers):
        layer: dict[str, tuple[int, ...]] = {
            "input_norm": (hidden,),
            "qkv": (qkv_size, hidden),
            "output": (hidden, config.query_size),
            "post_norm": (hidden,),
            "gate_up": (2 * config.intermediate_size, hidden),
            "down": (hidden, config.intermediate_size),
        }
        if config.qkv_bias:
            layer["qkv_bias"] = (qkv_size,)
        if config.output_bias:
            layer["output_bias"] = (hidden,)
        if config.qk_norm:
            layer["q_norm"] = layer["k_norm"] = (config.head_dim,)
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


class DecoderLayer:
    """One layer's weights and its two token-wise halves."""

    def __init__(self, config: ModelConfig, weights: Weights, index: int) -> None:
        def weight(name: str) -> Tensor:
            return weights[f"layers.{index}.{name}"]

        self.config = config
        self.input_norm, self.post_norm = weight("input_norm"), weight("post_norm")
        self.qkv, self.output = weight("qkv"), weight("output")
        self.gate_up, self.down = weight("gate_up"), weight("down")
        self.qkv_bias = weight("qkv_bias") if config.qkv_bias else None
        self.output_bias = weight("output_bias") if config.output_bias else None
        self.q_norm = weight("q_norm") if config.qk_norm else None
        self.k_norm = weight("k_norm") if config.qk_norm else None

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated query and key, and value: shapes (T, heads, head_dim), (T, kv_heads, head_dim) twice."""
        config = self.config
        normed = rms_norm(x, self.input_norm, config.rms_norm_eps)
        qkv = linear(normed, self.qkv, self.qkv_bias).view(len(x), -1, config.head_dim)
        heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        query, key, value = qkv.split_with_sizes(heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            query = rms_norm(query, self.q_norm, config.rms_norm_eps)
            key = rms_norm(key, self.k_norm, config.rms_norm_eps)
        return rotate(query, cos, sin), rotate(key, cos, sin), value

    def finish(self, x: Tensor, attended: Tensor) -> tuple[Tensor]:
        """Add what was attended to, then the feed-forward network; shape (T, hidden)."""
        x = x + linear(attended, self.output, self.output_bias)
        normed = rms_norm(x, self.post_norm, self.config.rms_norm_eps)
        gate, up = linear(normed, self.gate_up).chunk(2, dim=-1)
        return (x + linear(silu(gate) * up, self.down),)


class Decoder:
    """The whole model for sequences of up to `max_len` tokens.

    Args:
        weights: tensors of one dtype, named and shaped as `parameter_shapes` says.
    """

    def __init__(self, config: ModelConfig, weights: Weights, max_len: int) -> None:
        self.config = config
        self.embedding = weights["embedding"]
        self.layers = [DecoderLayer(config, weights, i) for i in range(config.num_layers)]
        self.norm = weights["norm"]
        self.head = weights["embedding"] if config.tied_embeddings else weights["head"]
        self.dtype = self.embedding.dtype
        self.cos, self.sin = rotary_tables(config, max_len, self.dtype)

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend, by_rows: RowMap) -> Tensor:
        """Hidden states before the last norm, shape (T, hidden).

        Args:
            token_ids, positions: shape (T,), int64.
            attend: stores keys and values of these tokens and attends to all they may see.
            by_rows: applies the token-wise halves.
        """
        x = embedding(token_ids, self.embedding)
        cos = self.cos.index_select(0, positions).unsqueeze(1)
        sin = self.sin.index_select(0, positions).unsqueeze(1)
        for i, layer in enumerate(self.layers):
            query, key, value = by_rows(layer.project, x, cos, sin)
            attended = attend(i, query, key, value)
            (x,) = by_rows(layer.finish, x, attended)
        return x

    def logits(self, x: Tensor) -> tuple[Tensor]:
        """Logits of hidden states, shape (T, vocab), float32. Row by row, as a layer's halves are."""
        return (linear(rms_norm(x, self.norm, self.config.rms_norm_eps), self.head).float(),)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x over its root mean square along the last axis, times `weight` (arXiv 1910.07467)."""
    return torch.rms_norm(x, weight.shape, weight, eps)
