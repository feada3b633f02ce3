"""Row maps: the same function of the same rows, in one go or in tiles of one size and no other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefixlab.engine.models.row_maps import InTiles, all_at_once


def test_in_tiles_the_function_only_ever_sees_whole_tiles() -> None:
    """Tests of bits cannot show this: on many machines other shapes happen to round alike."""
    seen: list[tuple[int, int]] = []

    def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((len(x), len(y)))
        return x + y[:, :1], x * 2

    x, y = torch.randn(24, 3), torch.randn(24, 5)
    in_tiles = InTiles(8)(both, x, y)
    assert seen == [(8, 8)] * 3
    for ours, theirs in zip(in_tiles, all_at_once(both, x, y), strict=True):
        assert torch.equal(ours, theirs)


def test_rows_that_do_not_fill_their_tiles_are_our_own_bug() -> None:
    with pytest.raises(AssertionError):
        InTiles(8)(lambda x: (x,), torch.zeros(9, 1))
