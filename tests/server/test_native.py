"""`POST /generate`: what SGLang's clients rely on."""

from __future__ import annotations

from typing import Any

import pytest

from prefixlab.cache.config import CacheConfig
from prefixlab.core.clock import MonotonicClock, sleep
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.server.harness import MODEL, VOCAB_SIZE, Served, logprobs_of, oracle, serving, text_of

PROMPT = list(range(300, 320))
NO_TEXT = {"temperature": 0.0}


def test_ids_in_give_the_tokens_of_the_model_and_what_they_cost(served: Served) -> None:
    answer = served.generate(PROMPT, 5)
    assert answer["output_ids"] == oracle(PROMPT, 5)
    assert answer["text"] == text_of(answer["output_ids"])
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 5}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (20, 5, 0)
    assert meta["cached_tokens_details"] == {"device": 0, "host": 0, "storage": 0}
    parts = meta["queue_time"] + meta["prefill_time"] + meta["decode_time"]
    assert 0 < parts <= meta["e2e_latency"] + 1e-9


@pytest.mark.parametrize("stream", [False, True])
def test_queue_prefill_and_decode_times_are_those_of_their_phases(stream: bool) -> None:
    in_queue_s, in_prefill_s, in_decode_s = 0.03, 0.06, 0.09
    clock = MonotonicClock()

    def ask() -> tuple[Any, float]:
        sampling = {"max_new_tokens": 2, "ignore_eos": True}
        body = {"input_ids": [2], "sampling_params": sampling}
        start_s = clock.now()
        answer = served.events("/generate", body)[-1] if stream else served.post("/generate", body)
        return answer["meta_info"], clock.now() - start_s

    with serving(scheduler={"max_running_requests": 1}) as served, served.runner.held():
        first = served.pool.submit(served.generate, [1], 1)
        served.runner.wait_for_step()
        second = served.pool.submit(ask)
        served.wait_until(lambda: not served.worker.loop._commands.empty())
        for seconds in (in_queue_s, in_prefill_s):
            sleep(seconds)
            served.runner.let()
            served.runner.wait_for_step()
        sleep(in_decode_s)
        served.runner.let()
        first.result()
        meta, elapsed_s = second.result()
    assert meta["queue_time"] >= in_queue_s
    assert meta["prefill_time"] >= in_prefill_s
    assert meta["decode_time"] >= in_decode_s
    # They do not overlap, and what is left is only what lies between the last token and the end.
    parts_s = meta["queue_time"] + meta["prefill_time"] + meta["decode_time"]
    assert parts_s <= meta["e2e_latency"] + 1e-9
    assert meta["e2e_latency"] <= elapsed_s


def test_a_repeated_prompt_is_served_from_the_cache_and_says_so(served: Served) -> None:
    served.generate(PROMPT, 5)
    meta = served.generate(PROMPT, 5)["meta_info"]
    assert meta["cached_tokens"] == 16  # (20 - 1) // 4 * 4
    assert meta["cached_tokens_details"] == {"device": 16, "host": 0, "storage": 0}


def test_text_in_is_tokenised_without_anything_added(served: Served) -> None:
    answer = served.generate(None, 3, text="Hello there")
    ids = ByteTokenizer(VOCAB_SIZE).encode("Hello there")
    assert answer["meta_info"]["prompt_tokens"] == len(ids)
    assert answer["output_ids"] == oracle(ids, 3)


def test_a_long_text_is_tokenised_the_same_beside_the_event_loop() -> None:
    text = "the end " * 400
    ids = ByteTokenizer(VOCAB_SIZE).encode(text)
    with serving(num_pages=512, max_model_len=2048) as served:
        answer = served.generate(None, 2, text=text)
        assert answer["meta_info"]["prompt_tokens"] == len(ids)
        assert answer["output_ids"] == oracle(ids, 2)


