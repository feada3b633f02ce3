"""`/openapi.json`, made from the table of endpoints, the body types and the table of known fields.

Owns nothing a reader could contradict: types give the schemas, the route table the paths. A known field that
is not honoured appears with the values it may have.

Invariant: a body the schema refuses is refused by the server with 400, and the other way round wherever a
schema can say it (token ids against the vocabulary, lengths against the context, pairs of fields it cannot).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import prefixlab
from prefixlab.server.access import Access
from prefixlab.server.api import admin, chat, completions, known_fields, native, openai
from prefixlab.server.api.known_fields import ANYTHING, KNOWN_FIELDS
from prefixlab.server.errors import ErrorResponse

JSON, EVENTS = "application/json", "text/event-stream"
REF = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route.

    Attributes:
        body: type of the JSON body, if it takes one.
        answer: type of a successful answer, if that is JSON.
        event: type of a stream's events, if it can stream.
        answers_lists: whether a batch is answered with a list of answers.
        query: query parameters and what they mean.
    """

    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    methods: tuple[str, ...] = ("POST",)
    access: Access = Access.API
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    event: type[msgspec.Struct] | None = None
    answers_lists: bool = False
    query: Mapping[str, str] = field(default_factory=dict)


# Types that take part of the table of known fields.
_SCOPES: dict[type[msgspec.Struct], str] = {
    native.GenerateRequest: known_fields.GENERATE,
    native.NativeSampling: known_fields.SAMPLING,
    completions.CompletionRequest: known_fields.COMPLETIONS,
    chat.ChatRequest: known_fields.CHAT,
    chat.ChatMessage: known_fields.MESSAGE,
    openai.StreamOptions: known_fields.STREAM_OPTIONS,
    admin.AbortRequest: known_fields.ABORT,
}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXTS = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}
_LISTS_OF_IDS = {"type": "array", "items": _IDS, "minItems": 1}
_TEXT = {"type": "string", "minLength": 1}
# Where a type of ours is wider than what is accepted.
_NARROWER: dict[tuple[type[msgspec.Struct], str], list[dict[str, Any]]] = {
    (completions.CompletionRequest, "prompt"): [_TEXT, _TEXTS, _IDS, _LISTS_OF_IDS],
    (native.GenerateRequest, "text"): [_TEXT, _TEXTS, {"type": "null"}],
    (native.GenerateRequest, "input_ids"): [_IDS, _LISTS_OF_IDS, {"type": "null"}],
}


def openapi_document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document as plain data."""
    kinds = {kind for endpoint in endpoints for kind in (endpoint.body, endpoint.answer, endpoint.event)}
    kinds |= {ErrorResponse, *_SCOPES}
    named = sorted((kind for kind in kinds if kind is not None), key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(named, ref_template=REF)
    for kind, scope in _SCOPES.items():
        properties = schemas[kind.__name__]["properties"]
        for name, neutral in KNOWN_FIELDS.get(scope, {}).items():
            properties[name] = _known_field_schema(neutral)
    for (kind, name), forms in _NARROWER.items():
        schemas[kind.__name__]["properties"][name] = {"anyOf": forms}
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = endpoint.path.replace("{model:path}", "{model}")
        paths[path] = {method.lower(): _operation(endpoint, method) for method in endpoint.methods}
    return {
        "openapi": "3.1.0",
        "info": {"title": "prefixlab", "version": prefixlab.__version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _known_field_schema(neutral: known_fields.Neutral) -> dict[str, Any]:
    if neutral is ANYTHING:
        return {"description": "accepted; asks nothing of this server"}
    assert isinstance(neutral, tuple)
    return {"enum": [None, *neutral], "description": "known, but not supported at any other value"}


def _operation(endpoint: Endpoint, method: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}_{endpoint.handler.__name__}",
        "summary": endpoint.summary,
        "responses": {
            "200": {"description": "success", **_answer(endpoint)},
            "default": {"description": "error", "content": {JSON: {"schema": _ref(ErrorResponse)}}},
        },
    }
    if endpoint.access is not Access.OPEN:
        operation["security"] = [{"key": []}, {}]  # {}: a server without keys is open
    parameters = [_parameter(name, "query", text) for name, text in endpoint.query.items()]
    if "{model" in endpoint.path:
        parameters.append(_parameter("model", "path", "the model's name"))
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(endpoint.body)}}}
    return operation


def _answer(endpoint: Endpoint) -> dict[str, Any]:
    content = {}
    if endpoint.answer is not None:
        schema = _ref(endpoint.answer)
        if endpoint.answers_lists:
            schema = {"anyOf": [schema, {"type": "array", "items": schema}]}
        content[JSON] = {"schema": schema}
    if endpoint.event is not None:
        content[EVENTS] = {"schema": _ref(endpoint.event)}
    return {"content": content} if content else {}


def _parameter(name: str, place: str, text: str) -> dict[str, Any]:
    kind = "number" if place == "query" else "string"
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": text,
        "schema": {"type": kind},
    }


def _ref(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": REF.format(name=kind.__name__)}
