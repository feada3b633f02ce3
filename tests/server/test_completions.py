"""`POST /v1/completions`, in every form of prompt, whole and as a stream."""

from __future__ import annotations

from typing import Any

import pytest

from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.server.harness import MODEL, VOCAB_SIZE, Served, logprobs_of, oracle, serving, text_of

PROMPT = list(range(300, 320))
BODY = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4, "ignore_eos": True}


def complete(served: Served, **fields: Any) -> Any:
    return served.post("/v1/completions", BODY | fields)


def stream(served: Served, **fields: Any) -> list[Any]:
    return served.events("/v1/completions", BODY | fields)


def test_the_answer_has_openai_s_shape_and_reports_cached_tokens(served: Served) -> None:
    complete(served)
    answer = complete(served)
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", MODEL)
    assert answer["choices"] == [
        {"index": 0, "text": text_of(oracle(PROMPT, 4)), "logprobs": None, "finish_reason": "length"}
    ]
    assert answer["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 4,
        "total_tokens": 24,
        "prompt_tokens_details": {"cached_tokens": 16},
    }


def test_without_a_limit_sixteen_tokens_come_as_openai_has_it(served: Served) -> None:
    answer = served.post("/v1/completions", {"prompt": PROMPT, "ignore_eos": True})
    assert answer["usage"]["completion_tokens"] == 16


def test_every_form_of_prompt_is_taken(served: Served) -> None:
    encode = ByteTokenizer(VOCAB_SIZE).encode
    forms: list[tuple[Any, list[list[int]]]] = [
        ("Hi there", [encode("Hi there")]),
        (["Hi", "there"], [encode("Hi"), encode("there")]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ]
    for prompt, ids in forms:
        choices = complete(served, prompt=prompt)["choices"]
        assert [choice["text"] for choice in choices] == [text_of(oracle(one, 4)) for one in ids]
        assert [choice["index"] for choice in choices] == list(range(len(ids)))


def test_n_choices_count_their_prompt_once(served: Served) -> None:
    usage = complete(served, n=3, prompt=[[1, 2, 3], [4, 5]])["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 2 * 3 * 4)


def test_echo_puts_the_prompt_first(served: Served) -> None:
    assert complete(served, prompt="Say ", echo=True)["choices"][0]["text"].startswith("Say ")
    assert complete(served, echo=True)["choices"][0]["text"] == text_of(PROMPT + oracle(PROMPT, 4))


def test_logprobs_are_parallel_lists(served: Served) -> None:
    logprobs = complete(served, logprobs=1)["choices"][0]["logprobs"]
    expected = [logprobs_of(token, 1) for token in oracle(PROMPT, 4)]
    texts = [text_of([one.token_id]) for one in expected]
    assert logprobs["tokens"] == texts
    assert logprobs["token_logprobs"] == [one.logprob for one in expected]
    assert logprobs["text_offset"] == [sum(map(len, texts[:i])) for i in range(4)]
    # The likeliest, and always the sampled one as well.
    assert logprobs["top_logprobs"] == [
        {text_of([one.top[0][0]]): one.top[0][1], text: one.logprob}
        for one, text in zip(expected, texts, strict=True)
    ]


def test_tokens_can_be_named_by_id(served: Served) -> None:
    logprobs = complete(served, logprobs=0, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{token}" for token in oracle(PROMPT, 4)]


@pytest.mark.parametrize("streams", [False, True])
def test_echo_with_logprobs_covers_the_prompt(served: Served, streams: bool) -> None:
    fields = {"echo": True, "logprobs": 0}
    if streams:
        pieces = [event["choices"][0]["logprobs"] for event in stream(served, **fields)]
        logprobs = {name: [item for piece in pieces for item in piece[name]] for name in pieces[0]}
    else:
        logprobs = complete(served, **fields)["choices"][0]["logprobs"]
    tokens = PROMPT + oracle(PROMPT, 4)
    assert logprobs["tokens"] == [text_of([token]) for token in tokens]
    assert logprobs["token_logprobs"] == [None, *(logprobs_of(token, 0).logprob for token in tokens[1:])]
    assert logprobs["text_offset"] == [len(text_of(tokens[:i])) for i in range(len(tokens))]


def test_a_stream_adds_up_to_the_answer_and_ends_with_usage_if_asked(served: Served) -> None:
    whole = complete(served)
    events = stream(served, stream_options={"include_usage": True})
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == whole["choices"][0]["text"]
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 4
    assert events[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}


@pytest.mark.parametrize("streams", [False, True])
def test_generated_tokens_are_named_if_asked_each_once(served: Served, streams: bool) -> None:
    fields = {"prompt": [PROMPT, [1, 2]], "return_token_ids": True}
    events = stream(served, **fields) if streams else [complete(served, **fields)]
    named: dict[int, list[int]] = {0: [], 1: []}
    for choice in (choice for event in events for choice in event["choices"]):
        named[choice["index"]] += choice["token_ids"]
    assert named == {0: oracle(PROMPT, 4), 1: oracle([1, 2], 4)}
    for fields in ({}, {"return_token_ids": False}):
        events = stream(served, **fields) if streams else [complete(served, **fields)]
        assert not any("token_ids" in choice for event in events for choice in event["choices"])


def test_a_stream_says_nothing_of_usage_unasked(served: Served) -> None:
    assert all("usage" not in event for event in stream(served))


def test_continuous_usage_counts_the_tokens_of_every_event(served: Served) -> None:
    events = stream(served, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts[0] >= 1
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_choices_of_a_stream_are_told_apart(served: Served) -> None:
    events = stream(served, prompt=["one", "two"], n=2)
    texts = dict.fromkeys(range(4), "")
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    whole = complete(served, prompt=["one", "two"], n=2)["choices"]
    assert texts == {choice["index"]: choice["text"] for choice in whole}


def test_a_step_is_one_event_even_without_text() -> None:
    with serving() as served, served.runner.held():
        body = BODY | {"max_tokens": 3, "stream": True, "stop": ["never to come"]}
        with served.client.stream("POST", "/v1/completions", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            for _ in range(3):
                served.runner.let()
                assert '"choices":[{' in next(lines)
            assert next(lines) == "data: [DONE]"


def test_the_other_model_is_not_found(served: Served) -> None:
    error = served.post("/v1/completions", BODY | {"model": "gpt"}, 404)["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_usage_options_without_a_stream_are_refused(served: Served) -> None:
    body = BODY | {"stream_options": {"include_usage": True}}
    assert served.post("/v1/completions", body, 400)["error"]["param"] == "stream_options"
