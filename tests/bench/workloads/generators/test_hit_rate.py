from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.config.sharing import HitRateConfig
from prefixlab.bench.workloads.expected import ExpectedHits
from prefixlab.bench.workloads.generators.hit_rate import CacheSize, hit_rate_workload
from prefixlab.bench.workloads.sketch import Sketches
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import IdWording
from prefixlab.core.errors import ConfigError

IDS = IdWording(Vocabulary.of_size(32_000, "for the test"))


def make(
    rate: float, cache: CacheSize, count: int = 400, *, length: int = 256, outputs: int = 8, seed: int = 1
) -> tuple[Sketches, float]:
    """The workload, and the rate it says it reaches."""
    config = HitRateConfig(hit_rate=rate, hit_rate_len=length, hit_rate_output_len=outputs)
    workload = hit_rate_workload(config, cache, count, seed)
    (note,) = workload.notes
    said = re.search(r"([\d.]+)% reached", note)
    assert said is not None and workload.sketches is not None
    return workload.sketches, float(said.group(1)) / 100


def reached(sketches: Sketches, cache: CacheSize) -> float:
    served = ExpectedHits(cache.page_size, cache.capacity_tokens).of(sketches, IDS)
    return float(served.sum() / sketches.prompt_tokens.sum())


@pytest.mark.parametrize("capacity", [None, 1500, 8000])
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.8, 0.9])
def test_the_rate_is_reached_to_a_page_in_the_whole_run(
    rate: float, page_size: int, capacity: int | None
) -> None:
    cache = CacheSize(page_size, capacity)
    sketches, said = make(rate, cache)
    assert sketches.prompt_tokens.tolist() == [256] * 400
    assert reached(sketches, cache) == pytest.approx(rate, abs=page_size / (256 * 400))
    assert said == pytest.approx(rate, abs=1e-4)


@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_a_smaller_cache_serves_less_and_a_larger_one_no_more_than_a_little(rate: float) -> None:
    cache = CacheSize(16, 16_000)
    sketches, _ = make(rate, cache, 1000)
    rates = [reached(sketches, CacheSize(16, capacity)) for capacity in (1000, 4000, 16_000, 64_000, None)]
    assert rates == sorted(rates)
    assert rates[0] < rates[1] - 0.03 < rates[2] - 0.06
    assert rates[2] == pytest.approx(rate, abs=1e-4)


def test_revisits_go_back_to_many_prompts() -> None:
    sketches, _ = make(0.5, CacheSize(16, None), 1000)
    firsts = sketches.keys[sketches.starts[:-1]]
    assert 200 < len(np.unique(firsts)) < 600, "so many prompts begin anew"


def test_what_cannot_be_reached_is_said() -> None:
    sketches, said = make(0.99, CacheSize(16, None), 50)  # 240 of 256 tokens at most, none of the first
    assert said == pytest.approx(49 / 50 * 240 / 256, abs=1e-4)
    assert reached(sketches, CacheSize(16, None)) == pytest.approx(said, abs=1e-4)


def test_room_for_a_chat_template_is_left_at_both_ends() -> None:
    config = HitRateConfig(hit_rate=0.5, hit_rate_len=256)
    workload = hit_rate_workload(config, CacheSize(1, 3000), 300, 1, room=30)
    assert workload.sketches is not None
    sketches = workload.sketches
    assert sketches.sizes[sketches.starts[:-1]].min() >= 30
    assert sketches.sizes[sketches.starts[1:] - 1].min() >= 30
    assert reached(sketches, CacheSize(1, 3000)) == pytest.approx(0.5, abs=0.002)
    short = hit_rate_workload(HitRateConfig(hit_rate_len=40), CacheSize(1, None), 10, 1, room=30)
    assert short.sketches is not None and not short.sketches.shared_tokens.any()


def test_prompts_no_longer_than_a_page_share_nothing() -> None:
    sketches, said = make(0.5, CacheSize(512, None), 5)
    assert said == 0 and not sketches.shared_tokens.any()


def test_a_cache_that_does_not_hold_one_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="--hit-rate-capacity 256: a request takes 263 tokens"):
        make(0.5, CacheSize(16, 256))


def test_the_same_seed_makes_the_same_workload_and_another_seed_another() -> None:
    cache = CacheSize(16, 4000)
    first, again, other = (make(0.5, cache, seed=seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first.keys, again.keys) and np.array_equal(first.sizes, again.sizes)
    assert not np.array_equal(first.keys, other.keys)


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0, 0.999),
    length=st.integers(1, 1200),
    outputs=st.integers(1, 40),
    count=st.integers(1, 60),
    page_size=st.sampled_from([1, 2, 16, 64]),
    spare=st.none() | st.integers(0, 20_000),
    seed=st.integers(0, 2**40),
)
def test_whatever_is_asked_for_what_it_says_is_what_a_cache_serves(
    rate: float, length: int, outputs: int, count: int, page_size: int, spare: int | None, seed: int
) -> None:
    needed = -(-(length + outputs - 1) // page_size) * page_size
    cache = CacheSize(page_size, None if spare is None else needed + spare)
    sketches, said = make(rate, cache, count, length=length, outputs=outputs, seed=seed)
    assert sketches.prompt_tokens.tolist() == [length] * count
    assert reached(sketches, cache) == pytest.approx(said, abs=6e-5)
