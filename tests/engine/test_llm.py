"""The offline API: prompts in, results out; the cache shows, errors name what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from prefixlab.core.batch import Batch, StepResult
from prefixlab.core.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    PrefixlabError,
    QueueFullError,
)
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.engine import LLM
from prefixlab.engine.llm import GenerationResult
from prefixlab.engine.shapes import SHAPES
from tests.engine.harness import SMALL

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True)
TEXT = " the water of the people is good and the day was long"


@pytest.fixture(autouse=True)
def _small_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", replace(SMALL, vocab_size=600))


def make_llm(**settings: Any) -> LLM:
    return LLM(**{"num_pages": 64, "page_size": 4, "deterministic": True, **settings})


@pytest.fixture
def llm() -> Iterator[LLM]:
    with make_llm() as llm:
        yield llm
        assert llm.cache_stats.num_in_use_pages == 0, "every page is back"


def tokens_of(results: list[GenerationResult]) -> list[list[int]]:
    return [result.token_ids for result in results]


def test_a_prompt_is_completed_and_the_result_says_how(llm: LLM) -> None:
    (result,) = llm.generate(TEXT, GREEDY)
    tokenizer = llm.engine.tokenizer
    assert result.prompt_token_ids == tokenizer.encode(TEXT)
    assert len(result.token_ids) == 8
    assert result.text == tokenizer.decode(result.token_ids)
    assert (result.finish_reason, result.matched_stop) == ("length", None)
    assert result.num_cached_tokens == 0
    assert result.logprobs is None
    assert result.prompt_logprobs is None


def test_text_and_its_token_ids_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.engine.tokenizer.encode(TEXT)
    assert tokens_of(llm.generate(ids, GREEDY)) == tokens_of(llm.generate([TEXT], GREEDY))
    assert len(llm.generate([ids, TEXT, tuple(ids)], GREEDY)) == 3


def test_a_repeated_prefix_comes_from_the_cache_and_changes_no_token(llm: LLM) -> None:
    prompts = [TEXT + ending for ending in (" man", " boy", " oil")]
    uncached = [make_llm(cache="none").generate(prompt, GREEDY)[0].token_ids for prompt in prompts]
    results = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert tokens_of(results) == uncached
    assert [result.num_cached_tokens for result in results] == [0, 12, 12]
    assert llm.reset_cache() > 0
    assert llm.generate(prompts[0], GREEDY)[0].num_cached_tokens == 0


def test_force_miss_serves_nothing_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIXLAB_FORCE_MISS", "1")
    with make_llm() as llm:
        first, second = (llm.generate(TEXT, GREEDY)[0] for _ in range(2))
    assert second.num_cached_tokens == 0
    assert first.token_ids == second.token_ids


def test_many_prompts_come_back_in_their_order_with_their_own_parameters(llm: LLM) -> None:
    prompts = [[i, i + 1, i + 2] for i in range(20)]
    params = [msgspec.structs.replace(GREEDY, max_new_tokens=1 + i % 5) for i in range(20)]
    results = llm.generate(prompts, params)
    assert [result.prompt_token_ids for result in results] == prompts
    assert [len(result.token_ids) for result in results] == [1 + i % 5 for i in range(20)]
    assert tokens_of(results) == [
        llm.generate(p, s)[0].token_ids for p, s in zip(prompts, params, strict=True)
    ]


def test_samples_of_a_seeded_prompt_differ_and_repeat(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=5, max_new_tokens=6, ignore_eos=True)
    results = llm.generate([TEXT, " my"], params, n=3)
    assert [(result.prompt_index, result.sample_index) for result in results] == [
        (prompt, sample) for prompt in range(2) for sample in range(3)
    ]
    assert len({tuple(result.token_ids) for result in results[:3]}) == 3
    assert tokens_of(llm.generate([TEXT, " my"], params, n=3)) == tokens_of(results)
    second_sample = msgspec.structs.replace(params, seed=6)
    assert llm.generate(TEXT, second_sample)[0].token_ids == results[1].token_ids


def test_requests_without_a_seed_repeat_with_the_engines_seed() -> None:
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)

    def draw(seed: int) -> list[list[int]]:
        with make_llm(seed=seed) as llm:
            return tokens_of(llm.generate([TEXT] * 4, params))

    first = draw(1)
    assert first == draw(1)
    assert len({tuple(tokens) for tokens in first}) == 4


def test_a_stop_string_cuts_the_text_and_ends_the_request(llm: LLM) -> None:
    (whole,) = llm.generate(TEXT, GREEDY)
    stop = whole.text[4:9]
    (result,) = llm.generate(TEXT, msgspec.structs.replace(GREEDY, stop=(stop,)))
    assert result.text == whole.text[: whole.text.index(stop)]
    assert (result.finish_reason, result.matched_stop) == ("stop", stop)
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    assert len(result.token_ids) < len(whole.token_ids)


def test_a_stop_id_ends_the_request_and_has_no_text(llm: LLM) -> None:
    (whole,) = llm.generate(TEXT, GREEDY)
    last = next(i for i in range(1, 8) if whole.token_ids[i] not in whole.token_ids[:i])
    stop = whole.token_ids[last]
    (result,) = llm.generate(TEXT, msgspec.structs.replace(GREEDY, stop_token_ids=(stop,)))
    assert (result.finish_reason, result.matched_stop) == ("stop", stop)
    assert result.token_ids == whole.token_ids[: last + 1]
    assert result.text == llm.engine.tokenizer.decode(whole.token_ids[:last])


def test_the_end_of_sequence_ends_a_request_unless_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_llm() as llm:
        (whole,) = llm.generate(TEXT, GREEDY)
    config = replace(SMALL, vocab_size=600, eos_token_ids=(whole.token_ids[2],))
    monkeypatch.setitem(SHAPES, "tiny", config)
    with make_llm() as llm:
        (ended,) = llm.generate(TEXT, msgspec.structs.replace(GREEDY, ignore_eos=False))
        assert ended.finish_reason == "stop"
        assert ended.matched_stop == whole.token_ids[2]
        held = msgspec.structs.replace(GREEDY, ignore_eos=False, min_new_tokens=5)
        assert len(llm.generate(TEXT, held)[0].token_ids) >= 5
        assert llm.generate(TEXT, GREEDY)[0].token_ids == whole.token_ids


def test_logprobs_come_with_every_token_asked_for(llm: LLM) -> None:
    params = msgspec.structs.replace(GREEDY, num_logprobs=2)
    llm.generate(TEXT, GREEDY)  # what is cached now must not shorten the prompt's list
    (result,) = llm.generate(TEXT, params, return_prompt_logprobs=True)
    assert result.logprobs is not None
    assert [entry.token_id for entry in result.logprobs] == result.token_ids
    assert all(entry.top[0] == (entry.token_id, entry.logprob) for entry in result.logprobs)
    assert result.prompt_logprobs is not None
    assert [entry.token_id for entry in result.prompt_logprobs] == result.prompt_token_ids
    assert result.num_cached_tokens == 0


def test_prompt_logprobs_are_whole_when_the_prompt_comes_in_chunks() -> None:
    def entries(**settings: Any) -> Any:
        with make_llm(**settings) as llm:
            return llm.generate(TEXT, GREEDY, return_prompt_logprobs=True)[0].prompt_logprobs

    assert entries(chunked_prefill_size=4) == entries()


def test_prompt_logprobs_are_whole_when_requests_are_retracted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pages and bold admission: some prompts are computed twice, and reported once."""
    params = msgspec.structs.replace(GREEDY, max_new_tokens=24, stop_token_ids=(599,))
    prompts = [[i] * 10 for i in range(6)]
    num_again = 0
    with make_llm(num_pages=20, schedule_conservativeness=0.01) as llm:
        run = llm.engine.runner.run

        def watched(batch: Batch) -> StepResult:
            nonlocal num_again
            num_again += int(((batch.starts == 0) & (batch.lengths > 10)).sum())
            return run(batch)

        monkeypatch.setattr(llm.engine.runner, "run", watched)
        results = llm.generate(prompts, params, return_prompt_logprobs=True)
    assert num_again > 0
    for prompt, result in zip(prompts, results, strict=True):
        assert result.prompt_logprobs is not None
        assert [entry.token_id for entry in result.prompt_logprobs] == prompt


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("page_sise", "page_size"), ("modell", "model"), ("chunked_prefil", "chunked_prefill_size")],
)
def test_a_misspelt_setting_is_named_with_the_nearest(misspelt: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"'{misspelt}'.*did you mean '{meant}'"):
        LLM(**{misspelt: 1})


