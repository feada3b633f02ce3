"""The hit oracle: how many tokens a prefix cache must serve. Pure arithmetic, no cache needed.

Every workload knows its own expected hits by this rule, and every report shows intended, expected, measured.
"""

from __future__ import annotations


def expected_cached_tokens(shared_tokens: int, prompt_tokens: int, page_size: int) -> int:
    """Tokens served from cache for a prompt of `prompt_tokens` with a cached prefix of `shared_tokens`.

    `min(S, N - 1) // P * P`: only full pages are shared, and at least one token is always computed, since
    the last position's logits are needed. (A fully repeated prompt therefore hits `(N - 1) // P * P`.)
    """
    if page_size < 1:
        raise ValueError(f"page_size must be at least 1, not {page_size}")
    if prompt_tokens < 1:
        return 0
    return min(shared_tokens, prompt_tokens - 1) // page_size * page_size
