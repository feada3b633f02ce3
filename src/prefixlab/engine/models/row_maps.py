"""How a row-wise function is applied to rows of tokens: all at once, or in tiles of a fixed size.

A matrix product's rounding depends on its shape and on where a row stands in it, since libraries pick kernels
by shape and treat the rows at an edge differently. In tiles every product of the model has one shape for
good, so together with a fixed place in the tile (attention/plan.py) a token's bits follow from itself alone.

Invariant: both maps compute the same function, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

RowFunction = Callable[..., tuple[Tensor, ...]]
"""From tensors of n rows to tensors of n rows, each row of which depends on the same row alone."""


class RowMap(Protocol):
    def __call__(self, function: RowFunction, *rows: Tensor) -> tuple[Tensor, ...]:
        """`function(*rows)`; all of `rows` have the same first dimension."""
        ...


def all_at_once(function: RowFunction, *rows: Tensor) -> tuple[Tensor, ...]:
    """The fast way."""
    return function(*rows)


class InTiles:
    """The batch-invariant way: `tile_size` rows at a time. The number of rows must be a multiple of it."""

    def __init__(self, tile_size: int) -> None:
        self.tile_size = tile_size

    def __call__(self, function: RowFunction, *rows: Tensor) -> tuple[Tensor, ...]:
        size = self.tile_size
        assert len(rows[0]) % size == 0, "rows come in whole tiles"
        parts = [function(*(x[i : i + size] for x in rows)) for i in range(0, len(rows[0]), size)]
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
