"""Each generator on a real server, scheduler and cache: what was expected of a request is what it reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.config.dataset import DatasetConfig, ShareGptConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.prefix_ratio import PrefixRatioConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sharing import (
    GspConfig,
    HitRateConfig,
    PrefixRepetitionConfig,
    SharedPrefixConfig,
)
from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.runs.serve import ServeRun
from prefixlab.bench.targets.endpoint import open_endpoint
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
    "prefix-ratio": {
        "dataset": {"random_input_len": 150, "random_output_len": 4},
        "prefix_ratio": PrefixRatioConfig(prefix_ratio=0.7, num_prefix_prompts=6, isl_stddev=0.1),
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


SYSTEM = "You answer in one sentence, and say so where you do not know."


def questions() -> list[str]:
    """Some begin alike, some are the same, some neither."""
    openings = ("Tell me about the great water", "What does a tree say to", "Tell me more of", "Why")
    return [
        f"{openings[number % 4]} number {number % 11} in the old city{'!' * (number % 5)}"
        for number in range(32)
    ]


def lines_of(name: str) -> list[dict[str, Any]]:
    """A file's rows."""
    if name == "custom ids":
        shared = list(range(300, 333))
        own = [list(range(700 + 7 * row, 700 + 7 * row + 8 * (row % 9))) for row in range(30)]
        ids = [[*shared[: 33 - row % 3], *tail, 9] for row, tail in enumerate(own)]
        return [{"prompt": prompt, "output_tokens": 3} for prompt in [*ids, *ids[:6]]]
    if name == "custom text":
        return [{"prompt": text, "output_tokens": 3} for text in questions()]
    if name == "sharegpt":
        turns = [
            [{"from": "human", "value": text}, {"from": "gpt", "value": "Nobody knows."}]
            for text in questions()
        ]
        return [{"conversations": both} for both in turns]
    system = {"role": "system", "content": SYSTEM}
    asked = [{"role": "user", "content": text} for text in questions()]
    talks = [[system, question] if row % 3 == 0 else [question] for row, question in enumerate(asked)]
    longer = [[*talk, {"role": "assistant", "content": "Oh."}, asked[3]] for talk in talks[:5]]
    return [{"messages": talk, "max_tokens": 3} for talk in [*talks, *longer]]


def of_file(name: str, path: Path) -> dict[str, Any]:
    """Settings of a point that sends such a file."""
    path.write_text("\n".join(map(json.dumps, lines_of(name))))
    dataset = {"dataset_path": str(path), "shuffle": False, "num_prompts": None}
    parts: dict[str, Any] = {"dataset": dataset}
    if name == "sharegpt":
        parts["sharegpt"] = ShareGptConfig(sharegpt_output_len=3)
    return parts


def measure(
    served: Served,
    name: str,
    page_size: int,
    backend: str,
    parts: dict[str, Any] | None = None,
    tokenizer: str | None = None,
) -> PointResult:
    """One after another, from an empty cache."""
    parts = dict(WORKLOADS[name] if parts is None else parts)
    asked = {"num_prompts": NUM_PROMPTS, **parts.pop("dataset", {})}
    if name == "hit-rate":
        asked["num_prompts"] = 60
        parts["hit_rate"] = HitRateConfig(**{**vars(parts["hit_rate"]), "hit_rate_page_size": page_size})
    tokenizer = "byte" if backend == "openai-chat" else tokenizer
    config = ServeConfig(
        target=TargetConfig(backend=backend, base_url=served.url, tokenizer=tokenizer),
        dataset=DatasetConfig(dataset_name=name, **asked),
        load=LoadConfig(max_concurrency=1, num_warmups=0, flush_cache=True),
        **parts,
    )
    loaded = None if tokenizer is None else ByteTokenizer(VOCAB_SIZE)
    with open_endpoint(config.target, served.url, lambda facts: loaded) as endpoint:
        return ServeRun(endpoint, config, tokenizer=loaded, cold=True).run()


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


FILES = [
    ("custom ids", "openai", None),
    ("custom ids", "sglang", None),
    ("custom text", "openai", "byte"),
    ("custom text", "sglang", "byte"),
    ("custom text", "openai-chat", "byte"),
    ("sharegpt", "openai", "byte"),
    ("sharegpt", "openai-chat", "byte"),
    ("openai", "openai", "byte"),
    ("openai", "openai-chat", "byte"),
]


@pytest.mark.parametrize(("name", "backend", "tokenizer"), FILES)
def test_so_does_every_prompt_of_a_file_whose_tokens_are_known(
    name: str, backend: str, tokenizer: str | None, roomy: Served, page_size: int, tmp_path: Path
) -> None:
    """Token ids; text that the tokenizer counts; messages in its chat template."""
    parts = of_file(name, tmp_path / "rows.jsonl")
    result = measure(roomy, name.split()[0], page_size, backend, parts, tokenizer)
    assert_as_expected(result)
    assert result.table.num_cached_tokens.sum() > 0


@pytest.mark.parametrize(("name", "backend"), [("custom ids", "openai"), ("openai", "openai-chat")])
def test_so_do_prompts_of_a_file_where_the_cache_is_too_small_for_all(
    name: str, backend: str, small: Served, page_size: int, tmp_path: Path
) -> None:
    result = measure(small, name.split()[0], page_size, backend, of_file(name, tmp_path / "rows.jsonl"))
    assert_as_expected(result)
    assert any(f"cache holds {CAPACITY_TOKENS:,} tokens" in note for note in result.notes)


def test_prompts_of_a_file_nobody_has_the_tokenizer_for_are_not_checked(
    roomy: Served, page_size: int, tmp_path: Path
) -> None:
    result = measure(roomy, "custom", page_size, "openai", of_file("custom text", tmp_path / "rows.jsonl"))
    assert (result.table.num_expected_cached_tokens < 0).all()
    assert result.check.verdict is Verdict.UNCHECKED
    assert result.check.detail == "prompts are text"
