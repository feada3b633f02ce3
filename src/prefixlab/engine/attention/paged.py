"""Attention of one step over the KV pool, layer by layer, through torch's scaled_dot_product_attention.

Writes the step's keys and values into their slots, gathers what the queries may see, attends. Knows slots and
rows (plan.py), not pages or requests. `enable_gqa` and, in decode, grouped queries spare expanding the heads.

Invariant: a query sees exactly the positions up to its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prefixlab.engine.attention.plan import DecodeGroup, SequenceQueries, StepPlan
from prefixlab.engine.kv_pool import KVPool
from prefixlab.engine.model_config import ModelConfig


class CausalMasks:
    """Causal masks of up to `max_queries` queries over any number of keys, as views of one tensor.

    The tensor is −∞ above the diagonal of its last `max_queries` columns and 0 elsewhere; n queries at the
    end of k keys are its last n rows and last k columns. It grows with the longest context seen.
    """

    GROWTH = 8192
    """Keys it grows by at a time."""

    def __init__(self, max_queries: int, dtype: torch.dtype) -> None:
        self._max_queries = max_queries
        self._dtype = dtype
        self._base = torch.empty(0, 0, dtype=dtype)

    def get(self, num_queries: int, num_keys: int) -> Tensor:
        """Additive mask, shape (num_queries, num_keys): the last query sees all keys."""
        if num_keys > self._base.shape[1]:
            self._base = self._make(-(-num_keys // self.GROWTH) * self.GROWTH)
        return self._base[self._max_queries - num_queries :, self._base.shape[1] - num_keys :]

    def _make(self, num_keys: int) -> Tensor:
        hidden = torch.ones(self._max_queries, self._max_queries, dtype=torch.bool).triu(1)
        base = torch.zeros(self._max_queries, num_keys, dtype=self._dtype)
        base[:, num_keys - self._max_queries :].masked_fill_(hidden, float("-inf"))
        return base


class PagedAttention:
    """Attention for one step, handed to `Decoder.forward`. All layers share its buffers."""

    def __init__(self, config: ModelConfig, pool: KVPool, plan: StepPlan, masks: CausalMasks) -> None:
        self._config = config
        self._pool = pool
        self._plan = plan
        self._masks = masks
        buffer_shape = (plan.max_gathered_slots, config.kv_size)
        self._key_buffer = torch.empty(buffer_shape, dtype=pool.dtype)
        self._value_buffer = torch.empty(buffer_shape, dtype=pool.dtype)
        # Additive masks in the queries' type, made once rather than in every layer.
        self._group_masks = [_additive(group.mask, pool.dtype) for group in plan.groups]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `decoder.Attend`."""
        plan = self._plan
        if plan.write_rows is not None:
            key, value = key.index_select(0, plan.write_rows), value.index_select(0, plan.write_rows)
        self._pool.write(layer, plan.write_slots, key, value)
        # Rows of a tile that nobody uses go on through the layers: with zeros, every run does the same.
        make = torch.empty if plan.write_rows is None else torch.zeros
        attended = make(plan.num_rows, self._config.query_size, dtype=query.dtype)
        for sequence in plan.sequences:
            self._attend_sequence(layer, sequence, query, attended)
        for group, mask in zip(plan.groups, self._group_masks, strict=True):
            self._decode(layer, group, mask, query, attended)
        return attended

    def _attend_sequence(
        self, layer: int, sequence: SequenceQueries, query: Tensor, attended: Tensor
    ) -> None:
        keys, values = self._gather(layer, sequence.slots, 1)
        for block in sequence.blocks:
            result = scaled_dot_product_attention(
                query[block.begin : block.end].transpose(0, 1).unsqueeze(0),
                keys[:, :, : block.kv_len],
                values[:, :, : block.kv_len],
                attn_mask=self._masks.get(block.end - block.begin, block.kv_len),
                enable_gqa=True,
            )
            rows = result.squeeze(0).transpose(0, 1).flatten(1)
            kept = slice(block.keep_begin - block.begin, block.keep_end - block.begin)
            attended[block.keep_begin : block.keep_end] = rows[kept]

    def _decode(
        self, layer: int, group: DecodeGroup, mask: Tensor | None, query: Tensor, attended: Tensor
    ) -> None:
        keys, values = self._gather(layer, group.slots, len(group.rows))
        # The heads that share a key-value head become its queries: (n, kv_heads, heads / kv_heads, head_dim).
        grouped = query.index_select(0, group.rows).view(
            len(group.rows), self._config.num_kv_heads, -1, self._config.head_dim
        )
        result = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        attended.index_copy_(0, group.rows, result.flatten(1))

    def _gather(self, layer: int, slots: Tensor, num_sequences: int) -> tuple[Tensor, Tensor]:
        """Views of the buffers, filled: shape (sequences, kv_heads, slots each, head_dim)."""
        keys, values = self._key_buffer[: len(slots)], self._value_buffer[: len(slots)]
        self._pool.read(layer, slots, keys, values)
        shape = (num_sequences, -1, self._config.num_kv_heads, self._config.head_dim)
        return keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2)


def _additive(visible: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if visible is None:
        return None
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
