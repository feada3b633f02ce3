"""Bodies nobody would send on purpose: each gets an answer, none breaks the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefixlab.cache.config import CacheConfig
from prefixlab.server.api.chat import ChatMessage, ChatRequest
from prefixlab.server.api.completions import CompletionRequest
from prefixlab.server.api.known_fields import KNOWN_FIELDS
from prefixlab.server.api.native import GenerateRequest, NativeSampling
from prefixlab.server.api.openai import StreamOptions
from tests.server.harness import MODEL, Served, serving

PATHS: dict[str, tuple[type[msgspec.Struct], str]] = {
    "/generate": (GenerateRequest, "generate"),
    "/v1/completions": (CompletionRequest, "completions"),
    "/v1/chat/completions": (ChatRequest, "chat"),
}
ODD = [None, True, False, -1, 0, 1, 2, 7, 4096, 10**12, 10**30, 0.5, -0.1, 1e300, "", "a", MODEL, "\0é"]
VALUES = st.recursive(
    st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def victim() -> Iterator[Served]:
    """With the policies that look at most of a request."""
    cache = CacheConfig(page_size=2, eviction_policy="priority")
    with serving(cache=cache, num_pages=100, scheduler={"schedule_policy": "priority"}) as served:
        yield served


def objects(kind: type[msgspec.Struct], scope: str) -> st.SearchStrategy[dict[str, Any]]:
    names = [*kind.__struct_fields__, *KNOWN_FIELDS[scope], "unknown"]
    return st.dictionaries(st.sampled_from(names), VALUES, max_size=5)


def bodies(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """Mostly right, with something odd in it."""
    kind, scope = PATHS[path]
    right: dict[str, st.SearchStrategy[dict[str, Any]]] = {
        "/generate": st.fixed_dictionaries(
            {"text": st.just("hello"), "sampling_params": objects(NativeSampling, "sampling_params")}
        ),
        "/v1/completions": st.fixed_dictionaries(
            {"prompt": st.just([1, 2, 3]), "stream_options": objects(StreamOptions, "stream_options")}
        ),
        "/v1/chat/completions": st.fixed_dictionaries(
            {
                "messages": st.lists(
                    objects(ChatMessage, "messages") | st.just({"role": "user", "content": "a"})
                )
            }
        ),
    }
    return st.tuples(right[path], objects(kind, scope)).map(lambda parts: parts[0] | parts[1])


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_body_is_answered_and_the_server_lives(victim: Served, path: str, data: st.DataObject) -> None:
    body = data.draw(bodies(path))
    response = victim.client.post(path, content=msgspec.json.encode(body))
    if response.status_code == 200:
        return
    assert response.status_code in (400, 404), response.text
    error = response.json()["error"]
    assert error["message"] and error["type"] in ("invalid_request_error", "not_found_error")


def test_after_all_that_nothing_is_left_behind(victim: Served) -> None:
    assert victim.get("/health") == {"status": "ok"}
    victim.wait_until_idle()
    victim.worker.loop._check()
