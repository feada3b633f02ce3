"""Each generator on a real server, scheduler and cache: what was expected of a request is what it reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sharing import (
    GspConfig,
    HitRateConfig,
    PrefixRepetitionConfig,
    SharedPrefixConfig,
)
from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.runs.serve import ServeRun
from prefixlab.bench.targets.endpoint import open_endpoint
from prefixlab.bench.verdict import Verdict
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.server.harness import VOCAB_SIZE, Served, serving

pytestmark = pytest.mark.service

CAPACITY_TOKENS = 768
"""Of a server that must forget: a few requests fill it."""
ROOMY = 16_384

WORKLOADS: dict[str, dict[str, Any]] = {
    "random": {
        "dataset": {
            "random_prefix_len": 37,
            "random_input_len": 40,
            "random_range_ratio": "0.3",
            "random_output_len": 4,
        }
    },
    "shared-prefix": {
        "shared_prefix": SharedPrefixConfig(
            shared_len=101, shared_pct=63, shared_groups=4, shared_popularity="zipf", shared_output_len=3
        )
    },
    "prefix_repetition": {
        "prefix_repetition": PrefixRepetitionConfig(
            prefix_repetition_prefix_len=75,
            prefix_repetition_suffix_len=30,
            prefix_repetition_num_prefixes=10,
            prefix_repetition_output_len=3,
        )
    },
    "generated-shared-prefix": {
        "gsp": GspConfig(
            gsp_num_groups=8,
            gsp_prompts_per_group=4,
            gsp_system_prompt_len=80,
            gsp_question_len=33,
            gsp_output_len=4,
            gsp_range_ratio=0.8,
        )
    },
    "hit-rate": {
        "hit_rate": HitRateConfig(
            hit_rate=0.6, hit_rate_len=250, hit_rate_output_len=4, hit_rate_capacity=CAPACITY_TOKENS
        )
    },
}
NUM_PROMPTS = 40


@pytest.fixture(scope="module", params=[1, 16], ids=["page 1", "page 16"])
def page_size(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


@pytest.fixture(scope="module")
def roomy(page_size: int) -> Iterator[Served]:
    with serving(page_size=page_size, num_pages=ROOMY // page_size) as served:
        yield served


@pytest.fixture(scope="module")
def small(page_size: int) -> Iterator[Served]:
    with serving(page_size=page_size, num_pages=CAPACITY_TOKENS // page_size) as served:
        yield served


def measure(served: Served, name: str, page_size: int, backend: str) -> PointResult:
    """One after another, from an empty cache."""
    parts = dict(WORKLOADS[name])
    asked = {"num_prompts": NUM_PROMPTS, **parts.pop("dataset", {})}
    if name == "hit-rate":
        asked["num_prompts"] = 60
        parts["hit_rate"] = HitRateConfig(**{**vars(parts["hit_rate"]), "hit_rate_page_size": page_size})
    on_chat = backend == "openai-chat"
    config = ServeConfig(
        target=TargetConfig(backend=backend, base_url=served.url, tokenizer="byte" if on_chat else None),
        dataset=DatasetConfig(dataset_name=name, **asked),
        load=LoadConfig(max_concurrency=1, num_warmups=0, flush_cache=True),
        **parts,
    )
    tokenizer = ByteTokenizer(VOCAB_SIZE) if on_chat else None
    with open_endpoint(config.target, served.url, lambda facts: tokenizer) as endpoint:
        return ServeRun(endpoint, config, tokenizer=tokenizer, cold=True).run()


def assert_as_expected(result: PointResult) -> None:
    """Request by request, lengths and hits."""
    table = result.table
    assert table.ok.all(), result.notes
    assert np.array_equal(table.num_prompt_tokens, table.planned_prompt_tokens), "the server's own count"
    assert (table.num_expected_cached_tokens >= 0).all()
    assert np.array_equal(table.num_cached_tokens, table.num_expected_cached_tokens)
    assert result.check.verdict is Verdict.CONSISTENT
    assert any("cold start proven" in note for note in result.notes)


@pytest.mark.parametrize("backend", ["sglang", "openai", "openai-chat"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_request_is_as_long_and_hits_as_planned(
    name: str, backend: str, roomy: Served, page_size: int
) -> None:
    """On /generate and on completions with token ids; on chat as well, its template counted in."""
    result = measure(roomy, name, page_size, backend)
    assert_as_expected(result)
    assert result.table.num_cached_tokens.sum() > 0


@pytest.mark.parametrize("name", WORKLOADS)
def test_so_it_does_where_the_cache_is_too_small_for_all(name: str, small: Served, page_size: int) -> None:
    result = measure(small, name, page_size, "sglang")
    assert_as_expected(result)
    bounded = [note for note in result.notes if f"cache holds {CAPACITY_TOKENS:,} tokens" in note]
    if name in ("prefix_repetition", "generated-shared-prefix"):
        assert bounded, "room for all would be no test"
    if name == "hit-rate":
        rate = result.table.num_cached_tokens.sum() / result.table.num_prompt_tokens.sum()
        assert rate == pytest.approx(0.6, abs=0.5 * page_size / (250 * 60) + 1e-9)
