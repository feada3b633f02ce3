from __future__ import annotations

import json
from typing import Any

import pytest

from prefixlab.bench.records.record import Failure
from prefixlab.bench.targets.dialects import (
    DIALECTS,
    AnswerError,
    ChatDialect,
    CompletionsDialect,
    NativeDialect,
    Reply,
)
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.errors import ConfigError, TargetError
from prefixlab.core.target import Chunk, TargetRequest

IDS = TargetRequest("r", 8, prompt_token_ids=as_token_ids([5, 6]), extra_body={"min_p": 0.1})
MESSAGES = TargetRequest("r", 8, messages=({"role": "user", "content": "hi"},), ignore_eos=False)


def read(dialect: Any, event: object) -> Chunk:
    chunk: Chunk = dialect.read(json.dumps(event).encode(), 1.5)
    return chunk


def test_a_native_request_is_spelt_as_sglang_spells_it() -> None:
    assert NativeDialect().body(IDS, "m") == {
        "input_ids": [5, 6],
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True},
        "stream": True,
        "min_p": 0.1,
    }


def test_a_completion_request_carries_token_ids_and_asks_for_usage() -> None:
    body = CompletionsDialect(continuous_usage=True).body(IDS, "m")
    assert body["prompt"] == [5, 6]
    assert body["model"] == "m"
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body["ignore_eos"] is True
    assert body["min_p"] == 0.1


def test_a_strict_openai_server_is_sent_no_field_it_would_not_know() -> None:
    body = ChatDialect().body(MESSAGES, None)
    assert set(body) == {"messages", "max_completion_tokens", "temperature", "stream", "stream_options"}


@pytest.mark.parametrize(
    ("dialect", "request_"),
    [(NativeDialect(), MESSAGES), (CompletionsDialect(), MESSAGES), (ChatDialect(), IDS)],
)
def test_a_prompt_an_api_cannot_carry_is_an_error(dialect: Any, request_: TargetRequest) -> None:
    with pytest.raises(ConfigError, match="takes"):
        dialect.body(request_, "m")


def test_the_extra_body_wins_over_everything() -> None:
    request = TargetRequest("r", 8, prompt_text="hi", extra_body={"max_tokens": 3})
    assert CompletionsDialect().body(request, "m")["max_tokens"] == 3


def test_native_events_tell_totals_and_cached_tokens() -> None:
    meta = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "cached_tokens": 0,
        "finish_reason": {"type": "length"},
    }
    chunk = read(NativeDialect(), {"text": "ab", "meta_info": meta})
    assert chunk == Chunk(1.5, "ab", True, 2, 9, 0, "length")


def test_a_native_event_before_the_first_token_carries_none() -> None:
    assert not read(NativeDialect(), {"text": "", "meta_info": {"completion_tokens": 0}}).carries_tokens


def test_a_token_without_text_is_a_token() -> None:
    half = {"choices": [{"text": "", "finish_reason": None}]}
    assert read(CompletionsDialect(), half).carries_tokens
    native = {"text": "", "meta_info": {"completion_tokens": 1}}
    assert read(NativeDialect(), native).carries_tokens


def test_a_token_without_text_in_the_middle_of_a_chat_is_a_token() -> None:
    half_a_character = {"choices": [{"delta": {"content": ""}, "finish_reason": None}]}
    assert read(ChatDialect(), half_a_character).carries_tokens
    the_end = {"choices": [{"delta": {"content": ""}, "finish_reason": "length"}]}
    assert not read(ChatDialect(), the_end).carries_tokens
    assert not read(ChatDialect(), {"choices": [{"delta": {}}]}).carries_tokens


def test_a_role_opens_a_chat_stream_and_is_not_a_token() -> None:
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    assert not read(ChatDialect(), role).carries_tokens


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
def test_content_and_reasoning_are_tokens(field: str) -> None:
    assert read(ChatDialect(), {"choices": [{"delta": {field: "x"}}]}).carries_tokens


