from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import httpx
import pytest

from prefixlab.bench.targets import control
from prefixlab.bench.targets.admin import open_admin
from prefixlab.bench.targets.control import (
    FlushAnswer,
    NativeControl,
    OpenAIControl,
    ServerFacts,
    VllmControl,
    find_control,
)
from prefixlab.core.errors import TargetError
from tests.bench.fake_server import FakeServer

T = TypeVar("T")


def ask(server: FakeServer, question: Callable[[httpx.Client], T]) -> T:
    with open_admin(server.url) as client:
        return question(client)


def native_facts(server: FakeServer) -> ServerFacts:
    return ask(server, lambda client: NativeControl(client).facts())


def native_flush(server: FakeServer) -> FlushAnswer:
    return ask(server, lambda client: NativeControl(client).flush())


def vllm_flush(server: FakeServer) -> FlushAnswer:
    return ask(server, lambda client: VllmControl(client).flush())


def flush_answered_with(kind: type[NativeControl | VllmControl], answer: httpx.Response) -> FlushAnswer:
    transport = httpx.MockTransport(lambda request: answer)
    with httpx.Client(base_url="http://server", transport=transport) as client:
        return kind(client).flush()


def test_a_native_server_tells_page_size_capacity_and_model(fake_server: FakeServer) -> None:
    fake_server.behaviour.info = {"max_total_num_tokens": 5000}
    assert native_facts(fake_server) == ServerFacts(
        backend="sglang",
        model="fake",
        page_size=16,
        vocab_size=4096,
        max_model_len=100_000,
        capacity_tokens=5000,
        version="1.2",
    )


def test_our_own_server_is_known_by_its_version(fake_server: FakeServer) -> None:
    fake_server.behaviour.info = {"prefixlab_version": "9.9"}
    facts = native_facts(fake_server)
    assert (facts.backend, facts.version) == ("prefixlab", "9.9")


@pytest.mark.parametrize(
    ("info", "why"),
    [
        ({"force_miss": True}, "forced miss"),
        ({"cache": "none"}, "the cache shares nothing"),
        ({"cache": "radix", "force_miss": False}, None),
    ],
)
def test_a_server_that_cannot_hit_says_why(
    fake_server: FakeServer, info: dict[str, object], why: str | None
) -> None:
    fake_server.behaviour.info = info
    assert native_facts(fake_server).expects_miss == why


def test_a_cache_that_is_off_is_a_warning_and_not_an_expectation(fake_server: FakeServer) -> None:
    fake_server.behaviour.info = {"disable_radix_cache": True}
    facts = native_facts(fake_server)
    assert facts.expects_miss is None
    assert facts.warning == "the server says its prefix cache is off"


def test_a_fact_that_was_not_stated_is_none(fake_server: FakeServer) -> None:
    fake_server.behaviour.info = {"page_size": None, "vocab_size": "many", "max_model_len": -1}
    facts = native_facts(fake_server)
    assert (facts.page_size, facts.vocab_size, facts.max_model_len) == (None, None, None)


def test_vllm_tells_its_block_size_through_its_metrics(fake_server: FakeServer) -> None:
    fake_server.behaviour.is_vllm = True
    fake_server.behaviour.page_size = 128
    facts = ask(fake_server, lambda client: VllmControl(client).facts())
    assert facts.page_size == 128
    assert facts.capacity_tokens == 12_800
    assert facts.model == "fake"
    assert facts.version == "0.99"
    assert facts.expects_miss is None


def test_vllm_without_metrics_leaves_the_page_size_open(fake_server: FakeServer) -> None:
    fake_server.behaviour.known_endpoints = frozenset({"models"})
    assert ask(fake_server, lambda client: VllmControl(client).facts()).page_size is None


def test_a_flush_that_works_is_done(fake_server: FakeServer) -> None:
    assert native_flush(fake_server).done
    assert vllm_flush(fake_server).done


def test_a_refused_flush_is_tried_again_and_then_told(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "FLUSH_RETRY_WAIT_S", 0.0)
    fake_server.behaviour.flush = "refuses"
    answer = native_flush(fake_server)
    assert answer == FlushAnswer(False, "HTTP 400: not idle")
    assert fake_server.num_flushes == control.NUM_FLUSH_ATTEMPTS


def test_status_200_with_success_false_is_not_done(fake_server: FakeServer) -> None:
    fake_server.behaviour.flush = "refuses"
    assert not vllm_flush(fake_server).done


def test_a_server_without_the_endpoint_is_not_asked_twice(fake_server: FakeServer) -> None:
    fake_server.behaviour.flush = "missing"
    assert not native_flush(fake_server).done
    assert fake_server.num_flushes == 1
    assert "VLLM_SERVER_DEV_MODE" in vllm_flush(fake_server).detail


@pytest.mark.parametrize("kind", [NativeControl, VllmControl])
def test_a_flush_without_the_right_key_names_the_option(kind: type[NativeControl | VllmControl]) -> None:
    answer = flush_answered_with(kind, httpx.Response(401, text="no"))
    assert answer == FlushAnswer(False, "HTTP 401: no (give --admin-api-key)")


def test_a_404_in_the_words_of_another_error_is_not_a_missing_endpoint() -> None:
    answer = flush_answered_with(VllmControl, httpx.Response(500, text="worker 404 died"))
    assert answer == FlushAnswer(False, "HTTP 500: worker 404 died")


