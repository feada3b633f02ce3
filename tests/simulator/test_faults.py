"""Each fault of the simulated server, seen by a client of its own APIs."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from prefixlab.cli.engines import choose_engine
from prefixlab.core.clock import sleep
from prefixlab.core.errors import ConfigError
from prefixlab.simulator.faults.spec import KINDS, Faults, fault_help, parse_faults
from tests.simulator.faulty import API_KEY, serving_sim

PROMPT = list(range(300, 364))
NUM_TOKENS = 12
SLOWLY = {"sim_step_ms": 10.0, "sim_speedup": 1.0}
"""So that each step's token goes out before the next."""


def ask(url: str, prompt: list[int] = PROMPT, **more: Any) -> httpx.Response:
    sampling = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    return httpx.post(f"{url}/generate", json={"input_ids": prompt, "sampling_params": sampling, **more})


def meta(url: str, prompt: list[int] = PROMPT) -> dict[str, Any]:
    answer = ask(url, prompt)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()["meta_info"]
    return told


def complete(url: str, path: str = "/v1/completions", **more: Any) -> list[Any]:
    """The events of a stream, without the mark of its end."""
    prompt: dict[str, Any] = {"prompt": PROMPT}
    if path.endswith("chat/completions"):
        prompt = {"messages": [{"role": "user", "content": "hello"}]}
    options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    answer = httpx.post(url + path, json={**prompt, "max_tokens": NUM_TOKENS, **options, **more})
    assert answer.status_code == 200, answer.text
    *events, last, nothing = answer.text.split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


# Names and values. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "faults"),
    [
        ("lie-cached=+64", Faults(cached_added=64)),
        ("lie-cached=2.5", Faults(cached_factor=2.5)),
        ("null-cached", Faults(hides_cached=True)),
        ("keep-on-flush", Faults(keeps_on_flush=True)),
        ("bundle=4", Faults(bundle=4)),
        ("stall=2", Faults(stall_s=2.0, stall_share=1.0)),
        ("stall=0.5@0.1", Faults(stall_s=0.5, stall_share=0.1)),
        ("ignore-eos-off=0.1", Faults(eos_rate=0.1)),
        ("drop=0.2", Faults(drop_share=0.2)),
        ("miscount=3", Faults(num_miscounted=3)),
        ("foreign=5", Faults(foreign_per_s=5.0)),
        ("slow-connect=0.3", Faults(accept_every_s=0.3)),
    ],
)
def test_a_fault_is_a_name_and_a_value(word: str, faults: Faults) -> None:
    assert parse_faults([word]) == faults


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lying"], "there is no such fault, but lie-cached, null-cached"),
        (["bundle"], r"bundle takes a value: bundle=K"),
        (["null-cached=1"], "null-cached takes no value"),
        (["bundle=0"], "'0' is not K"),
        (["bundle=many"], "'many' is not K"),
        (["drop=1.5"], "'1.5' is not SHARE"),
        (["stall=1@2"], "'1@2' is not SECONDS"),
        (["stall=nan"], "'nan' is not SECONDS"),
        (["lie-cached=+x"], r"is not \+N or FACTOR"),
        (["foreign=inf"], "'inf' is not RATE"),
        (["bundle=2", "bundle=3"], "bundle is given twice"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_by_name(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"--sim-fault .*{message}"):
        choose_engine({"model": "sim", "sim_fault": words})


def test_help_names_every_fault() -> None:
    assert all(name in fault_help() for name in KINDS)


# What they do. ----------------------------------------------------------------------------------------------


def test_cached_tokens_are_lied_about_while_the_metrics_stay_true() -> None:
    with serving_sim("lie-cached=+7") as url:
        assert meta(url)["cached_tokens"] == 7
        assert meta(url)["cached_tokens"] == 48 + 7
        assert complete(url)[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 48 + 7}
        assert 'prefixlab:cached_tokens_total{tier="device"} 96.0' in httpx.get(f"{url}/metrics").text


def test_a_lie_is_never_more_than_the_prompt() -> None:
    with serving_sim("lie-cached=3") as url:
        assert meta(url)["cached_tokens"] == 0
        assert meta(url)["cached_tokens"] == 64


def test_cached_tokens_are_not_reported() -> None:
    with serving_sim("null-cached") as url:
        told = meta(url)
        assert (told["cached_tokens"], told["cached_tokens_details"]) == (None, None)
        assert complete(url)[-1]["usage"]["prompt_tokens_details"] is None


def test_a_flush_says_yes_and_keeps_everything() -> None:
    with serving_sim("keep-on-flush") as url:
        meta(url)
        assert httpx.post(f"{url}/flush_cache").json()["success"]
        assert meta(url)["cached_tokens"] == 48


def test_native_events_bring_several_tokens() -> None:
    with serving_sim("bundle=4", **SLOWLY) as url:
        events = [line for line in ask(url, stream=True).text.split("\n\n") if line.startswith("data: {")]
        counts = [json.loads(line[6:])["meta_info"]["completion_tokens"] for line in events]
        assert counts == [4, 8, 12]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_openai_events_bring_several_tokens_and_their_text_is_whole(path: str) -> None:
    def text(events: list[Any]) -> str:
        choices = [event["choices"][0] for event in events if event["choices"]]
        return "".join(one["text"] if "text" in one else one["delta"]["content"] for one in choices)

    with serving_sim(**SLOWLY) as url:
        plain = complete(url, path, logprobs=None)
    with serving_sim("bundle=5", **SLOWLY) as url:
        bundled = complete(url, path, logprobs=None)
    assert len([event for event in bundled if event["choices"]]) == 3
    assert text(bundled) == text(plain) != ""
    assert bundled[-1]["usage"] == plain[-1]["usage"]


def test_a_stream_falls_silent_in_its_middle() -> None:
    with (
        serving_sim("stall=0.3", **SLOWLY) as url,
        httpx.stream(
            "POST",
            f"{url}/generate",
            json={"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 12}, "stream": True},
        ) as answer,
    ):
        pieces = [text.count("data: {") for text in answer.iter_text()]
    assert sum(pieces) < 12  # what was computed meanwhile came together


def test_outputs_end_early_and_say_that_they_stopped() -> None:
    with serving_sim("ignore-eos-off=0.5") as url:
        told = [meta(url) for _ in range(5)]
        ends = {(one["completion_tokens"] < NUM_TOKENS, one["finish_reason"]["type"]) for one in told}
        assert (True, "stop") in ends and ends <= {(True, "stop"), (False, "length")}
        reasons = [event["choices"][0]["finish_reason"] for event in complete(url) if event["choices"]]
        assert reasons[-1] == "stop"


def test_outputs_that_may_end_anywhere_are_left_alone() -> None:
    with serving_sim("ignore-eos-off=1.0") as url:
        body = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 5}}
        assert httpx.post(f"{url}/generate", json=body).json()["meta_info"]["completion_tokens"] == 5


