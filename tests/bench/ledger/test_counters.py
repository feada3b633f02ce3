from __future__ import annotations

import pytest

from prefixlab.bench.ledger.counters import ServerCounts, growth, read_counters
from prefixlab.bench.ledger.seen import EventCounts, Seen

VLLM = """# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{engine="0",model_name="m"}} {prompt}
vllm:prompt_tokens_created{{engine="0",model_name="m"}} 1.7e+09
vllm:prefix_cache_queries_total{{engine="0",model_name="m"}} {prompt}
vllm:prefix_cache_hits_total{{engine="0",model_name="m"}} {hits}
vllm:external_prefix_cache_hits_total{{engine="0",model_name="m"}} {external}
vllm:request_success_total{{engine="0",finished_reason="stop"}} {requests}
vllm:request_success_total{{engine="0",finished_reason="length"}} {requests}
"""
SGLANG = """sglang:prompt_tokens_total{{model_name="m"}} {prompt}
sglang:cached_tokens_total{{cache_source="device",model_name="m"}} {device}
sglang:cached_tokens_total{{cache_source="host",model_name="m"}} {host}
sglang:num_requests_total{{model_name="m"}} 7.0
sglang:evicted_tokens_total 64.0
"""
OURS = """prefixlab:prompt_tokens_total {prompt}
prefixlab:cached_tokens_total{{tier="device"}} {device}
prefixlab:cached_tokens_total{{tier="storage"}} {storage}
prefixlab:evicted_pages_total 5.0
prefixlab:requests_total{{outcome="length"}} 3.0
"""


def grown(before: str, after: str) -> ServerCounts:
    counts = growth(read_counters(before), read_counters(after))
    assert counts is not None
    return counts


def test_vllms_hits_are_those_of_every_tier() -> None:
    before = VLLM.format(prompt=100.0, hits=10.0, external=0.0, requests=1.0)
    counts = grown(before, VLLM.format(prompt=1100.0, hits=210.0, external=50.0, requests=5.0))
    assert counts == ServerCounts(
        prompt_tokens=1000,
        looked_up_tokens=1000,
        cached_tokens=250,
        by_tier={"device": 200, "external": 50},
        num_requests=8,
    )
    assert counts.hit_rate == 0.25


def test_sglangs_hits_come_by_tier() -> None:
    counts = grown(SGLANG.format(prompt=0, device=0, host=0), SGLANG.format(prompt=100, device=30, host=12))
    assert (counts.prompt_tokens, counts.cached_tokens) == (100, 42)
    assert counts.by_tier == {"device": 30, "host": 12}
    assert (counts.num_requests, counts.num_evicted, counts.num_restarts) == (0, 0, 0)


def test_a_split_that_is_no_tier_is_a_total_without_tiers() -> None:
    counts = grown("", 'sglang:cached_tokens_total{cache_source="total"} 9\n')
    assert (counts.cached_tokens, counts.by_tier, counts.prompt_tokens) == (9, {}, None)


def test_our_own_tell_tiers_and_evictions() -> None:
    before, after = (OURS.format(prompt=n, device=n / 2, storage=n / 10) for n in (100, 300))
    counts = grown(before, after)
    assert (counts.prompt_tokens, counts.cached_tokens) == (200, 120)
    assert counts.by_tier == {"device": 100, "storage": 20}


def test_a_series_that_appears_began_at_nothing() -> None:
    counts = grown("prefixlab:prompt_tokens_total 5\n", OURS.format(prompt=8, device=4, storage=0))
    assert (counts.prompt_tokens, counts.cached_tokens) == (3, 4)


def test_a_counter_that_fell_was_started_anew() -> None:
    counts = grown(OURS.format(prompt=800, device=9, storage=0), OURS.format(prompt=50, device=4, storage=0))
    assert (counts.prompt_tokens, counts.cached_tokens, counts.num_restarts) == (50, 4, 1)


@pytest.mark.parametrize("text", ["", "some:counter_total 3\n", "vllm:prompt_tokens_total\n", "<html>"])
def test_what_is_not_told_is_not_zero(text: str) -> None:
    assert growth(read_counters(text), read_counters(text)) is None


def test_stretches_add_up_and_a_figure_missing_in_one_is_missing() -> None:
    one, other = ServerCounts(10, 10, 4, {"device": 4}, 1), ServerCounts(20, None, 6, {"host": 6}, 2)
    assert ServerCounts.sum([one, other]) == ServerCounts(30, None, 10, {"device": 4, "host": 6}, 3)


def test_of_a_stretch_that_nobody_watched_to_its_end_nothing_is_known() -> None:
    seen = Seen(ServerCounts(10), EventCounts(num_batches=1), 10)
    assert Seen.sum([seen, seen]) == Seen(ServerCounts(20), EventCounts(num_batches=2), 20)
    assert Seen.sum([seen, Seen()]) == Seen() == Seen.sum([])


def test_what_was_seen_survives_being_written() -> None:
    seen = Seen(ServerCounts(10, 3, 4, {"device": 4}, 1, 2, 1), EventCounts(1, 2, 3, 4, 5, 6, 7, 8), 99)
    assert Seen.of_keys(seen.keys()) == seen
    assert Seen.of_keys(None) == Seen.of_keys({"counts": "none"}) == Seen()
