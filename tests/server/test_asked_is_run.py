"""What a body asks for is what the runner is asked to run, field by field, for each API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from prefixlab.core.block_hash import PUBLIC, Namespace
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.server.harness import VOCAB_SIZE, Served, serving

EOS = ByteTokenizer(VOCAB_SIZE).eos_token_ids
NATIVE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
PROMPTS: dict[str, dict[str, Any]] = {
    NATIVE: {"input_ids": [1, 2, 3]},
    COMPLETIONS: {"prompt": [1, 2, 3]},
    CHAT: {"messages": [{"role": "user", "content": "a"}]},
}

EVERYTHING = SamplingParams(
    max_new_tokens=7,
    min_new_tokens=2,
    temperature=0.7,
    top_p=0.9,
    top_k=11,
    min_p=0.1,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.5,
    seed=13,
    stop=("no such text", "nor this"),
    stop_token_ids=(4001, 4002),
    ignore_eos=True,
    skip_special_tokens=False,
    num_logprobs=3,
)
"""No field has its default."""
PLAIN = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "stop", "stop_token_ids", "ignore_eos", "skip_special_tokens",
)  # fmt: skip
"""Fields that all APIs spell as we do."""


def sampling_body(path: str) -> dict[str, Any]:
    """EVERYTHING as the API spells it."""
    values = msgspec.to_builtins(EVERYTHING)
    body: dict[str, Any] = {name: values[name] for name in PLAIN}
    if path == NATIVE:
        body |= {"max_new_tokens": 7, "min_new_tokens": 2, "sampling_seed": 13}
        return {"sampling_params": body, "return_logprob": True, "top_logprobs_num": 3}
    body |= {"min_tokens": 2, "seed": 13}
    if path == COMPLETIONS:
        return body | {"max_tokens": 7, "logprobs": 3}
    return body | {"max_completion_tokens": 7, "logprobs": True, "top_logprobs": 3}


@pytest.fixture(scope="module")
def ranked() -> Iterator[Served]:
    """A server that honours priorities."""
    with serving(scheduler={"schedule_policy": "priority"}) as served:
        yield served


def run(served: Served, path: str, rid: str, body: dict[str, Any]) -> Request:
    """The request the runner got for this body."""
    served.runner.requests.clear()
    served.post(path, PROMPTS[path] | body | {"rid": rid})
    return served.runner.requests[rid]


def test_the_example_leaves_no_field_at_its_default() -> None:
    default = SamplingParams()
    for name in SamplingParams.__struct_fields__:
        assert getattr(EVERYTHING, name) != getattr(default, name), name


@pytest.mark.parametrize("path", PROMPTS)
def test_every_sampling_field_arrives_at_the_engine(ranked: Served, path: str) -> None:
    request = run(ranked, path, "all", sampling_body(path))
    assert request.sampling == EVERYTHING
    assert request.stop_token_ids == {4001, 4002}


@pytest.mark.parametrize(("path", "max_new_tokens"), [(NATIVE, 128), (COMPLETIONS, 16), (CHAT, None)])
def test_what_is_not_given_has_its_default(ranked: Served, path: str, max_new_tokens: int | None) -> None:
    request = run(ranked, path, "none", {})
    if max_new_tokens is None:  # whatever the context leaves
        max_new_tokens = 512 - request.num_prompt_tokens
    assert request.sampling == SamplingParams(max_new_tokens=max_new_tokens)
    assert request.stop_token_ids == EOS
    assert (request.namespace, request.priority) == (PUBLIC, 0)
    assert (request.force_miss, request.return_prompt_logprobs) == (False, False)


@pytest.mark.parametrize("path", PROMPTS)
def test_what_is_asked_beside_sampling_arrives_at_the_engine_too(ranked: Served, path: str) -> None:
    body = {"extra_key": "lora", "cache_salt": "tenant", "priority": -4, "force_miss": True}
    request = run(ranked, path, "beside", body)
    assert request.namespace == Namespace("lora", "tenant")
    assert (request.priority, request.force_miss) == (-4, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (NATIVE, {"return_logprob": True, "logprob_start_len": 0}),
        (COMPLETIONS, {"echo": True, "logprobs": 0}),
    ],
)
def test_logprobs_of_the_prompt_are_asked_for_where_they_are_shown(
    ranked: Served, path: str, body: dict[str, Any]
) -> None:
    request = run(ranked, path, "prompt", body)
    assert (request.return_prompt_logprobs, request.sampling.num_logprobs) == (True, 0)


@pytest.mark.parametrize(
    ("seed", "seeds"), [(7, [7, 8, 9]), (2**64 - 2, [2**64 - 2, 2**64 - 1, 0]), (None, [None] * 3)]
)
@pytest.mark.parametrize("path", PROMPTS)
def test_choices_of_a_seeded_request_have_seeds_of_their_own(
    ranked: Served, path: str, seed: int | None, seeds: list[int | None]
) -> None:
    ranked.runner.requests.clear()
    body: dict[str, Any] = {"n": 3, "max_tokens": 1, "seed": seed}
    if path == NATIVE:
        body = {"sampling_params": {"n": 3, "max_new_tokens": 1, "sampling_seed": seed}}
    ranked.post(path, PROMPTS[path] | body | {"rid": "many"})
    assert [ranked.runner.requests[f"many_{i}"].sampling.seed for i in range(3)] == seeds