def test_a_share_of_requests_is_dropped_and_the_same_one_every_time() -> None:
    def statuses() -> list[int]:
        with serving_sim("drop=0.5") as url:
            return [ask(url).status_code for _ in range(12)]

    first = statuses()
    assert set(first) == {200, 503}
    assert statuses() == first


def test_prompts_are_counted_too_long() -> None:
    with serving_sim("miscount=5") as url:
        assert meta(url)["prompt_tokens"] == 64 + 5
        usage = complete(url)[-1]["usage"]
        assert (usage["prompt_tokens"], usage["total_tokens"]) == (64 + 5, 64 + 5 + NUM_TOKENS)


def test_foreign_prompts_show_in_the_metrics_alone() -> None:
    with serving_sim("foreign=200", api_key=API_KEY) as url:
        for _ in range(500):
            if "prefixlab:prompt_tokens_total 0.0" not in httpx.get(f"{url}/metrics").text:
                return
            sleep(0.01)
        pytest.fail("nobody's prompts did not come")


def test_errors_of_the_server_pass_as_they_are() -> None:
    with serving_sim("ignore-eos-off=0.5", "bundle=2", "stall=0.1") as url:
        assert httpx.post(f"{url}/generate", content=b"no json").status_code == 400
        assert ask(url, [10**6]).status_code == 400


def test_faults_are_named_by_the_server() -> None:
    words = ["miscount=5", "null-cached"]
    with serving_sim(*words) as url:
        assert httpx.get(f"{url}/server_info").json()["sim_fault"] == words
        shown = httpx.get(f"{url}/metrics").text
        assert all(f'prefixlab:sim_fault{{fault="{word}"}} 1.0' in shown for word in words)


def test_a_server_without_faults_says_so_and_has_no_edge() -> None:
    assert choose_engine({"model": "sim"}).edge(None) is None


# What needs no fault: anybody can warm a cache, few pages evict. --------------------------------------------


def test_warmth_needs_only_that_somebody_sent_it_before() -> None:
    with serving_sim() as url:
        meta(url)
        assert meta(url)["cached_tokens"] == 48


def test_eviction_needs_only_few_pages() -> None:
    with serving_sim(num_pages=8, max_model_len=128) as url:
        for first in (300, 400, 500, 300):
            told = meta(url, list(range(first, first + 64)))
        assert told["cached_tokens"] == 0
