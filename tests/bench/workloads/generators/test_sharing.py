from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.config.sharing import GspConfig, PrefixRepetitionConfig, SharedPrefixConfig
from prefixlab.bench.workloads.draws import zipf_weights
from prefixlab.bench.workloads.generators.sharing import (
    generated_shared_prefix_workload,
    prefix_repetition_workload,
    shared_prefix_workload,
)
from prefixlab.bench.workloads.sketch import IntArray, Sketches
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.errors import ConfigError


def sketches_of(workload: Workload) -> Sketches:
    assert workload.sketches is not None
    return workload.sketches


def groups_of(workload: Workload) -> list[int]:
    """Of each request the key of its first piece."""
    sketches = sketches_of(workload)
    firsts: list[int] = sketches.keys[sketches.starts[:-1]].tolist()
    return firsts


def pieces_of(workload: Workload) -> set[tuple[int, ...]]:
    """The different lengths of pieces that requests are made of."""
    sketches = sketches_of(workload)
    return {tuple(row.tolist()) for row in np.split(sketches.sizes, sketches.starts[1:-1])}


def shared(length: int, pct: float, groups: int = 1, count: int = 10, **options: Any) -> Workload:
    config = SharedPrefixConfig(shared_len=length, shared_pct=pct, shared_groups=groups, **options)
    return shared_prefix_workload(config, count, 1)


@pytest.mark.parametrize(
    ("length", "pct", "prefix"),
    [
        (1000, 50, 500),
        (1024, 33, 337),
        (100, 57, 57),
        (100, 29, 29),
        (10, 99.9, 9),
        (4096, 99, 4055),
        (2, 50, 1),
    ],
)
def test_so_many_percent_of_a_prompt_are_shared_rounded_down_and_its_length_is_exact(
    length: int, pct: float, prefix: int
) -> None:
    workload = shared(length, pct)
    assert pieces_of(workload) == {(prefix, length - prefix)}
    assert sketches_of(workload).shared_tokens.tolist() == [0, *[prefix] * 9]
    assert f"of which {prefix:,} are shared" in workload.notes[0]


def test_nothing_shared_is_prompts_of_one_piece_each() -> None:
    workload = shared(100, 0)
    assert pieces_of(workload) == {(100,)}
    assert not sketches_of(workload).shared_tokens.any()


def test_even_groups_come_in_turn() -> None:
    workload = shared(100, 50, groups=3)
    assert groups_of(workload) == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert sketches_of(workload).shared_tokens.tolist() == [0, 0, 0, *[50] * 7]


def test_zipf_makes_the_first_groups_popular_by_its_law() -> None:
    count = 100_000
    workload = shared(100, 50, groups=8, count=count, shared_popularity="zipf", shared_zipf_alpha=1.2)
    found = np.bincount(groups_of(workload), minlength=8) / count
    assert found == pytest.approx(zipf_weights(8, 1.2), abs=0.005)
    assert zipf_weights(3, 1.0) == pytest.approx(np.array([6, 3, 2]) / 11)


def test_a_longer_run_of_shared_prefixes_begins_like_a_shorter_one() -> None:
    for popularity in ("uniform", "zipf"):
        short = shared(100, 50, groups=5, count=50, shared_popularity=popularity)
        long = shared(100, 50, groups=5, count=90, shared_popularity=popularity)
        assert groups_of(long)[:50] == groups_of(short)


def repetition(count: int | None, prefixes: int, *, shuffle: bool = False, seed: int = 1) -> Workload:
    config = PrefixRepetitionConfig(
        prefix_repetition_num_prefixes=prefixes,
        prefix_repetition_prefix_len=32,
        prefix_repetition_suffix_len=8,
        prefix_repetition_output_len=4,
    )
    return prefix_repetition_workload(config, count, seed, shuffle=shuffle)


def test_prefix_repetition_goes_prefix_by_prefix_or_shuffled_with_as_many_each() -> None:
    assert groups_of(repetition(12, 3)) == [0] * 4 + [1] * 4 + [2] * 4
    shuffled = groups_of(repetition(12, 3, shuffle=True))
    assert sorted(shuffled) == [0] * 4 + [1] * 4 + [2] * 4 and shuffled != sorted(shuffled)
    assert shuffled == groups_of(repetition(12, 3, shuffle=True))
    assert shuffled != groups_of(repetition(12, 3, shuffle=True, seed=2))
    assert pieces_of(repetition(12, 3)) == {(32, 8)}


def test_prefix_repetition_leaves_the_rest_out_as_vllm_does_and_says_so() -> None:
    workload = repetition(14, 4)
    assert len(workload) == 12
    assert "12 requests rather than 14, so that every prefix has as many" in workload.notes[1]
    with pytest.raises(ConfigError, match="--prefix-repetition-num-prefixes 4: 3 requests cannot have"):
        repetition(3, 4)