def test_a_bare_finish_reason_is_not_a_token() -> None:
    assert not read(CompletionsDialect(), {"choices": [{"text": "", "finish_reason": "stop"}]}).carries_tokens


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None}])
def test_cached_tokens_a_server_does_not_name_stay_none(details: object) -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 1, "prompt_tokens_details": details}
    chunk = read(CompletionsDialect(), {"choices": [], "usage": usage})
    assert chunk.num_cached_tokens is None
    assert chunk.num_prompt_tokens == 4
    assert not chunk.carries_tokens


def test_cached_tokens_of_usage_are_read() -> None:
    usage = {"prompt_tokens_details": {"cached_tokens": 0}}
    assert read(ChatDialect(), {"choices": [], "usage": usage}).num_cached_tokens == 0


@pytest.mark.parametrize("dialect", [NativeDialect(), CompletionsDialect(), ChatDialect()])
@pytest.mark.parametrize(
    "payload",
    [b"{not json", b"[1]", b'{"error": {"message": "boom"}}', b'{"object": "error", "message": "x"}', b"{}"],
)
def test_an_event_that_is_no_answer_is_an_error_that_quotes_it(dialect: Any, payload: bytes) -> None:
    with pytest.raises(TargetError) as caught:
        dialect.read(payload, 0.0)
    assert payload.decode() in str(caught.value)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(
    ("payload", "failure"),
    [
        (b"{not json", Failure.GARBAGE),
        (b'"\xff"', Failure.GARBAGE),
        (b"[" * 100_000, Failure.GARBAGE),
        (b'{"object": "error", "choices": 3, "meta_info": 3', Failure.GARBAGE),
        (b'{"error": {"message": "boom"}}', Failure.SERVER_ERROR),
        (b'{"error": "boom", "choices": 3, "meta_info": 3}', Failure.SERVER_ERROR),
        (b'{"object": "error", "choices": null, "message": "x"}', Failure.SERVER_ERROR),
    ],
)
def test_an_error_of_the_server_and_nonsense_are_told_apart(
    name: str, payload: bytes, failure: Failure
) -> None:
    with pytest.raises(AnswerError) as caught:
        DIALECTS[name]().read(payload, 0.0)
    assert caught.value.failure is failure


def test_a_dialect_is_known_by_its_name() -> None:
    assert {name: make().name for name, make in DIALECTS.items()} == {name: name for name in DIALECTS}


def test_a_long_answer_is_quoted_in_part() -> None:
    with pytest.raises(TargetError) as caught:
        NativeDialect().read(b"x" * 5000, 0.0)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("count", [-1, 1.5, "3", True, 1 << 40])
def test_a_count_that_is_none_is_an_error_that_names_it(count: object) -> None:
    with pytest.raises(AnswerError, match="completion_tokens") as caught:
        read(NativeDialect(), {"meta_info": {"completion_tokens": count}})
    assert caught.value.failure is Failure.GARBAGE


def test_a_server_that_gives_up_with_status_200_has_failed() -> None:
    meta = {"finish_reason": {"type": "abort", "message": "out of pages"}}
    with pytest.raises(TargetError, match="out of pages"):
        read(NativeDialect(), {"text": "", "meta_info": meta})
    with pytest.raises(TargetError, match="gave up"):
        read(CompletionsDialect(), {"choices": [{"text": "", "finish_reason": "abort"}]})


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_told_from_the_answer(field: str) -> None:
    assert read(ChatDialect(), {"choices": [{"delta": {field: "hm"}}]}).is_reasoning
    both = {"choices": [{"delta": {field: "hm", "content": "so"}}]}
    assert not read(ChatDialect(), both).is_reasoning
    call = {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}
    assert read(ChatDialect(), call).carries_tokens and not read(ChatDialect(), call).is_reasoning
    half = {"choices": [{"delta": {"content": ""}}], "usage": {"completion_tokens": 3}}
    assert read(ChatDialect(), half).carries_tokens and read(ChatDialect(), half).is_reasoning is None


