from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.config.prefix_ratio import PrefixRatioConfig, PrefixRatioSweep
from prefixlab.bench.workloads.generators.prefix_ratio import (
    PrefixRatioShape,
    prefix_ratio_workload,
    shares,
    sketch,
)
from prefixlab.bench.workloads.prompts import make_contents
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import IdWording, common_prefix
from prefixlab.core.errors import ConfigError

WORDING = IdWording(Vocabulary.of_size(4096, "for the test"))


def config(ratio: float = 0.5, **fields: Any) -> PrefixRatioConfig:
    return PrefixRatioConfig(prefix_ratio=ratio, **fields)


@settings(max_examples=30, deadline=None)
@given(ratio=st.floats(0, 1), isl=st.integers(2, 300), groups=st.integers(1, 6), servers=st.integers(1, 3))
def test_prompts_share_exactly_their_prefix_with_those_of_their_group(
    ratio: float, isl: int, groups: int, servers: int
) -> None:
    asked = config(ratio, num_prefix_prompts=groups)
    if not sum(asked.lengths(isl)):
        return
    made = sketch(asked, PrefixRatioShape(20, isl, 5, servers), 3)
    prompts = list(make_contents(made, WORDING, 3))
    assert {len(prompt) for prompt in prompts} == {int(isl * ratio) + int(isl * (1 - ratio))}
    prefix_len, _ = asked.lengths(isl)
    firsts = {prompt[:prefix_len].tobytes() for prompt in prompts}
    assert len(firsts) <= groups * servers
    shared = [
        max((common_prefix(prompt, earlier) for earlier in prompts[:number]), default=0)
        for number, prompt in enumerate(prompts)
    ]
    assert shared == made.shared_tokens.tolist()


def test_lengths_are_dynamos_to_the_token() -> None:
    assert [config(ratio).lengths(14_000) for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)] == [
        (1400, 12600),
        (4200, 9800),
        (7000, 7000),
        (9800, 4200),
        (12600, 1399),
    ]
    (_, cut) = prefix_ratio_workload(config(0.9), PrefixRatioShape(2, 14_000, 5), 0).notes
    assert "12,600 and 1,399 tokens, 1 less together" in cut


def test_the_bounds_share_nothing_and_everything() -> None:
    nothing = sketch(config(0.0), PrefixRatioShape(9, 50, 5), 0)
    assert nothing.shared_tokens.tolist() == [0] * 9
    everything = sketch(config(1.0, num_prefix_prompts=1), PrefixRatioShape(9, 50, 5), 0)
    assert everything.shared_tokens.tolist() == [0, *[50] * 8]
    with pytest.raises(ConfigError, match=r"--isl 1 at ratio 0\.5 leaves prompts without a token"):
        prefix_ratio_workload(config(), PrefixRatioShape(2, 1, 5), 0)


def test_prefixes_are_chosen_at_random_by_the_seed_alone() -> None:
    def chosen(seed: int) -> list[int]:
        return sketch(config(num_prefix_prompts=4), PrefixRatioShape(40, 20, 5), seed).keys[::2].tolist()

    assert chosen(1) == chosen(1) != chosen(2)
    assert set(chosen(1)) == {0, 1, 2, 3}
    assert any(one == other for one, other in pairwise(chosen(1))), "not one after another"


def test_lengths_vary_where_asked_to() -> None:
    made = sketch(config(0.5, isl_stddev=0.25, osl_stddev=0.25), PrefixRatioShape(2000, 400, 80), 0)
    rests = made.sizes[1::2]
    assert set(made.sizes[::2].tolist()) == {200}, "the prefix is a prefix"
    assert np.mean(rests) == pytest.approx(200, rel=0.02) and np.std(rests) == pytest.approx(50, rel=0.1)
    assert np.std(made.output_tokens) == pytest.approx(20, rel=0.1)
    assert rests.min() >= 1


def test_several_servers_share_the_requests_and_nothing_else() -> None:
    assert shares(200, 3) == [68, 66, 66]
    workload = prefix_ratio_workload(config(1.0, num_prefix_prompts=2), PrefixRatioShape(20, 30, 5, 3), 0)
    assert workload.sketches is not None and workload.servers is not None
    keys = [set(workload.sketches.keys[workload.servers == server].tolist()) for server in range(3)]
    assert not (keys[0] & keys[1] or keys[1] & keys[2] or keys[0] & keys[2])
    assert "3 URLs asked at the same time: 8, 6, 6 requests; figures are pooled" in workload.notes


@pytest.mark.parametrize(("seeds", "alike"), [("same", True), ("different", False)])
def test_several_servers_draw_the_same_or_each_its_own(seeds: str, alike: bool) -> None:
    asked = config(0.5, num_prefix_prompts=8, url_seeds=seeds)
    prefixes = sketch(asked, PrefixRatioShape(40, 30, 5, 2), 0).keys[::2]
    assert (prefixes[:20] == prefixes[20:] - 8).all() == alike


@pytest.mark.parametrize("given", [("1.5",), ("x",), ("0.5", "0.5"), ("-0.1",), ("nan",)])
def test_ratios_that_cannot_be_are_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--prefix-ratios"):
        PrefixRatioSweep(given)


def test_ratios_may_have_commas_between() -> None:
    assert PrefixRatioSweep(("0,0.25", "1")).ratios() == [0.0, 0.25, 1.0]