def test_of_repeated_prefixes_all_but_the_first_of_each_is_shared() -> None:
    sketches = sketches_of(repetition(20, 5, shuffle=True))
    assert sorted(sketches.shared_tokens.tolist()) == [0] * 5 + [32] * 15


def gsp(count: int | None = None, **options: Any) -> Workload:
    return generated_shared_prefix_workload(GspConfig(**options), count, 1)


def test_generated_shared_prefix_is_64_groups_of_16_by_default_and_hits_15_of_16_times_its_prefix() -> None:
    workload = gsp()
    assert len(workload) == 1024
    assert pieces_of(workload) == {(2048, 128)}
    assert (np.bincount(groups_of(workload)) == 16).all()
    sketches = sketches_of(workload)
    rate = sketches.shared_tokens.sum() / sketches.prompt_tokens.sum()
    assert rate == pytest.approx(0.882353, abs=5e-7)


def test_its_groups_are_mixed_unless_ordered() -> None:
    assert groups_of(gsp(gsp_ordered=True)) == sorted(groups_of(gsp()))
    assert groups_of(gsp()) != sorted(groups_of(gsp()))
    zipf = gsp(gsp_group_distribution="zipf", gsp_ordered=True)
    assert groups_of(zipf) == sorted(groups_of(zipf))


def test_more_or_fewer_prompts_than_its_groups_make_are_spread_over_them() -> None:
    assert np.bincount(groups_of(gsp(10, gsp_num_groups=4))).tolist() == [3, 3, 2, 2]
    assert "4 groups of 2.5 prompts each on average" in gsp(10, gsp_num_groups=4).notes[0]


def test_with_zipf_its_hit_rate_is_what_the_law_says() -> None:
    """SGLang's own figure for this setting: theory 42.75 %, with 1.0 and its lengths."""
    groups = np.array(groups_of(gsp(50_000, gsp_num_groups=10, gsp_group_distribution="zipf")))
    assert np.bincount(groups) / 50_000 == pytest.approx(zipf_weights(10, 1.0), abs=0.01)


def test_its_range_ratio_draws_every_length_downwards() -> None:
    sketches = sketches_of(gsp(2000, gsp_system_prompt_len=100, gsp_question_len=10, gsp_range_ratio=0.5))
    firsts: IntArray = sketches.sizes[sketches.starts[:-1]]
    lasts: IntArray = sketches.sizes[sketches.starts[1:] - 1]
    assert 50 <= firsts.min() < firsts.max() <= 100
    assert set(lasts.tolist()) == {5, 6, 7, 8, 9, 10}
    keys = sketches.keys[sketches.starts[:-1]]
    assert len(set(zip(keys.tolist(), firsts.tolist(), strict=True))) == 64, "a group has one prefix"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: SharedPrefixConfig(shared_pct=100), r"--shared-pct must lie in \[0, 100\)"),
        (lambda: SharedPrefixConfig(shared_pct=-1), r"--shared-pct must lie in \[0, 100\)"),
        (lambda: SharedPrefixConfig(shared_groups=0), "--shared-groups must be at least 1"),
        (
            lambda: SharedPrefixConfig(shared_zipf_alpha=2),
            "--shared-zipf-alpha is for --shared-popularity zipf",
        ),
        (lambda: GspConfig(gsp_zipf_alpha=0), "--gsp-zipf-alpha must be above 0"),
        (lambda: GspConfig(gsp_zipf_alpha=2), "--gsp-zipf-alpha is for --gsp-group-distribution zipf"),
        (lambda: GspConfig(gsp_range_ratio=1.5), "--gsp-range-ratio must lie in"),
        (lambda: GspConfig(gsp_num_groups=0), "--gsp-num-groups must be at least 1"),
        (
            lambda: PrefixRepetitionConfig(prefix_repetition_suffix_len=0),
            "--prefix-repetition-suffix-len must",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_their_flag(make: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 400),
    pct=st.floats(0, 99.9),
    groups=st.integers(1, 9),
    count=st.integers(1, 40),
    zipf=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_whatever_is_asked_for_lengths_are_exact_and_groups_share_their_prefix(
    length: int, pct: float, groups: int, count: int, zipf: bool, seed: int
) -> None:
    config = SharedPrefixConfig(
        shared_len=length,
        shared_pct=pct,
        shared_groups=groups,
        shared_popularity="zipf" if zipf else "uniform",
    )
    workload = shared_prefix_workload(config, count, seed)
    sketches = sketches_of(workload)
    assert sketches.prompt_tokens.tolist() == [length] * count
    seen: set[int] = set()
    for group, found in zip(groups_of(workload), sketches.shared_tokens.tolist(), strict=True):
        assert found == (config.prefix_tokens if group in seen else 0)
        seen.add(group)