def test_reasoning_tokens_that_a_server_counts_are_read() -> None:
    usage = {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 4}}
    assert read(ChatDialect(), {"choices": [], "usage": usage}).num_reasoning_tokens == 4
    assert (
        read(ChatDialect(), {"choices": [], "usage": {"completion_tokens": 9}}).num_reasoning_tokens is None
    )


def test_an_answer_that_was_not_streamed_is_one_event() -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 3}
    chat = {"choices": [{"message": {"role": "assistant", "content": "abc"}, "finish_reason": "stop"}]}
    chunk = read(ChatDialect(), chat | {"usage": usage})
    assert (chunk.carries_tokens, chunk.num_output_tokens, chunk.finish_reason) == (True, 3, "stop")
    text = {"object": "text_completion", "choices": [{"text": "abc", "finish_reason": "length"}]}
    chunk = read(CompletionsDialect(), text | {"usage": usage})
    assert (chunk.carries_tokens, chunk.num_output_tokens, chunk.finish_reason) == (True, 3, "length")


def events(*payloads: dict[str, Any]) -> list[bytes]:
    return [json.dumps(payload).encode() for payload in payloads]


def native(ids: list[int], count: int, text: str) -> dict[str, Any]:
    return {"text": text, "output_ids": ids, "meta_info": {"completion_tokens": count}}


@pytest.mark.parametrize(
    ("payloads", "reply"),
    [
        (events(native([4], 1, "a"), native([4, 5, 6], 3, "abc")), Reply("abc", [4, 5, 6])),
        # SGLang's list of ids goes on growing while an event waits to be sent; its last event is exact.
        (events(native([4, 5], 1, "a"), native([4, 5, 6], 3, "abc")), Reply("abc", [4, 5, 6])),
        (events(native([4], 1, "a"), native([5, 6], 3, "bc")), Reply("abc", [4, 5, 6])),
        (events(native([4, 5], 2, "ab"), native([], 2, "")), Reply("ab", [4, 5])),
        (events(native([4], 1, "a"), native([6], 3, "c")), Reply("c", None)),
        (events({"text": "abc", "meta_info": {"completion_tokens": 3}}), Reply("abc", None)),
        (events(native([], 0, "")), Reply("", [])),
        ([], Reply()),
    ],
)
def test_a_native_reply_is_whole_by_its_count_whether_ids_are_total_or_new(
    payloads: list[bytes], reply: Reply
) -> None:
    assert NativeDialect().reply(payloads) == reply


def text_event(text: str, ids: list[int] | None = None, count: int | None = None) -> dict[str, Any]:
    choice = {"text": text} | ({} if ids is None else {"token_ids": ids, "prompt_token_ids": [1]})
    return {"choices": [choice], "usage": None if count is None else {"completion_tokens": count}}


def test_a_completions_reply_is_what_its_events_bring_if_that_is_all() -> None:
    last = {"choices": [], "usage": {"completion_tokens": 3}}
    reply = CompletionsDialect().reply
    whole = [text_event("a", [4]), text_event("bc", [5, 6])]
    assert reply(events(*whole, last)) == Reply("abc", [4, 5, 6])
    assert reply(events(*whole)) == Reply("abc", [4, 5, 6])
    assert reply(events(text_event("a", [4]), text_event("bc"), last)) == Reply("abc", None)
    assert reply(events(text_event("abc"))) == Reply("abc", None)


def test_a_chat_reply_is_what_was_said_not_what_was_thought() -> None:
    deltas: list[dict[str, Any]] = [
        {"role": "assistant"},
        {"reasoning": "hm"},
        {"content": "a"},
        {"content": "b"},
    ]
    choices = [{"choices": [{"delta": delta}]} for delta in deltas]
    assert ChatDialect().reply(events(*choices, {"choices": []})) == Reply("ab")
