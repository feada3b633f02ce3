from __future__ import annotations

from typing import Any

import pytest

from prefixlab.bench.config.traces.analyze import AnalyzeConfig
from prefixlab.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("20000", 20_000),
        ("20000blocks", 20_000),
        ("1.5e3", 1_500),
        ("5e6tokens", 9_765),
        ("511tokens", 0),
        ("80GiB", 1_280),
        ("64MB", 0),
        ("67108864B", 1),
        ("0.125GiB", 2),
    ],
)
def test_the_size_of_a_cache_is_told_in_blocks_tokens_or_bytes(text: str, blocks: int) -> None:
    config = AnalyzeConfig(capacity=text, kv_bytes_per_token=131_072)
    (capacity,) = config.capacities(block_size=512)
    assert (capacity.asked, capacity.blocks) == (text, blocks)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"capacity": "many"}, "--capacity 'many' is not the size of a cache"),
        ({"capacity": "5 GiB"}, "--capacity '5 GiB'"),
        ({"capacity": "5gib"}, "--capacity '5gib'"),
        ({"capacity": "-5"}, "--capacity '-5'"),
        ({"capacity": "5GiB"}, "--capacity 5GiB is in bytes: give --kv-bytes-per-token"),
        ({"capacity": "1e300"}, "more than any cache"),
        ({"num_requests": 0}, "--num-requests must be at least 1, not 0"),
        ({"block_size": -1}, "--block-size"),
        ({"kv_bytes_per_token": 0}, "--kv-bytes-per-token"),
        ({"session_interval": float("nan")}, "--session-interval"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnalyzeConfig(**given)


def test_lists_are_given_with_commas() -> None:
    config = AnalyzeConfig(capacity="5, 20tokens,")
    assert [capacity.blocks for capacity in config.capacities(block_size=10)] == [5, 2]
    assert AnalyzeConfig().capacities(block_size=10) == []
