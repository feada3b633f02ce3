"""The loop thread when things go wrong: a step, a text, the loop itself, the client."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from prefixlab.core.clock import sleep
from prefixlab.core.errors import EngineError
from tests.server.harness import Served, oracle, serving, text_of

BODY = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_step_fails_its_requests_and_nothing_else(stream: bool) -> None:
    with serving() as served:
        served.runner.errors.append(EngineError("out of memory"))
        response = served.client.post("/generate", json=BODY | {"stream": stream})
        assert "out of memory" in response.text
        # A stream may have begun by then.
        assert response.status_code in ((200, 500) if stream else (500,))
        assert served.generate([1, 2, 3], 4)["output_ids"] == oracle([1, 2, 3], 4)
        served.wait_until_idle()
        served.worker.loop._check()


def test_a_failed_step_leaves_waiting_requests_alone() -> None:
    with serving(scheduler={"max_running_requests": 1}) as served, served.runner.held():
        first = served.pool.submit(served.client.post, "/generate", json=BODY)
        served.runner.wait_for_step()
        second = served.pool.submit(served.generate, [9], 2)
        served.wait_for_calls(2)
        served.runner.errors.append(RuntimeError("a kernel failed"))
        served.runner.let(5)
        assert first.result().json()["error"]["message"] == "RuntimeError: a kernel failed"
        assert second.result()["output_ids"] == oracle([9], 2)


def test_an_error_in_mid_stream_is_an_event_and_the_end() -> None:
    with (
        serving() as served,
        served.runner.held(),
        served.client.stream("POST", "/generate", json=BODY | {"stream": True}) as response,
    ):
        assert response.status_code == 200
        lines = (line for line in response.iter_lines() if line)
        served.runner.let()
        assert '"completion_tokens":1' in next(lines)
        served.runner.errors.append(EngineError("the device is gone"))
        served.runner.let()
        assert "the device is gone" in next(lines)
        assert list(lines) == []


def test_tokens_without_text_fail_one_request_only(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = served.worker.tokenizer
    decode = tokenizer.decode
    bad = oracle([1, 2, 3], 2)[1]

    def broken(token_ids: Any, **options: Any) -> str:
        if bad in token_ids:
            raise IndexError("no such token")
        return decode(token_ids, **options)

    monkeypatch.setattr(tokenizer, "decode", broken)
    assert served.post("/generate", BODY, 500)["error"]["message"] == "IndexError: no such token"
    assert bad not in oracle([5], 3)
    assert served.generate([5], 3)["output_ids"] == oracle([5], 3)
    served.wait_until_idle()


def test_a_bug_in_the_loop_ends_everything_with_an_error_and_health_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as served, served.runner.held():
        calls = [
            served.pool.submit(served.client.post, "/generate", json=BODY | {"rid": rid}) for rid in "ab"
        ]
        served.runner.wait_for_step()
        served.wait_for_calls(2)

        def broken(*_: Any) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(served.worker.loop._scheduler, "commit", broken)
        served.runner.let(9)
        for call in calls:
            assert call.result().status_code == 500
            assert "the engine loop died" in call.result().json()["error"]["message"]
        # And nothing hangs from now on.
        assert served.get("/health", 503)["error"]["code"] == "engine_error"
        served.get("/health_generate", 500)
        served.post("/generate", BODY, 500)
        served.get("/flush_cache", 500)
        assert served.get("/server_info")["num_pages"] == 256
        assert served.client.get("/metrics").status_code == 200


def test_a_last_token_without_text_is_an_error_too(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.worker.tokenizer, "decode", None)
    assert served.post("/generate", BODY | {"sampling_params": {"max_new_tokens": 1}}, 500)
    monkeypatch.undo()
    served.wait_until_idle()
    assert served.worker.loop.is_healthy


def test_a_bug_while_a_call_is_queued_reaches_that_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as served:

        def broken(request: Any) -> None:
            raise OverflowError("a bug")

        monkeypatch.setattr(served.worker.loop._scheduler, "add", broken)
        assert served.post("/generate", BODY, 500)["error"]["message"] == "OverflowError: a bug"
        assert served.get("/health", 503)


def test_a_request_that_runs_too_long_is_ended_and_told() -> None:
    settings = {"running_timeout_s": 0.2}
    with serving(scheduler=settings) as served, served.runner.held():
        running = served.pool.submit(served.client.post, "/generate", json=BODY)
        served.runner.wait_for_step()
        sleep(0.3)
        served.runner.let(2)
        assert running.result().status_code == 504
        assert "--running-timeout-s" in running.result().text
        served.wait_until_idle()


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_a_client_that_goes_away_in_mid_stream_gives_its_pages_back(path: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/generate": {"input_ids": [1] * 20, "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}},
        "/v1/completions": {"prompt": [1] * 20, "max_tokens": 400, "ignore_eos": True},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True},
    }
    with serving() as served, served.runner.held():
        with served.client.stream("POST", path, json=bodies[path] | {"stream": True}) as response:
            served.runner.let(3)
            next(response.iter_raw())
        served.wait_for_calls(0)
        served.runner.let(2)  # the step under way, and perhaps one more
        info = served.wait_until_idle()
        assert (info["num_running"], info["num_waiting"]) == (0, 0)
        served.worker.loop._check()


def test_a_client_that_goes_away_while_it_waits_leaves_the_queue() -> None:
    with serving(scheduler={"max_running_requests": 1}) as served, served.runner.held():
        first = served.pool.submit(served.generate, [1], 3)
        served.runner.wait_for_step()

        def let_it_be_queued() -> None:
            served.wait_for_calls(2)
            served.runner.let()

        served.pool.submit(let_it_be_queued)
        with served.client.stream("POST", "/generate", json=BODY | {"stream": True, "rid": "late"}):
            pass  # its headers came, so it is queued
        served.wait_for_calls(1)
        served.runner.let(9)
        assert first.result()["output_ids"] == oracle([1], 3)
        served.wait_until_idle()
        metrics = served.client.get("/metrics").text
        assert 'prefixlab:requests_total{outcome="abort"} 1.0' in metrics


def test_an_id_is_free_again_as_soon_as_its_request_was_aborted() -> None:
    """Both commands are taken in one turn of the loop, as after a step that was long."""
    with serving(scheduler={"max_running_requests": 1}) as served, served.runner.held():
        commands = served.worker.loop._commands
        first = served.pool.submit(served.generate, [1], 3)
        served.runner.wait_for_step()
        aborted = served.pool.submit(served.generate, [2], 2, rid="again")
        served.wait_until(lambda: commands.qsize() == 1)
        served.runner.let()
        served.runner.wait_for_step()
        assert served.post("/abort_request", {"rid": "again"}) == {"num_aborted": 1}
        again = served.pool.submit(served.generate, [3], 2, rid="again")
        served.wait_until(lambda: commands.qsize() == 2)
        served.runner.let(9)
        assert first.result()["output_ids"] == oracle([1], 3)
        assert aborted.result()["meta_info"]["finish_reason"]["type"] == "abort"
        assert again.result()["output_ids"] == oracle([3], 2)


def test_a_client_that_goes_away_from_a_whole_answer_is_noticed_too() -> None:
    with serving() as served, served.runner.held():
        with pytest.raises(httpx.ReadTimeout):
            served.client.post("/generate", json=BODY, timeout=0.2)
        served.wait_for_calls(0)
        served.runner.let(9)
        served.wait_until_idle()


def test_a_client_that_goes_away_in_the_middle_of_its_body_is_no_bug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving() as served:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        assert served.generate([1], 1)["output_ids"] == oracle([1], 1)
    assert caplog.records == []


def test_a_slow_reader_gets_everything_in_fewer_events(served: Served) -> None:
    """Updates pile up while nobody reads, and come out merged: no token is lost."""
    body = {"prompt": [1, 2], "max_tokens": 200, "ignore_eos": True}
    events = served.events("/v1/completions", body)
    assert len(events) <= 200
    text = "".join(event["choices"][0]["text"] for event in events)
    assert text == text_of(oracle([1, 2], 200))


def test_idle_for_a_while_the_loop_checks_every_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixlab.server.loop.IDLE_CHECK_AFTER_S", 0.01)
    with serving() as served:
        served.generate([1, 2, 3], 2)
        served.wait_until(lambda: not served.worker.loop._needs_check)
        assert served.worker.loop.is_healthy


def test_a_leak_found_by_the_idle_check_is_not_kept_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixlab.server.loop.IDLE_CHECK_AFTER_S", 0.01)
    with serving() as served:

        def leak() -> None:
            raise AssertionError("a page has owners nobody knows")

        monkeypatch.setattr(served.worker.loop._cache, "check", leak)
        served.generate([1, 2, 3], 2)
        served.wait_until(lambda: served.worker.loop.death is not None)
        assert "owners nobody knows" in served.get("/health", 503)["error"]["message"]


def test_while_it_drains_new_requests_are_turned_away_and_running_ones_finish() -> None:
    with serving() as served, served.runner.held():
        running = served.pool.submit(served.generate, [1], 3)
        served.runner.wait_for_step()
        draining = served.pool.submit(asyncio.run, served.worker.loop.drain(10.0))
        served.wait_until(lambda: not served.worker.loop.is_healthy)
        response = served.client.post("/generate", json=BODY)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "shutting_down"
        assert served.get("/health", 503)
        served.runner.let(9)
        assert running.result()["output_ids"] == oracle([1], 3)
        draining.result()


def test_what_does_not_finish_while_it_drains_is_told() -> None:
    with serving() as served, served.runner.held():
        running = served.pool.submit(served.client.post, "/generate", json=BODY)
        served.runner.wait_for_step()
        asyncio.run(served.worker.loop.drain(0.0))
        served.runner.let(9)
        assert running.result().status_code == 503
        assert "shutting down" in running.result().text
