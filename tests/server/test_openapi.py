"""`/openapi.json` held against the server: same routes, and a body is accepted by both or by neither."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from prefixlab.server.app import build_app
from tests.server.harness import MODEL, Served

PROMPT = {"prompt": "a", "max_tokens": 1}
TALK = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
TEXT = {"text": "a", "sampling_params": {"max_new_tokens": 1}}

ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("/generate", TEXT),
    ("/generate", {"input_ids": [1, 2]}),
    ("/generate", {"input_ids": [[1], [2, 3]], "sampling_params": [{"n": 2}, {"top_k": -1}]}),
    ("/generate", TEXT | {"return_logprob": True, "top_logprobs_num": 20, "logprob_start_len": 0}),
    ("/generate", TEXT | {"lora_path": None, "log_metrics": True, "background": False}),
    ("/generate", {"text": ["a", "b"], "sampling_params": {"stop": ["x"], "max_new_tokens": 1}}),
    ("/v1/completions", PROMPT),
    ("/v1/completions", PROMPT | {"model": MODEL, "temperature": 0, "top_p": 1, "n": 2, "seed": 7}),
    ("/v1/completions", PROMPT | {"prompt": [1, 2, 3], "logprobs": 0, "echo": True, "stop": None}),
    ("/v1/completions", PROMPT | {"prompt": [[1], [2]], "best_of": 1, "suffix": "", "logit_bias": {}}),
    ("/v1/completions", PROMPT | {"prompt": ["a", "b"], "user": "anybody", "use_beam_search": False}),
    ("/v1/completions", PROMPT | {"stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", TALK),
    ("/v1/chat/completions", TALK | {"logprobs": True, "top_logprobs": 3, "tools": [], "store": False}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}),
    ("/abort_request", {"rid": "nobody"}),
    ("/abort_request", {"abort_all": True}),
]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("/generate", TEXT | {"unknown": 1}),
    ("/generate", TEXT | {"lora_path": "x"}),
    ("/generate", {"text": ""}),
    ("/generate", {"input_ids": []}),
    ("/generate", {"input_ids": [-1]}),
    ("/generate", {"input_ids": ["a"]}),
    ("/generate", {"input_ids": [True]}),
    ("/generate", {"input_ids": [1, [2]]}),
    ("/generate", {"input_ids": 5}),
    ("/generate", TEXT | {"stream": "yes"}),
    ("/generate", TEXT | {"top_logprobs_num": 21}),
    ("/generate", {"text": "a", "sampling_params": {"temperature": -1}}),
    ("/generate", {"text": "a", "sampling_params": {"top_p": 0}}),
    ("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 0}}),
    ("/generate", {"text": "a", "sampling_params": {"regex": "a+"}}),
    ("/generate", {"text": "a", "sampling_params": "warm"}),
    ("/v1/completions", {"model": MODEL}),
    ("/v1/completions", PROMPT | {"prompt": ""}),
    ("/v1/completions", PROMPT | {"prompt": []}),
    ("/v1/completions", PROMPT | {"prompt": [1, "a"]}),
    ("/v1/completions", PROMPT | {"prompt": {"text": "a"}}),
    ("/v1/completions", PROMPT | {"n": 0}),
    ("/v1/completions", PROMPT | {"best_of": 2}),
    ("/v1/completions", PROMPT | {"logprobs": 21}),
    ("/v1/completions", PROMPT | {"presence_penalty": 3}),
    ("/v1/completions", PROMPT | {"max_tokens": 0}),
    ("/v1/completions", PROMPT | {"stream_options": {"include_all": True}}),
    ("/v1/completions", PROMPT | {"stop": ""}),
    ("/v1/completions", PROMPT | {"stop": ["a"] * 65}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": [{"role": "robot", "content": "a"}]}),
    ("/v1/chat/completions", TALK | {"tools": [{"type": "function"}]}),
    ("/v1/chat/completions", TALK | {"response_format": {"type": "json_object"}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}),
    ("/abort_request", {"rid": 5}),
    ("/abort_request", {"everything": True}),
]


@pytest.fixture(scope="module")
def document(shared_server: Served) -> Any:
    return shared_server.get("/openapi.json")


def schema_of(document: Any, path: str) -> dict[str, Any]:
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return {**body, "components": document["components"]}


@pytest.mark.parametrize(("path", "body"), ACCEPTED)
def test_what_the_schema_allows_the_server_accepts(
    shared_server: Served, document: Any, path: str, body: dict[str, Any]
) -> None:
    jsonschema.validate(body, schema_of(document, path))
    assert shared_server.client.post(path, json=body).status_code == 200


@pytest.mark.parametrize(("path", "body"), REFUSED)
def test_what_the_schema_forbids_the_server_refuses(
    shared_server: Served, document: Any, path: str, body: dict[str, Any]
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, schema_of(document, path))
    error = shared_server.post(path, body, 400)["error"]
    assert error["type"] == "invalid_request_error"


def test_the_schema_lists_every_route_and_method(shared_server: Served, document: Any) -> None:
    served = {
        (route.path.replace("{model:path}", "{model}"), method.lower())
        for route in build_app(shared_server.worker).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert served == {(path, method) for path, item in document["paths"].items() for method in item}


def test_answers_fit_their_schema(shared_server: Served, document: Any) -> None:
    components = {"components": document["components"]}
    bodies: dict[str, dict[str, Any]] = {
        "/generate": TEXT,
        "/v1/completions": PROMPT,
        "/v1/chat/completions": TALK,
    }
    for path, body in bodies.items():
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        answer = shared_server.post(path, body)
        jsonschema.validate(answer, content["application/json"]["schema"] | components)
        for event in shared_server.events(path, body):
            jsonschema.validate(event, content["text/event-stream"]["schema"] | components)
    for path in ("/server_info", "/v1/models", "/v1", "/health"):
        content = document["paths"][path]["get"]["responses"]["200"]["content"]
        jsonschema.validate(shared_server.get(path), content["application/json"]["schema"] | components)


def test_an_error_fits_its_schema(shared_server: Served, document: Any) -> None:
    error = shared_server.post("/generate", {}, 400)
    reference = {"$ref": "#/components/schemas/ErrorResponse", "components": document["components"]}
    jsonschema.validate(error, reference)