def test_a_stream_is_cumulative_and_ends_as_the_whole_answer_does(served: Served) -> None:
    body = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 6, "ignore_eos": True}}
    events = served.events("/generate", body)
    tokens = oracle(PROMPT, 6)
    for event in events:
        count = event["meta_info"]["completion_tokens"]
        assert event["output_ids"] == tokens[:count]
        assert event["meta_info"]["cached_tokens"] == 0
    counts = [event["meta_info"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert [event["meta_info"]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 1)
    whole = served.generate(PROMPT, 6)
    assert (events[-1]["text"], events[-1]["output_ids"]) == (whole["text"], whole["output_ids"])
    assert events[-1]["meta_info"]["finish_reason"] == whole["meta_info"]["finish_reason"]


def test_many_requests_at_once_get_their_own_tokens_in_little_memory() -> None:
    """Streams and whole answers, shared and own prefixes, with pages for only a few: retraction included."""
    prompts = [[5, 6, 7, 8] * (i % 4) + [100 + i] for i in range(40)]

    def tokens(number: int) -> list[int]:
        body = {
            "input_ids": prompts[number],
            "sampling_params": {"max_new_tokens": 20, "stop_token_ids": [4095]},
        }
        if number % 2:
            return list(served.events("/generate", body)[-1]["output_ids"])
        return list(served.post("/generate", body)["output_ids"])

    stops = ByteTokenizer(VOCAB_SIZE).eos_token_ids | {4095}
    with serving(num_pages=30, scheduler={"schedule_conservativeness": 0.1}) as served:
        answers = list(served.pool.map(tokens, range(40)))
        served.wait_until_idle()
        served.worker.loop._check()
    assert answers == [oracle(prompt, 20, stop_token_ids=stops) for prompt in prompts]


def test_a_batch_is_answered_in_order(served: Served) -> None:
    prompts = [[7, 8, 9], [10, 11, 12, 13], [7, 8]]
    answers = served.post(
        "/generate",
        {
            "input_ids": prompts,
            "rid": ["a", "b", "c"],
            "sampling_params": [{"max_new_tokens": n, "ignore_eos": True} for n in (1, 2, 3)],
        },
    )
    assert [answer["output_ids"] for answer in answers] == [
        oracle(prompt, n) for n, prompt in enumerate(prompts, start=1)
    ]
    assert [answer["meta_info"]["id"] for answer in answers] == ["a", "b", "c"]


def test_a_batch_of_one_is_still_a_list(served: Served) -> None:
    assert isinstance(
        served.post("/generate", {"text": ["Hi"], "sampling_params": {"max_new_tokens": 1}}), list
    )


def test_a_streamed_batch_says_which_prompt_an_event_is_of(served: Served) -> None:
    body = {"text": ["one", "two"], "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}
    events = served.events("/generate", body)
    last = {event["index"]: event for event in events}
    assert sorted(last) == [0, 1]
    assert all(event["meta_info"]["finish_reason"]["type"] == "length" for event in last.values())


def test_n_choices_of_a_prompt_are_a_batch(served: Served) -> None:
    answers = served.generate(PROMPT, 2, rid="many", sampling_params={"n": 3})
    assert [answer["meta_info"]["id"] for answer in answers] == ["many_0", "many_1", "many_2"]


def test_a_stop_id_ends_it_and_is_in_the_tokens_but_not_in_the_text(served: Served) -> None:
    tokens = oracle(PROMPT, 6)
    stop = tokens[3]
    assert stop not in tokens[:3]
    answer = served.generate(PROMPT, 6, sampling_params={"stop_token_ids": [stop]})
    assert answer["output_ids"] == tokens[:4]
    assert answer["text"] == text_of(tokens[:3])
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_it_and_is_cut(served: Served, stream: bool) -> None:
    tokens = oracle(PROMPT, 8)
    text = text_of(tokens)
    stop = text_of(tokens[3:5])[1:-1]  # across two tokens
    assert stop and text.find(stop) >= len(text_of(tokens[:3]))
    body = {
        "input_ids": PROMPT,
        "sampling_params": {"max_new_tokens": 8, "ignore_eos": True, "stop": stop},
    }
    answer = served.events("/generate", body)[-1] if stream else served.post("/generate", body)
    assert answer["text"] == text[: text.index(stop)]
    assert answer["output_ids"] == tokens[:5]
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


def test_a_stop_string_completed_by_the_last_token_counts_as_stop(served: Served) -> None:
    tokens = oracle(PROMPT, 3)
    stop = text_of(tokens)[-3:]
    answer = served.generate(PROMPT, 3, sampling_params={"stop": [stop]})
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


def test_namespaces_share_nothing(served: Served) -> None:
    served.generate(PROMPT, 1)
    for namespace in ({"extra_key": "lora-7"}, {"cache_salt": "tenant"}):
        assert served.generate(PROMPT, 1, **namespace)["meta_info"]["cached_tokens"] == 0
        assert served.generate(PROMPT, 1, **namespace)["meta_info"]["cached_tokens"] == 16


def test_a_forced_miss_of_one_request_finds_nothing_and_gives_the_same_tokens(served: Served) -> None:
    warm = served.generate(PROMPT, 4)
    cold = served.generate(PROMPT, 4, force_miss=True)
    assert cold["meta_info"]["cached_tokens"] == 0
    assert cold["output_ids"] == warm["output_ids"]
    assert served.generate(PROMPT, 4)["meta_info"]["cached_tokens"] == 16


def test_a_forced_miss_is_refused_where_the_cache_shares_nothing() -> None:
    with serving(cache=CacheConfig(cache="none", page_size=4)) as served:
        refused = served.post("/generate", {"input_ids": [1], "force_miss": True}, 400)
        assert refused["error"]["param"] == "force_miss"


def test_a_priority_nobody_would_look_at_is_refused(served: Served) -> None:
    refused = served.post("/generate", {"input_ids": [1], "priority": 3}, 400)
    assert refused["error"]["param"] == "priority"
    with serving(scheduler={"schedule_policy": "priority"}) as ranked:
        assert ranked.generate([1], 1, priority=3)["output_ids"] == oracle([1], 1)


def test_logprobs_have_one_entry_per_token(served: Served) -> None:
    body = {"return_logprob": True, "top_logprobs_num": 2, "return_text_in_logprobs": True}
    meta = served.generate(PROMPT, 3, **body)["meta_info"]
    expected = [logprobs_of(token, 2) for token in oracle(PROMPT, 3)]
    assert meta["output_token_logprobs"] == [
        [one.logprob, one.token_id, text_of([one.token_id])] for one in expected
    ]
    assert meta["output_top_logprobs"] == [
        [[logprob, token, text_of([token])] for token, logprob in one.top] for one in expected
    ]
    assert meta["input_token_logprobs"] == []


def test_prompt_logprobs_begin_where_asked_and_read_nothing_from_the_cache(served: Served) -> None:
    served.generate(PROMPT, 1)
    meta = served.generate(PROMPT, 1, return_logprob=True, logprob_start_len=0)["meta_info"]
    assert meta["cached_tokens"] == 0
    assert meta["input_token_logprobs"] == [
        [None, PROMPT[0], None],
        *([logprobs_of(token, 0).logprob, token, None] for token in PROMPT[1:]),
    ]
    late = served.generate(PROMPT, 1, return_logprob=True, logprob_start_len=18)["meta_info"]
    assert late["input_token_logprobs"] == meta["input_token_logprobs"][18:]


def test_prompt_logprobs_of_a_chunked_prompt_are_whole() -> None:
    prompt = list(range(40, 70))
    with serving(scheduler={"chunked_prefill_size": 8}) as served:
        meta = served.generate(prompt, 1, return_logprob=True, logprob_start_len=0)["meta_info"]
        assert [entry[1] for entry in meta["input_token_logprobs"]] == prompt


def test_an_id_that_is_live_is_refused_and_the_first_goes_on(served: Served) -> None:
    body = {"input_ids": [[1], [2]], "rid": ["twin", "twin"]}
    assert served.post("/generate", body, 400)["error"]["type"] == "invalid_request_error"
    assert served.generate([1], 1, rid="twin")["meta_info"]["id"] == "twin"


def test_the_model_has_its_name(served: Served) -> None:
    assert served.get("/v1/models")["data"][0]["id"] == MODEL
