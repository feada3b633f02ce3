"""Rotary positions: the tables of cosines and sines, and the rotation (Su et al., arXiv 2104.09864).

Invariant: the table is computed once for all positions, so a position's angles never depend on the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prefixlab.engine.model_config import Llama3RopeScaling, ModelConfig


def rotary_tables(config: ModelConfig, max_len: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, shape (max_len, head_dim // 2) each; angles in float32, then rounded to `dtype`."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope_scaling is not None:
        frequencies = _stretch(frequencies, config.rope_scaling)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _stretch(frequencies: Tensor, scaling: Llama3RopeScaling) -> Tensor:
    """Llama 3.1: long wavelengths by `factor`, short ones not at all, those between blended linearly."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_len / wavelengths
    kept_share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept_share = kept_share.clamp(0.0, 1.0)
    return (1 - kept_share) * frequencies / scaling.factor + kept_share * frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + head_dim // 2) of every head.

    Args:
        x: shape (T, heads, head_dim).
        cos, sin: shape (T, 1, head_dim // 2).
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
