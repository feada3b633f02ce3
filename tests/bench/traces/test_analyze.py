from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.traces.analyze import (
    PERCENTILES,
    PERCENTS_OF_UNIQUE,
    Analysis,
    Arrivals,
    Capacity,
    Stats,
    analyze,
)
from prefixlab.bench.traces.reading import read_trace
from prefixlab.bench.traces.trace import Trace

TRACES = Path(os.environ.get("PREFIXLAB_TRACES") or Path(__file__).parents[4] / "shared" / "traces")


def a_trace(*rows: tuple[float, int, list[int]], block_size: int = 10) -> Trace:
    """From (seconds, prompt tokens, blocks) of each request."""
    counts = [len(ids) for _, _, ids in rows]
    return Trace(
        "t",
        block_size,
        offsets_s=np.array([offset_s for offset_s, _, _ in rows], np.float64),
        prompt_tokens=np.array([tokens for _, tokens, _ in rows], np.int64),
        output_tokens=np.arange(1, len(rows) + 1),
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        hash_ids=np.array([block for _, _, ids in rows for block in ids], np.int64),
    )


FOUR = a_trace((0, 30, [0, 1, 2]), (1, 35, [0, 1, 3, 4]), (3, 25, [0, 1, 2]), (3, 8, [9]))
"""By hand: blocks 0, 1 and 2 are used again; the third request's last block holds 5 tokens, the fourth 8."""


def of_shared_traces(name: str) -> Analysis:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"{path} is not there (PREFIXLAB_TRACES names the folder of traces)")
    return analyze(read_trace(path))


def test_the_table_of_lengths_follows_its_definitions() -> None:
    lengths = analyze(FOUR).figures.lengths
    assert lengths.input_tokens == Stats.of(np.array([30, 35, 25, 8]))
    assert lengths.context_tokens == Stats.of(np.array([30, 20, 25, 0]))
    assert lengths.unique_prompt_tokens == Stats.of(np.array([0, 15, 0, 8]))
    assert lengths.output_tokens == Stats.of(np.array([1, 2, 3, 4]))
    assert lengths.theoretical_hit_rate == Stats.of(np.array([0, 0.5, 1, 0]))


def test_statistics_are_those_of_the_requests_themselves() -> None:
    assert Stats.of(np.array([1, 2, 3, 4, 10])) == Stats(4.0, 10**0.5, 1.0, 2.0, 3.0, 4.0, 10.0)
    assert Stats.of(np.zeros(0)) is None


def test_ideal_hits_are_told_by_blocks_and_by_tokens() -> None:
    cache = analyze(FOUR).figures.cache
    assert cache is not None
    assert (cache.ideal_hit_blocks, cache.num_blocks, cache.unique_blocks) == (5, 11, 6)
    assert (cache.ideal_by_blocks, cache.ideal_by_tokens) == (5 / 11, 45 / 98)


def test_capacities_asked_for_stand_beside_the_usual_ones() -> None:
    cache = analyze(FOUR, [Capacity("50tokens", 5)], kv_bytes_per_token=100).figures.cache
    assert cache is not None
    (point,) = cache.capacities
    assert (point.asked, point.capacity_blocks, point.capacity_tokens, point.capacity_bytes) == (
        *("50tokens", 5),
        *(50, 5000),
    )
    # By hand: the second request needs room for 3 blocks, the third for 4, to find all its blocks for 5.
    assert (point.hit_rate_by_blocks, point.of_ideal) == (5 / 11, 1.0)
    assert [point.asked for point in cache.of_unique] == [
        f"{percent} % of unique blocks" for percent in PERCENTS_OF_UNIQUE
    ]
    assert [point.of_ideal for point in cache.of_ideal] == [0.8, 1.0, 1.0, 1.0]
    assert cache.curve == ((3, 2 / 11, 20 / 98), (4, 4 / 11, 40 / 98), (5, 5 / 11, 45 / 98))


def test_the_tree_knows_roots_nodes_and_what_is_shared_most() -> None:
    tree = analyze(FOUR).figures.sharing
    assert tree is not None
    # [0 1] with [2] and [3 4] behind it, and [9].
    assert (tree.num_roots, tree.num_nodes, tree.num_leaves) == (2, 4, 3)
    assert (tree.most_nodes, tree.most_blocks) == (2, 4)
    assert (tree.unique_blocks, tree.blocks_used_once) == (6, 3)
    first, second = tree.most_shared
    assert (first.num_requests, first.prefix_tokens, first.node_tokens, first.repeated_tokens) == (
        *(3, 20),
        *(20, 40),
    )
    assert (second.num_requests, second.prefix_tokens, second.node_tokens) == (2, 30, 10)


def test_reuse_is_told_in_blocks_and_seconds() -> None:
    reuse = analyze(FOUR).figures.reuse
    assert reuse is not None
    # Blocks 0 and 1 after two others (1 s), then after three (2 s); block 2 after four (3 s).
    assert reuse.num_uses == 5
    assert reuse.distance_blocks["p50"] == 3
    assert reuse.distance_blocks["p99"] == 4
    assert (reuse.distance_s["p25"], reuse.distance_s["p99"]) == (1.0, 3.0)
    assert list(reuse.distance_s) == [f"p{percent}" for percent in PERCENTILES]
    assert reuse.histogram == ((0, 0), (1, 0), (2, 4), (4, 1))


