"""Weights: read from safetensors files under Hugging Face's names, or made up from a seed.

Owns the names on disk and how they become ours (`decoder.parameter_shapes`): query, key and value are stacked
into one matrix, gate and up into another, so a layer does one product where the file has three.

Invariant: what is returned has every weight of the model, in its shape and in one dtype; a tensor that is
missing, unknown or misshaped is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prefixlab.core.errors import EngineError
from prefixlab.engine.model_config import ModelConfig
from prefixlab.engine.models.decoder import parameter_shapes

INDEX_NAME, SINGLE_NAME = "model.safetensors.index.json", "model.safetensors"
_NUM_NAMED = 5
_DUMMY_QUERY_GAIN = 2.5
_DUMMY_LOGIT_STD = 3.0


@dataclass(frozen=True, slots=True)
class Part:
    """Where a tensor of the file goes: rows [first_row, first_row + shape[0]) of our `parameter`."""

    parameter: str
    shape: tuple[int, ...]
    first_row: int = 0


def checkpoint_parts(config: ModelConfig) -> dict[str, Part]:
    """Every tensor a checkpoint of `config` must have, by its name there."""
    hidden, query, kv, ffn = config.hidden_size, config.query_size, config.kv_size, config.intermediate_size
    parts = {
        "model.embed_tokens.weight": Part("embedding", (config.vocab_size, hidden)),
        "model.norm.weight": Part("norm", (hidden,)),
    }
    if not config.tied_embeddings:
        parts["lm_head.weight"] = Part("head", (config.vocab_size, hidden))
    for i in range(config.num_layers):
        theirs, ours = f"model.layers.{i}", f"layers.{i}"
        parts[f"{theirs}.input_layernorm.weight"] = Part(f"{ours}.input_norm", (hidden,))
        parts[f"{theirs}.post_attention_layernorm.weight"] = Part(f"{ours}.post_norm", (hidden,))
        first_row = 0
        for letter, size in (("q", query), ("k", kv), ("v", kv)):
            name = f"{theirs}.self_attn.{letter}_proj"
            parts[f"{name}.weight"] = Part(f"{ours}.qkv", (size, hidden), first_row)
            if config.qkv_bias:
                parts[f"{name}.bias"] = Part(f"{ours}.qkv_bias", (size,), first_row)
            first_row += size
        parts[f"{theirs}.self_attn.o_proj.weight"] = Part(f"{ours}.output", (hidden, query))
        if config.output_bias:
            parts[f"{theirs}.self_attn.o_proj.bias"] = Part(f"{ours}.output_bias", (hidden,))
        if config.qk_norm:
            parts[f"{theirs}.self_attn.q_norm.weight"] = Part(f"{ours}.q_norm", (config.head_dim,))
            parts[f"{theirs}.self_attn.k_norm.weight"] = Part(f"{ours}.k_norm", (config.head_dim,))
        parts[f"{theirs}.mlp.gate_proj.weight"] = Part(f"{ours}.gate_up", (ffn, hidden))
        parts[f"{theirs}.mlp.up_proj.weight"] = Part(f"{ours}.gate_up", (ffn, hidden), ffn)
        parts[f"{theirs}.mlp.down_proj.weight"] = Part(f"{ours}.down", (hidden, ffn))
    return parts


def load_weights(folder: Path, config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights from the safetensors files of `folder`, sharded or not, cast to `dtype`.

    Raises:
        EngineError: files missing or broken, or tensors missing, unknown, misshaped or quantised.
    """
    parts = checkpoint_parts(config)
    weights = {name: torch.empty(shape, dtype=dtype) for name, shape in parameter_shapes(config).items()}
    missing = set(parts)
    unknown: list[str] = []
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dictionary
                    part = parts.get(name)
                    if part is None:
                        if not _is_redundant(name, config):
                            unknown.append(name)
                        continue
                    shape = tuple(file.get_slice(name).get_shape())
                    if shape != part.shape:
                        raise EngineError(
                            f"{path}: {name} has shape {shape}, and the model needs {part.shape}"
                        )
                    tensor = file.get_tensor(name)
                    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
                        raise EngineError(
                            f"{path}: {name} is quantised ({tensor.dtype}), which is not supported"
                        )
                    weights[part.parameter][part.first_row : part.first_row + shape[0]].copy_(tensor)
                    missing.discard(name)
        except (SafetensorError, OSError) as error:
            raise EngineError(f"{path} cannot be read: {error}") from error
    if missing:
        raise EngineError(f"{folder} lacks weights of the model: {_some(missing)}")
    if unknown:
        raise EngineError(f"{folder} holds weights the model has no place for: {_some(unknown)}")
    return weights


def dummy_weights(config: ModelConfig, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Random weights that make a model worth testing: one seed, one model, in every dtype up to rounding.

    Matrices keep the scale of what passes through them, so no layer dies or explodes. Queries are larger, so
    that attention picks a few of many tokens and every part of a prompt matters. The last norm spreads the
    logits, so that greedy tokens vary and stand clear of the second best.
    """
    weights = {}
    for name, shape in parameter_shapes(config).items():
        kind = name.rsplit(".", 1)[-1]
        if kind == "norm":
            weights[name] = torch.full(shape, _DUMMY_LOGIT_STD, dtype=dtype)
        elif kind == "q_norm":
            weights[name] = torch.full(shape, _DUMMY_QUERY_GAIN, dtype=dtype)
        elif kind.endswith("norm"):
            weights[name] = torch.ones(shape, dtype=dtype)
        else:
            generator = torch.Generator().manual_seed(_seed_of(seed, name))
            values = torch.randn(shape, generator=generator).mul_(shape[-1] ** -0.5)
            if kind == "qkv" and not config.qk_norm:
                values[: config.query_size].mul_(_DUMMY_QUERY_GAIN)
            weights[name] = values.to(dtype)
    return weights


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX_NAME
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise EngineError(f"{index} is no index of weights: {error!r}") from error
        paths = [folder / name for name in names]
    else:
        paths = [folder / SINGLE_NAME]
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise EngineError(f"{folder} lacks {_some(absent)} (weights are read from safetensors files only)")
    return paths


def _is_redundant(name: str, config: ModelConfig) -> bool:
    """Tensors some checkpoints carry that say nothing new."""
    return name.endswith("rotary_emb.inv_freq") or (config.tied_embeddings and name == "lm_head.weight")


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _NUM_NAMED} more" if len(ordered) > _NUM_NAMED else ""
    return ", ".join(ordered[:_NUM_NAMED]) + more


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "little")
