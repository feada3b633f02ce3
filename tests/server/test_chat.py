"""`POST /v1/chat/completions`, whole and as a stream."""

from __future__ import annotations

from typing import Any

from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.server.harness import MODEL, VOCAB_SIZE, Served, logprobs_of, oracle, text_of

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
BODY = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 4, "ignore_eos": True}


def prompt_ids(messages: list[dict[str, object]]) -> list[int]:
    tokenizer = ByteTokenizer(VOCAB_SIZE)
    return tokenizer.encode(tokenizer.apply_chat_template(messages))


IDS = prompt_ids([dict(message) for message in MESSAGES])


def chat(served: Served, **fields: Any) -> Any:
    return served.post("/v1/chat/completions", BODY | fields)


def test_the_answer_has_openai_s_shape_and_reports_cached_tokens(served: Served) -> None:
    answer = chat(served)
    assert answer["object"] == "chat.completion"
    message = {"role": "assistant", "content": text_of(oracle(IDS, 4)), "refusal": None}
    assert answer["choices"] == [
        {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    ]
    assert answer["usage"]["prompt_tokens"] == len(IDS)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert chat(served)["usage"]["prompt_tokens_details"]["cached_tokens"] == (len(IDS) - 1) // 4 * 4


def test_text_parts_are_one_text_and_developer_is_system(served: Served) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    given = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    means = [{"role": "system", "content": "x"}, {"role": "user", "content": "one\ntwo"}]
    assert chat(served, messages=given)["choices"] == chat(served, messages=means)["choices"]


def test_without_a_limit_the_answer_may_fill_the_context(served: Served) -> None:
    body = {"messages": MESSAGES, "ignore_eos": True}
    usage = served.post("/v1/chat/completions", body)["usage"]
    assert usage["total_tokens"] == served.worker.max_model_len


def test_a_stream_opens_with_the_role_and_adds_up(served: Served) -> None:
    events = served.events("/v1/chat/completions", BODY | {"stream_options": {"include_usage": True}})
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert all("role" not in delta for delta in deltas[1:])
    assert "".join(delta["content"] for delta in deltas) == text_of(oracle(IDS, 4))
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["usage"]["total_tokens"] == len(IDS) + 4


def test_logprobs_are_a_list_of_tokens(served: Served) -> None:
    content = chat(served, logprobs=True, top_logprobs=1)["choices"][0]["logprobs"]["content"]
    expected = [logprobs_of(token, 1) for token in oracle(IDS, 4)]
    assert [entry["logprob"] for entry in content] == [one.logprob for one in expected]
    for entry, one in zip(content, expected, strict=True):
        text = text_of([one.token_id])
        assert entry["token"] == text
        assert entry["bytes"] in (None, list(text.encode()))
        assert [top["logprob"] for top in entry["top_logprobs"]] == [one.top[0][1]]


def test_what_only_images_or_tools_can_mean_is_refused(served: Served) -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    for messages in ([{"role": "user", "content": [image]}], [{"role": "tool", "content": "x"}], []):
        error = served.post("/v1/chat/completions", BODY | {"messages": messages}, 400)["error"]
        assert error["param"].startswith("messages")
    tool_call = [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]
    error = served.post("/v1/chat/completions", BODY | {"messages": tool_call}, 400)["error"]
    assert error["param"] == "messages[0].tool_calls"


def test_limits_that_contradict_each_other_are_refused(served: Served) -> None:
    assert chat(served, max_tokens=4)["usage"]["completion_tokens"] == 4
    error = served.post("/v1/chat/completions", BODY | {"max_tokens": 5}, 400)["error"]
    assert error["param"] == "max_tokens"
    error = served.post("/v1/chat/completions", BODY | {"top_logprobs": 2}, 400)["error"]
    assert error["param"] == "top_logprobs"