def test_arrivals_tell_rate_and_burstiness() -> None:
    arrivals = analyze(FOUR).figures.arrivals
    assert arrivals == Arrivals(
        duration_s=3.0,
        requests_per_s=1.0,
        gap_cv=(2 / 3) ** 0.5,
        burstiness=1 / ((2 / 3) ** 0.5) ** 2,
        busiest_per_s=1.0,
        busy_s=3.0,
        simultaneous=1 / 3,
    )


@given(shape=st.sampled_from([0.25, 1.0, 4.0]), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=20)
def test_burstiness_is_the_shape_of_gamma_distributed_gaps(shape: float, seed: int) -> None:
    gaps_s = np.random.default_rng(seed).gamma(shape, 1 / shape, 20_000)
    trace = replace(FOUR, offsets_s=np.cumsum(gaps_s))
    arrivals = analyze(trace_of_length(trace, len(gaps_s))).figures.arrivals
    assert arrivals is not None and arrivals.burstiness is not None and arrivals.requests_per_s is not None
    assert arrivals.burstiness == pytest.approx(shape, rel=0.15)
    assert arrivals.requests_per_s == pytest.approx(1, rel=0.1)


def trace_of_length(trace: Trace, length: int) -> Trace:
    ones = np.ones(length, np.int64)
    starts = np.zeros(length + 1, np.int64)
    return replace(trace, prompt_tokens=ones, output_tokens=ones, starts=starts, hash_ids=starts[:0])


def test_requests_all_at_once_have_no_rate() -> None:
    arrivals = analyze(replace(FOUR, offsets_s=np.zeros(4))).figures.arrivals
    assert arrivals is not None
    assert (arrivals.requests_per_s, arrivals.gap_cv, arrivals.simultaneous) == (None, None, 1.0)


def test_a_trace_without_times_has_neither_arrivals_nor_seconds_of_reuse() -> None:
    figures = analyze(replace(FOUR, has_times=False)).figures
    assert figures.arrivals is None
    assert figures.reuse is not None and figures.reuse.distance_s == {}


def test_a_trace_without_blocks_has_lengths_and_arrivals_only() -> None:
    figures = analyze(trace_of_length(FOUR, 4)).figures
    assert (figures.block_size, figures.cache, figures.sharing, figures.reuse) == (None, None, None, None)
    assert figures.lengths.context_tokens is None
    assert figures.lengths.input_tokens is not None
    assert figures.arrivals is not None


def test_one_request_is_a_trace_too() -> None:
    figures = analyze(a_trace((0, 20, [0, 1]))).figures
    assert figures.cache is not None and figures.reuse is not None and figures.arrivals is not None
    assert (figures.cache.ideal_by_blocks, figures.cache.knee.capacity_blocks) == (0, 0)
    assert (figures.reuse.num_uses, figures.reuse.histogram) == (0, ())
    assert figures.arrivals.requests_per_s is None


def test_sessions_tell_turns_think_time_and_whose_blocks_were_hit() -> None:
    trace = replace(
        FOUR,
        session_ids=["a", "b", "a", "b"],
        turns=np.array([0, 0, 1, 1]),
        think_s=np.array([np.nan, np.nan, 2.0, 1.0]),
    )
    sessions = analyze(trace).figures.sessions
    assert sessions is not None
    assert (sessions.num_sessions, sessions.requests) == (2, Stats.of(np.array([2, 2])))
    assert sessions.duration_s == Stats.of(np.array([3, 2]))
    assert sessions.think_s == Stats.of(np.array([2, 1]))
    # Of five hits, one is on a block that session a alone had used; 0 and 1 had gone from one to the other.
    assert sessions.within == 1 / 5


def test_the_conversation_trace_has_the_figures_of_an_independent_count() -> None:
    figures = of_shared_traces("mooncake_conversation.jsonl.gz").figures
    assert figures.num_requests == 12_031
    cache, tree = figures.cache, figures.sharing
    assert cache is not None and tree is not None
    assert (cache.num_blocks, cache.unique_blocks, tree.num_roots) == (288_500, 182_790, 1)
    assert (round(cache.ideal_by_blocks, 5), round(cache.ideal_by_tokens, 5)) == (0.36641, 0.37362)
    rates = [round(point.hit_rate_by_blocks, 4) for point in cache.of_unique]
    assert rates == [0.0523, 0.1954, 0.2784, 0.3535, 0.3631]
    lengths = figures.lengths
    assert lengths.input_tokens is not None and lengths.output_tokens is not None
    assert (round(lengths.input_tokens.mean, 1), lengths.input_tokens.max) == (12_035.1, 126_195)
    assert round(lengths.output_tokens.mean, 1) == 342.6
    assert tree.most_shared[0].num_requests == 12_031  # one system prompt in front of everything


@pytest.mark.parametrize(
    ("name", "unique", "references", "by_blocks", "by_tokens"),
    [
        ("sharegpt300_qwen3_b16.jsonl.gz", 14_756, 16_034, 0.07971, 0.07904),
        ("sharegpt300_llama31_b16.jsonl.gz", 14_722, 15_942, 0.07653, 0.07588),
        pytest.param(
            *("agentic_claude_code_weka.jsonl.gz", 1_351_028, 36_154_995, 0.96263, 0.96238),
            marks=pytest.mark.slow,  # most of it spent on reading
        ),
    ],
)
def test_other_traces_have_the_figures_of_an_independent_count(
    name: str, unique: int, references: int, by_blocks: float, by_tokens: float
) -> None:
    cache = of_shared_traces(name).figures.cache
    assert cache is not None
    assert (cache.unique_blocks, cache.num_blocks) == (unique, references)
    assert (round(cache.ideal_by_blocks, 5), round(cache.ideal_by_tokens, 5)) == (by_blocks, by_tokens)
