from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.core.hit_oracle import expected_cached_tokens


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(10, 6976), (25, 17472), (50, 34944), (75, 52480), (90, 62976), (95, 66496), (99, 69248)],
)
def test_the_oracle_at_70000_tokens_and_page_64(percent: int, expected: int) -> None:
    assert expected_cached_tokens(70_000 * percent // 100, 70_000, 64) == expected


def test_a_repeated_prompt_always_computes_its_last_token() -> None:
    assert expected_cached_tokens(500, 500, 128) == 384
    assert expected_cached_tokens(64, 64, 64) == 0
    assert expected_cached_tokens(64, 64, 1) == 63


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 300))
def test_hits_are_whole_pages_within_the_shared_prefix(shared: int, prompt: int, page_size: int) -> None:
    hit = expected_cached_tokens(shared, prompt, page_size)
    assert hit % page_size == 0
    assert 0 <= hit <= min(shared, max(prompt - 1, 0))
    assert min(shared, max(prompt - 1, 0)) - hit < page_size


def test_a_page_holds_at_least_one_token() -> None:
    with pytest.raises(ValueError, match="page_size"):
        expected_cached_tokens(1, 2, 0)