def test_beside_an_openai_api_the_admin_api_is_found(fake_server: FakeServer) -> None:
    def found() -> str:
        return type(ask(fake_server, lambda client: find_control(client, "openai"))).__name__

    assert found() == "NativeControl"
    fake_server.behaviour.is_vllm = True
    assert found() == "VllmControl", "though in its development mode it has a /server_info"
    fake_server.behaviour.known_endpoints = frozenset()
    assert found() == "OpenAIControl"


def test_a_plain_openai_server_has_a_name_at_most_and_no_flush(fake_server: FakeServer) -> None:
    facts = ask(fake_server, lambda client: OpenAIControl(client, "openai").facts())
    assert facts == ServerFacts(backend="openai", model="fake", max_model_len=100_000)
    fake_server.behaviour.known_endpoints = frozenset()
    assert ask(fake_server, lambda client: OpenAIControl(client, "openai").facts()).model is None
    assert not ask(fake_server, lambda client: OpenAIControl(client, "openai").flush()).done


def test_a_server_that_is_not_there_is_an_error_that_names_it() -> None:
    nowhere = FakeServer()
    nowhere.url = "http://127.0.0.1:9"
    with pytest.raises(TargetError, match=r"could not connect.*is it running at http://127.0.0.1:9"):
        native_facts(nowhere)


def test_a_server_of_another_kind_is_an_error(fake_server: FakeServer) -> None:
    fake_server.behaviour.known_endpoints = frozenset()
    with pytest.raises(TargetError, match=r"HTTP 404 from /server_info.*choose another --backend"):
        native_facts(fake_server)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({}, None),
        ({"sim_profile": "p"}, "p"),
        ({"sim_profile": "p", "sim_step_ms": None, "sim_speedup": 1.0, "sim_vocab_size": 9}, "p"),
        ({"sim_profile": "p", "sim_step_ms": 0.0}, "p, changed by hand (--sim-step-ms 0)"),
        ({"sim_profile": "p", "sim_speedup": "inf"}, "p, inf times as fast"),
        (
            {"sim_profile": "p", "sim_decode_ms_per_row": 1, "sim_speedup": 2.5},
            "p, changed by hand (--sim-decode-ms-per-row 1), 2.5 times as fast",
        ),
        ({"sim_profile": "p", "sim_fault": []}, "p"),
        (
            {"sim_profile": "p", "sim_fault": ["bundle=3", "null-cached"]},
            "p, with faults on purpose: bundle=3, null-cached",
        ),
    ],
)
def test_a_server_that_only_simulates_is_known_by_its_step_times(
    fake_server: FakeServer, info: dict[str, object], words: str | None
) -> None:
    fake_server.behaviour.info = {**info, "sim_step_times": {}} if info else {}
    assert native_facts(fake_server).simulated == words


@pytest.mark.parametrize(
    ("info", "oldest_first"),
    [
        ({}, True),
        ({"eviction_policy": "lru"}, True),
        ({"eviction_policy": "lfu"}, False),
        ({"radix_eviction_policy": "slru"}, False),
        ({"enable_hierarchical_cache": True}, False),
    ],
)
def test_a_server_says_whether_what_was_used_longest_ago_goes_first(
    info: dict[str, object], oldest_first: bool
) -> None:
    facts = control.InProcessControl(lambda: {"max_total_num_tokens": 100, **info}, lambda: True).facts()
    assert facts.capacity_tokens == 100
    assert facts.forgets_oldest is oldest_first


@pytest.mark.parametrize(
    ("info", "address"),
    [
        ({"kv_events": {"publisher": "zmq", "endpoint": "tcp://*:5557"}}, "tcp://*:5557"),
        ({"kv_events_config": '{"publisher": "zmq", "endpoint": "tcp://*:5558"}'}, "tcp://*:5558"),
        ({"kv_events_config": '{"publisher": "null", "endpoint": "tcp://*:5558"}'}, None),
        ({"kv_events_config": "none"}, None),
        ({"kv_events": None}, None),
    ],
)
def test_a_native_server_tells_where_it_publishes_kv_events(
    fake_server: FakeServer, info: dict[str, object], address: str | None
) -> None:
    fake_server.behaviour.info = info
    assert native_facts(fake_server).kv_events == address


def test_a_server_whose_cache_is_off_says_so(fake_server: FakeServer) -> None:
    fake_server.behaviour.caching_off = True
    assert native_facts(fake_server).caching_off == "the server says its prefix cache is off"
    fake_server.behaviour.is_vllm = True
    facts = ask(fake_server, lambda client: VllmControl(client).facts())
    assert facts.caching_off == "the server says prefix caching is off"


@pytest.mark.parametrize(
    ("info", "num_devices"),
    [
        ({"tp_size": 8}, 8),
        ({"tp_size": 4, "pp_size": 2, "dp_size": 3}, 24),
        ({"tp_size": 8, "dp_size": 8, "enable_dp_attention": True}, 8),
        ({"dp_size": 2}, None),
    ],
)
def test_a_server_that_tells_its_ranks_tells_its_devices(
    fake_server: FakeServer, info: dict[str, object], num_devices: int | None
) -> None:
    fake_server.behaviour.info = info
    assert native_facts(fake_server).num_devices == num_devices


def test_a_server_that_is_stuck_is_not_waited_for_long_for_its_metrics() -> None:
    waits_s = []

    def stuck(asked: httpx.Request) -> httpx.Response:
        waits_s.append(asked.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("too late", request=asked)

    with (
        httpx.Client(base_url="http://x", timeout=40.0, transport=httpx.MockTransport(stuck)) as client,
        pytest.raises(TargetError),
    ):
        NativeControl(client).metrics_text()
    assert waits_s == [5.0]
