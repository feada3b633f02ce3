"""Errors as clients see them: one table, one shape, and no input that hangs or breaks the server."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.exceptions import HTTPException

from prefixlab.core import errors
from prefixlab.core.clock import sleep
from prefixlab.server.errors import describe
from tests.server.harness import Served, oracle, serving

SAMPLING = {"max_new_tokens": 1, "ignore_eos": True}


def tree(root: type[errors.PrefixlabError]) -> list[type[errors.PrefixlabError]]:
    """As `core/errors.py` draws it: what other folders make of it for themselves never reaches a server."""
    kinds = [kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return [root, *(found for kind in kinds for found in tree(kind))]


STATUS = {
    errors.PrefixlabError: 500,
    errors.ConfigError: 500,
    errors.RequestError: 400,
    errors.InvalidRequestError: 400,
    errors.ContextLengthError: 400,
    errors.ModelNotFoundError: 404,
    errors.AuthenticationError: 401,
    errors.OverloadedError: 503,
    errors.QueueFullError: 503,
    errors.RequestTimeoutError: 504,
    errors.NotIdleError: 400,
    errors.ShuttingDownError: 503,
    errors.CacheError: 500,
    errors.EngineError: 500,
    errors.TargetError: 500,
    errors.GateError: 500,
}


@pytest.mark.parametrize("kind", tree(errors.PrefixlabError), ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_has_its_status_and_says_why(kind: type[errors.PrefixlabError]) -> None:
    status, body, headers = describe(kind("because"))
    assert status == STATUS[kind]
    assert body.error.message == "because"
    assert ("retry-after" in headers) == (status == 503)


def test_a_request_error_names_the_field() -> None:
    assert describe(errors.InvalidRequestError("wrong", "top_p")).body.error.param == "top_p"


def test_an_http_error_has_the_same_shape() -> None:
    status, body, _ = describe(HTTPException(413, "too large"))
    assert (status, body.error.message) == (413, "too large")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/generate", {"text": "a"}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_an_id_that_is_live_is_refused_by_the_name_clients_give_it(
    path: str, prompt: dict[str, Any], stream: bool
) -> None:
    with serving() as served, served.runner.held():
        first = served.pool.submit(served.generate, [1], 2, rid="twin")
        served.runner.wait_for_step()
        second = served.pool.submit(served.post, path, prompt | {"rid": "twin", "stream": stream}, 400)
        served.wait_until(lambda: not served.worker.loop._commands.empty())
        served.runner.let()
        error = second.result()["error"]
        assert (error["param"], "'twin'" in error["message"]) == ("rid", True)
        served.runner.let(9)
        assert first.result()["output_ids"] == oracle([1], 2)


def test_a_bug_is_a_500_that_shows_nothing_of_its_insides(caplog: pytest.LogCaptureFixture) -> None:
    status, body, _ = describe(KeyError("secret"))
    assert status == 500
    assert "secret" not in body.error.message
    assert "KeyError" in caplog.text


BAD_SAMPLING: dict[str, Any] = {
    "temperature": -1,
    "top_k": 0,
    "stop": "",
    "min_new_tokens": 200,
    "sampling_seed": 2**70,
    "stop_token_ids": [10**11],
}
BAD: list[tuple[str, Any, str | None]] = [
    ("/generate", {"input_ids": [-1]}, "input_ids"),
    ("/generate", {"input_ids": [4096]}, "input_ids"),
    ("/generate", {"input_ids": [10**30]}, "input_ids"),
    ("/generate", {"input_ids": [1.5]}, "input_ids[0]"),
    ("/generate", {"input_ids": []}, "input_ids"),
    ("/generate", {"input_ids": [[]]}, "input_ids"),
    ("/generate", {"text": ""}, "text"),
    ("/generate", {"text": []}, "text"),
    ("/generate", {}, "text"),
    ("/generate", {"text": "a", "input_ids": [1]}, "text"),
    *(
        ("/generate", {"text": "a", "sampling_params": {name: value}}, f"sampling_params.{name}")
        for name, value in BAD_SAMPLING.items()
    ),
    ("/generate", {"text": "a", "sampling_params": {"stop_token_ids": 5}}, "sampling_params.stop_token_ids"),
    ("/generate", {"text": "a", "sampling_params": [SAMPLING]}, "sampling_params"),
    ("/generate", {"text": ["a"], "rid": ["x", "y"]}, "rid"),
    ("/generate", {"text": ["a"] * 600, "sampling_params": {"n": 2}}, "n"),
    ("/v1/completions", {"prompt": [-1]}, "prompt"),
    ("/v1/completions", {"prompt": [[1], [4096]]}, "prompt"),
    ("/v1/completions", {"prompt": ""}, "prompt"),
    ("/v1/completions", {"prompt": ["a", ""]}, "prompt"),
    ("/v1/completions", {"prompt": [1, "a"]}, "prompt"),
    ("/v1/completions", {"prompt": "a", "min_tokens": 20, "max_tokens": 10}, "min_tokens"),
    ("/v1/completions", {"prompt": "a", "seed": 2**64}, "seed"),
    ("/v1/completions", {"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids"),
    ("/v1/completions", {"prompt": "a", "priority": 2**31}, "priority"),
    ("/v1/completions", {"prompt": "a", "stop": ["b"] * 65}, "stop"),
    ("/v1/completions", {"prompt": "a", "stop": "b" * 257}, "stop"),
    ("/v1/completions", {"prompt": "a", "stop_token_ids": list(range(65))}, "stop_token_ids"),
    ("/v1/completions", {"prompt": "a", "temperature": "hot"}, "temperature"),
    ("/v1/completions", {}, None),
    ("/v1/chat/completions", {"messages": "hi"}, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}, 5]}, "messages[1]"),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD)
def test_a_wrong_body_is_a_400_that_names_the_field(
    shared_server: Served, path: str, body: Any, param: str | None
) -> None:
    error = shared_server.post(path, body, 400)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b'{"text": NaN}', b'{"sampling_params": {"temperature": NaN}, "text": "a"}',
     b'{"text": 1e999}', b'{"text": "\xff"}', b'{"text": "\\ud800"}', b"[" * 100_000],
)  # fmt: skip
def test_what_is_not_json_is_a_400(shared_server: Served, content: bytes) -> None:
    response = shared_server.client.post("/generate", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("num_prompt", "num_new"), [(512, 1), (600, 1), (1, 512), (500, 13)])
def test_what_cannot_fit_is_refused_with_its_own_code(
    shared_server: Served, num_prompt: int, num_new: int
) -> None:
    sampling = {"max_new_tokens": num_new}
    error = shared_server.post("/generate", {"input_ids": [1] * num_prompt, "sampling_params": sampling}, 400)
    assert error["error"]["code"] == "context_length_exceeded"


def test_a_prompt_larger_than_all_pages_is_refused() -> None:
    with serving(num_pages=8, page_size=4) as served:
        error = served.post("/v1/completions", {"prompt": [1] * 40, "max_tokens": 1}, 400)["error"]
        assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_the_queue_is_a_status_even_for_a_stream(shared_server: Served, stream: bool) -> None:
    body = {"input_ids": [1] * 600, "stream": stream}
    assert shared_server.post("/generate", body, 400)["error"]["code"] == "context_length_exceeded"


def test_a_body_over_the_limit_is_a_413() -> None:
    with serving(max_body_bytes=100) as served:
        response = served.client.post("/generate", json={"text": "a" * 200})
        assert response.status_code == 413
        assert "100 bytes" in response.json()["error"]["message"]
        assert served.generate([1], 1)["output_ids"] == oracle([1], 1)


def test_an_unknown_path_and_a_wrong_method_have_the_shape_of_errors(shared_server: Served) -> None:
    assert shared_server.get("/v2/models", 404)["error"]["type"] == "not_found_error"
    assert shared_server.get("/generate", 405)["error"]["message"] == "Method Not Allowed"
    assert shared_server.get("/v1/models/other", 404)["error"]["code"] == "model_not_found"


def test_a_full_queue_is_a_503_that_says_when_to_come_back() -> None:
    with serving(scheduler={"max_running_requests": 1, "max_queued_requests": 0}) as served:
        response = served.client.post("/generate", json={"text": "a"})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "queue_full"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_waits_too_long_is_told(stream: bool) -> None:
    settings = {"max_running_requests": 1, "queue_timeout_s": 0.5}
    with serving(scheduler=settings) as served, served.runner.held():
        first = served.pool.submit(served.generate, [1], 2)
        served.runner.wait_for_step()
        body = {"input_ids": [2], "stream": stream}
        late = served.pool.submit(served.client.post, "/generate", json=body)
        served.wait_for_calls(2)
        sleep(0.6)
        served.runner.let(2)
        response = late.result()
        assert first.result()["output_ids"] == oracle([1], 2)
        assert "--queue-timeout-s" in response.text
        if response.status_code == 200:
            assert stream, "a stream may have begun by then"
            assert response.text.startswith('data: {"error":')
            assert "[DONE]" not in response.text
        else:
            assert response.status_code == 504
