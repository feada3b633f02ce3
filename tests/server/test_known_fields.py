"""The table of known fields, held against the server: neutral is accepted, all else is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from prefixlab.server.api.known_fields import (
    ABORT,
    ANYTHING,
    CHAT,
    COMPLETIONS,
    GENERATE,
    KNOWN_FIELDS,
    MESSAGE,
    SAMPLING,
    STREAM_OPTIONS,
    is_neutral,
)
from prefixlab.server.api.openapi import _SCOPES
from tests.server.harness import Served

NOT_NEUTRAL = "surely nobody's default"


def request_with(scope: str, name: str, value: Any) -> tuple[str, dict[str, Any], str]:
    """Path, body and the client's spelling of a field in `scope`."""
    given = {name: value}
    body: dict[str, Any]
    if scope == GENERATE:
        return "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 1}} | given, name
    if scope == SAMPLING:
        body = {"text": "a", "sampling_params": {"max_new_tokens": 1} | given}
        return "/generate", body, f"sampling_params.{name}"
    if scope == COMPLETIONS:
        return "/v1/completions", {"prompt": "a", "max_tokens": 1} | given, name
    if scope == STREAM_OPTIONS:
        body = {"prompt": "a", "max_tokens": 1, "stream": True, "stream_options": given}
        return "/v1/completions", body, f"stream_options.{name}"
    if scope == CHAT:
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1} | given
        return "/v1/chat/completions", body, name
    if scope == MESSAGE:
        body = {"messages": [{"role": "user", "content": "a"} | given], "max_tokens": 1}
        return "/v1/chat/completions", body, f"messages[0].{name}"
    assert scope == ABORT
    return "/abort_request", {"rid": "nobody"} | given, name


@pytest.mark.parametrize("scope", KNOWN_FIELDS)
def test_every_known_field_is_accepted_at_its_neutral_values(shared_server: Served, scope: str) -> None:
    for name, neutral in KNOWN_FIELDS[scope].items():
        values = [NOT_NEUTRAL] if neutral is ANYTHING else [None, *neutral]  # type: ignore[misc]
        for value in values:
            path, body, _ = request_with(scope, name, value)
            response = shared_server.client.post(path, json=body)
            assert response.status_code == 200, (name, value, response.text)


@pytest.mark.parametrize("scope", KNOWN_FIELDS)
def test_every_known_field_is_refused_by_name_at_any_other_value(shared_server: Served, scope: str) -> None:
    for name, neutral in KNOWN_FIELDS[scope].items():
        if neutral is ANYTHING:
            continue
        path, body, param = request_with(scope, name, NOT_NEUTRAL)
        error = shared_server.post(path, body, 400)["error"]
        assert error["param"] == param
        assert param in error["message"]


@pytest.mark.parametrize("scope", KNOWN_FIELDS)
def test_an_unknown_field_is_refused_by_name(shared_server: Served, scope: str) -> None:
    path, body, param = request_with(scope, "temperatur", 1)
    error = shared_server.post(path, body, 400)["error"]
    assert (error["param"], error["code"]) == (param, None)
    assert param in error["message"]


NEEDS_LOGPROBS: list[tuple[str, dict[str, Any], list[Any]]] = [
    (GENERATE, {"top_logprobs_num": 5}, [None, 0]),
    (GENERATE, {"logprob_start_len": 0}, [None, -1]),
    (GENERATE, {"return_text_in_logprobs": True}, [None, False]),
    (CHAT, {"top_logprobs": 5}, [None]),
    (CHAT, {"return_tokens_as_token_ids": True}, [None, False]),
    (COMPLETIONS, {"return_tokens_as_token_ids": True}, [None, False]),
]


@pytest.mark.parametrize(("scope", "given", "neutral"), NEEDS_LOGPROBS)
def test_what_only_shapes_logprobs_is_refused_by_name_where_none_are_returned(
    shared_server: Served, scope: str, given: dict[str, Any], neutral: list[Any]
) -> None:
    ((name, value),) = given.items()
    path, body, param = request_with(scope, name, value)
    error = shared_server.post(path, body, 400)["error"]
    assert (error["param"], name in error["message"]) == (param, True)
    asks_for_them = {
        GENERATE: {"return_logprob": True},
        CHAT: {"logprobs": True},
        COMPLETIONS: {"logprobs": 1},
    }
    shared_server.post(path, body | asks_for_them[scope])
    for nothing in neutral:
        shared_server.post(path, body | {name: nothing})


def test_a_misspelt_field_is_answered_with_the_right_one(shared_server: Served) -> None:
    error = shared_server.post("/v1/completions", {"prompt": "a", "max_token": 1}, 400)["error"]
    assert "did you mean 'max_tokens'" in error["message"]


def test_a_boolean_is_no_number() -> None:
    assert is_neutral(1, (1,))
    assert is_neutral(1.0, (1,))
    assert not is_neutral(True, (1,))
    assert not is_neutral(0, (False,))


def test_no_field_is_both_honoured_and_in_the_table() -> None:
    assert set(KNOWN_FIELDS) == set(_SCOPES.values())
    for kind, scope in _SCOPES.items():
        assert not set(kind.__struct_fields__) & set(KNOWN_FIELDS[scope]), scope