def test_a_setting_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(ConfigError, match="--page-size"):
        make_llm(page_size=0)
    with pytest.raises(ConfigError, match="--force-miss"):
        make_llm(cache="none", force_miss=True)


@pytest.mark.parametrize(
    ("prompts", "keywords", "named"),
    [
        ([[1, 2], []], {}, "prompt 1 is empty"),
        ("", {}, "prompt 0 is empty"),
        ([[1, 600]], {}, r"prompt 0 has token ids outside 0 … 599"),
        ([[-1]], {}, "outside"),
        ([[1.5]], {}, "neither text nor token ids"),
        ([None], {}, "neither text nor token ids"),
        ([[1]], {"n": 0}, "n must be at least 1"),
        ([[1], [2]], {"params": [GREEDY]}, "2 prompts and 1 sampling parameters"),
        ([[1]], {"params": SamplingParams(top_p=2.0)}, "top_p"),
    ],
)
def test_a_wrong_prompt_or_parameter_is_refused_before_anything_runs(
    llm: LLM, prompts: Any, keywords: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        llm.generate(prompts, **{"params": GREEDY, **keywords})


def test_no_prompts_give_no_results(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


@pytest.mark.parametrize(
    ("settings", "params", "error"),
    [
        ({}, SamplingParams(max_new_tokens=600), ContextLengthError),
        ({"max_queued_requests": 1}, GREEDY, QueueFullError),
    ],
)
def test_a_refused_request_takes_the_others_with_it_and_the_next_call_is_fine(
    settings: dict[str, Any], params: SamplingParams, error: type[PrefixlabError]
) -> None:
    with make_llm(**settings) as llm:
        with pytest.raises(error):
            llm.generate([[1, 2]] * 3, [GREEDY, params, params])
        assert llm.cache_stats.num_in_use_pages == 0
        assert len(llm.generate([1, 2], GREEDY)) == 1


def test_a_step_that_fails_raises_and_the_next_call_is_fine(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: object) -> None:
        raise EngineError("no more electricity")

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "run", fail)
        with pytest.raises(EngineError, match="electricity"):
            llm.generate([TEXT, " my"], GREEDY)
    assert llm.cache_stats.num_in_use_pages == 0
    assert len(llm.generate(TEXT, GREEDY)[0].token_ids) == 8


def test_a_closed_llm_says_so() -> None:
    with make_llm() as llm:
        pass
    llm.close()
    with pytest.raises(EngineError, match="closed"):
        llm.generate(TEXT, GREEDY)


def test_results_are_plain_data(llm: LLM) -> None:
    (result,) = llm.generate(
        TEXT, msgspec.structs.replace(GREEDY, num_logprobs=1), return_prompt_logprobs=True
    )
    assert msgspec.json.encode(dataclasses.asdict(result))
