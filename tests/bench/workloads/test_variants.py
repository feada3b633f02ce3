from __future__ import annotations

import numpy as np

from prefixlab.bench.workloads.sketch import Sketches
from prefixlab.bench.workloads.variants import unshared, with_prefixes_first

SKETCHES = Sketches.of([[(0, 32), (-1, 10)], [(1, 16), (-2, 9)], [(0, 32), (-3, 8)], [(-4, 5)]], [3, 4, 5, 6])


def test_what_is_unshared_is_as_long_and_shares_nothing() -> None:
    alone = unshared(SKETCHES)
    assert alone.prompt_tokens.tolist() == SKETCHES.prompt_tokens.tolist()
    assert alone.output_tokens.tolist() == SKETCHES.output_tokens.tolist()
    assert SKETCHES.shared_tokens.tolist() == [0, 0, 32, 0]
    assert alone.shared_tokens.tolist() == [0, 0, 0, 0]


def test_each_prefix_comes_once_before_the_requests_and_then_all_of_them_share_it() -> None:
    both, count = with_prefixes_first(SKETCHES, own_tokens=8)
    assert count == 2
    assert both.prompt_tokens[:2].tolist() == [40, 24] and both.output_tokens[:2].tolist() == [1, 1]
    assert both.prompt_tokens[2:].tolist() == SKETCHES.prompt_tokens.tolist()
    assert both.output_tokens[2:].tolist() == SKETCHES.output_tokens.tolist()
    assert both.shared_tokens.tolist() == [0, 0, 32, 16, 32, 0]


def test_where_nothing_is_shared_nothing_comes_before() -> None:
    alone = unshared(SKETCHES)
    same, count = with_prefixes_first(alone)
    assert count == 0 and same is alone


def test_sessions_bring_their_own_prefixes() -> None:
    turns = Sketches.of([[(0, 8)], [(0, 8), (1, 8)]], [1, 1], after=np.array([-1, 0]))
    assert with_prefixes_first(turns) == (turns, 0)
