"""Flush, abort, info, health, metrics."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import prefixlab
from prefixlab.cache.config import CacheConfig
from prefixlab.core.clock import sleep
from prefixlab.server.metrics import LATENCY_BOUNDS_S
from tests.server.harness import Served, oracle, serving

PROMPT = list(range(300, 320))


def samples(served: Served) -> dict[tuple[str, str], float]:
    """Metrics by (name, value of the only label)."""
    text = served.client.get("/metrics").text
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


# Flush. -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_flush_says_what_it_dropped_and_nothing_is_cached_after(served: Served, method: str) -> None:
    served.generate(PROMPT, 1)
    served.generate(PROMPT, 1, cache_salt="other")
    answer = served.client.request(method, "/flush_cache").json()
    assert answer == {"success": True, "num_dropped_pages": 10, "num_dropped_tokens": 40}
    assert served.generate(PROMPT, 1)["meta_info"]["cached_tokens"] == 0


def test_a_flush_of_a_busy_server_is_refused_and_drops_nothing() -> None:
    with serving() as served:
        served.generate(PROMPT, 1)
        with served.runner.held():
            running = served.pool.submit(served.generate, [1], 2)
            served.runner.wait_for_step()
            flush = served.pool.submit(served.client.get, "/flush_cache")
            served.wait_until(lambda: not served.worker.loop._commands.empty())
            served.runner.let(2)
            answer = flush.result()
            assert answer.status_code == 400
            assert answer.json()["success"] is False
            assert answer.json()["error"]["code"] == "not_idle"
            running.result()
        assert served.generate(PROMPT, 1)["meta_info"]["cached_tokens"] == 16


def test_a_flush_that_may_wait_waits_for_idle() -> None:
    with serving() as served, served.runner.held():
        running = served.pool.submit(served.generate, [1, 2, 3, 4, 5], 2)
        served.runner.wait_for_step()
        flush = served.pool.submit(served.get, "/flush_cache?timeout=20")
        served.wait_until(lambda: not served.worker.loop._commands.empty())
        served.runner.let(2)
        assert flush.result() == {"success": True, "num_dropped_pages": 1, "num_dropped_tokens": 4}
        assert running.result()["output_ids"] == oracle([1, 2, 3, 4, 5], 2)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_flush_whose_client_has_gone_drops_nothing(method: str) -> None:
    with serving() as served:
        served.generate(PROMPT, 1)
        loop = served.worker.loop
        with served.runner.held():
            running = served.pool.submit(served.generate, [1], 3)
            served.runner.wait_for_step()
            host, port = served.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as client:
                client.sendall(f"{method} /flush_cache?timeout=60 HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                served.wait_until(lambda: not loop._commands.empty())
                served.runner.let()
                served.runner.wait_for_step()
                (flush,) = loop._flushes
            served.wait_until(flush.answer.cancelled)
            served.runner.let(2)
            running.result()
        assert served.wait_until_idle()["tokens"]["cached"] > 0
        assert served.generate(PROMPT, 1)["meta_info"]["cached_tokens"] == 16
        assert served.get("/flush_cache")["success"]


@pytest.mark.parametrize("query", ["timeout=-1", "timeout=nan", "timeout=soon", "timeout=inf", "timout=5"])
def test_a_flush_with_a_wrong_query_is_refused(shared_server: Served, query: str) -> None:
    error = shared_server.get(f"/flush_cache?{query}", 400)["error"]
    assert error["param"] in ("timeout", "timout")


# Abort. -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"rid": "it"}, {"abort_all": True}])
def test_an_aborted_request_answers_with_what_there_is(body: dict[str, Any]) -> None:
    with serving() as served, served.runner.held():
        running = served.pool.submit(served.generate, [1], 50, rid="it")
        served.runner.let(2)
        for _ in range(3):
            served.runner.wait_for_step()
        assert served.post("/abort_request", body) == {"num_aborted": 1}
        served.runner.let(1)
        answer = running.result()
        assert answer["output_ids"] == oracle([1], 3)  # the step under way counts
        assert answer["meta_info"]["finish_reason"] == {"type": "abort", "message": "aborted"}
        served.wait_until_idle()


def test_a_batch_is_aborted_by_its_rid_and_one_of_it_by_its_own() -> None:
    with serving() as served, served.runner.held():
        running = served.pool.submit(served.generate, [[1], [2], [3]], 50, rid="all")
        served.runner.wait_for_step()
        assert served.post("/abort_request", {"rid": "all_1"}) == {"num_aborted": 1}
        assert served.post("/abort_request", {"rid": "none of them"}) == {"num_aborted": 0}
        served.runner.let(3)
        served.wait_until(lambda: served.worker.loop.stats.num_running == 2)
        assert served.post("/abort_request", {"rid": "all"}) == {"num_aborted": 2}
        served.runner.let(3)
        reasons = [answer["meta_info"]["finish_reason"]["type"] for answer in running.result()]
        assert reasons == ["abort"] * 3


@pytest.mark.parametrize("body", [{}, {"rid": "x", "abort_all": True}, {"abort_all": False}])
def test_an_abort_of_nothing_in_particular_is_refused(shared_server: Served, body: dict[str, Any]) -> None:
    assert shared_server.post("/abort_request", body, 400)["error"]["param"] == "rid"


# Info, health, metrics. ---------------------------------------------------------------------------------


def test_server_info_tells_size_state_and_settings(served: Served) -> None:
    served.generate(PROMPT, 1)
    info = served.wait_until_idle()
    assert (info["page_size"], info["num_pages"], info["max_total_num_tokens"]) == (4, 256, 1024)
    assert (info["vocab_size"], info["max_model_len"]) == (4096, 512)
    assert info["prefixlab_version"] == prefixlab.__version__
    tokens = info["tokens"]
    assert tokens["cached"] == tokens["evictable"] + tokens["protected"] == 20
    assert tokens["capacity"] == tokens["free"] + tokens["cached"] + tokens["in_use"] == 1024
    assert (info["cache"], info["force_miss"], info["kv_events"]) == ("radix", False, None)


def test_server_info_answers_while_a_step_runs() -> None:
    with serving() as served, served.runner.held():
        running = served.pool.submit(served.generate, [1], 1)
        served.runner.wait_for_step()
        assert served.get("/server_info")["num_pages"] == 256
        assert served.get("/health") == {"status": "ok"}
        assert served.client.get("/metrics").status_code == 200
        served.runner.let()
        running.result()


def test_a_token_can_be_computed(served: Served) -> None:
    assert served.get("/health_generate") == {"status": "ok"}


def test_metrics_count_prompt_cached_computed_and_generated_tokens() -> None:
    with serving(cache=CacheConfig(page_size=4)) as served:
        for _ in range(2):
            served.generate(PROMPT, 3)
        served.client.post("/generate", json={"input_ids": [1] * 600})
        found = samples(served)
        assert found["prefixlab:prompt_tokens_total", ""] == 40
        assert found["prefixlab:cached_tokens_total", "device"] == 16
        assert found["prefixlab:cached_tokens_total", "host"] == 0
        assert found["prefixlab:computed_tokens_total", ""] == 24
        assert found["prefixlab:generation_tokens_total", ""] == 6
        assert found["prefixlab:requests_total", "length"] == 2
        assert found["prefixlab:requests_total", "refused"] == 1
        assert found["prefixlab:time_to_first_token_seconds_count", ""] == 2
        assert found["prefixlab:inter_token_latency_seconds_count", ""] == 4
        assert found["prefixlab:e2e_request_latency_seconds_count", ""] == 2
        assert found["prefixlab:queue_time_seconds_count", ""] == 2
        assert found["prefixlab:waiting_requests", ""] == found["prefixlab:running_requests", ""] == 0
        pages = [found["prefixlab:pages", state] for state in ("free", "evictable", "protected", "in_use")]
        assert pages == [251, 5, 0, 0]


def test_metrics_and_info_tell_who_runs_and_who_waits() -> None:
    with serving(scheduler={"max_running_requests": 1}) as served, served.runner.held():
        first = served.pool.submit(served.generate, [*PROMPT, 1, 2], 3)
        served.runner.wait_for_step()
        others = [served.pool.submit(served.generate, [token], 1) for token in (1, 2)]
        served.wait_until(lambda: served.worker.loop._commands.qsize() == 2)
        served.runner.let()
        served.runner.wait_for_step()  # with the state of this turn shown before
        found = samples(served)
        info = served.get("/server_info")
        served.runner.let(9)
        for call in (first, *others):
            call.result()
    assert (found["prefixlab:running_requests", ""], found["prefixlab:waiting_requests", ""]) == (1, 2)
    assert (info["num_running"], info["num_waiting"], info["is_idle"]) == (1, 2, False)
    pages = [found["prefixlab:pages", state] for state in ("free", "evictable", "protected", "in_use")]
    assert pages == [250, 0, 5, 1]  # the prompt's full pages are locked, its last one is its own


def test_metrics_count_pages_put_into_the_cache_and_evicted_from_it() -> None:
    with serving(num_pages=8) as served:
        for first in (100, 200, 300):
            served.generate(list(range(first, first + 16)), 1)
        served.wait_until_idle()
        found = samples(served)
        cached = found["prefixlab:pages", "evictable"] + found["prefixlab:pages", "protected"]
        assert found["prefixlab:inserted_pages_total", ""] == 12  # four of each prompt
        assert found["prefixlab:evicted_pages_total", ""] == 12 - cached > 0


def test_latencies_are_counted_in_the_buckets_they_belong_to() -> None:
    with serving(scheduler={"max_running_requests": 1}) as served:
        with served.runner.held():
            first = served.pool.submit(served.generate, [1], 1)
            served.runner.wait_for_step()
            second = served.pool.submit(served.generate, [2], 2)
            served.wait_until(lambda: not served.worker.loop._commands.empty())
            for _ in range(3):  # so that none of the second's times lies in the first bucket
                sleep(0.02)
                served.runner.let()
            metas = [call.result()["meta_info"] for call in (first, second)]
        text = served.client.get("/metrics").text
    observed = {
        "queue_time": [meta["queue_time"] for meta in metas],
        "time_to_first_token": [meta["queue_time"] + meta["prefill_time"] for meta in metas],
        "inter_token_latency": [metas[1]["decode_time"]],
        "e2e_request_latency": [meta["e2e_latency"] for meta in metas],
    }
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name, times_s in observed.items():
        found = families[f"prefixlab:{name}_seconds"].samples
        buckets = [sample for sample in found if sample.name.endswith("_bucket")]
        assert len(buckets) == len(LATENCY_BOUNDS_S) + 1
        for bucket in buckets:
            bound_s = float(bucket.labels["le"])
            assert bucket.value == sum(time_s <= bound_s for time_s in times_s), (name, bound_s, times_s)
        (total,) = (sample.value for sample in found if sample.name.endswith("_sum"))
        assert total == pytest.approx(sum(times_s))


def test_metrics_tell_retractions_and_prompt_tokens_computed_again() -> None:
    with serving(num_pages=20, scheduler={"schedule_conservativeness": 0.0}) as served:
        prompts = [[i + 1, i + 2, i + 3] for i in range(4)]
        # Not ignoring the end of sequence: a certain length would be reserved for.
        answers = served.generate(prompts, 30, sampling_params={"ignore_eos": False})
        assert [one["output_ids"] for one in answers] == [oracle(prompt, 30) for prompt in prompts]
        found = samples(served)
        assert found["prefixlab:retractions_total", ""] > 0
        assert found["prefixlab:prompt_tokens_total", ""] == 12
        assert found["prefixlab:computed_tokens_total", ""] > 12
        assert found["prefixlab:generation_tokens_total", ""] == 120
