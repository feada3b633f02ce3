from __future__ import annotations

import json
import uuid
from collections.abc import Mapping

import pytest

from prefixlab.bench.loadgen.outgoing import Address, RequestWriter
from prefixlab.bench.targets.dialects import CompletionsDialect
from prefixlab.core.errors import ConfigError
from prefixlab.core.target import TargetRequest

URL = "http://server:8000"


def sent(
    headers: Mapping[str, str] | None = None,
    *,
    url: str = URL,
    path: str = "/v1/completions",
    api_key: str | None = None,
    reuse_connections: bool = True,
    request_id: str = "r1",
) -> tuple[str, dict[str, str], bytes]:
    """Request line, headers by lower-case name, and body."""
    writer = RequestWriter(
        Address(url, path),
        CompletionsDialect(),
        model="m",
        headers=headers or {},
        api_key=api_key,
        reuse_connections=reuse_connections,
    )
    head, _, body = writer(TargetRequest(request_id, 8, prompt_text="héllo")).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    fields = {name.lower(): value for name, value in pairs}
    assert len(fields) == len(pairs), "each header once"
    return first, fields, body


def test_a_request_is_complete_and_says_how_long_its_body_is() -> None:
    first, fields, body = sent(api_key="sesame")
    assert first == "POST /v1/completions HTTP/1.1"
    assert fields["host"] == "server:8000"
    assert fields["content-type"] == "application/json"
    assert fields["authorization"] == "Bearer sesame"
    assert fields["content-length"] == str(len(body))
    assert json.loads(body)["prompt"] == "héllo"
    assert "connection" not in fields
    assert sent(reuse_connections=False)[1]["connection"] == "close"


def test_a_request_is_named_by_a_uuid_of_its_own_in_every_run() -> None:
    names = [sent(request_id=name)[1]["x-request-id"] for name in ("r1", "r1", "a b\r\n")]
    assert len(set(names)) == 3
    assert all(str(uuid.UUID(name)) == name and uuid.UUID(name).version == 4 for name in names)


def test_headers_given_win_over_ours_whatever_their_case() -> None:
    _, fields, _ = sent({"AUTHORIZATION": "Basic x", "x-request-id": "mine", "X-Team": "é"}, api_key="sesame")
    assert fields["authorization"] == "Basic x"
    assert fields["x-request-id"] == "mine"
    assert fields["x-team"] == "é"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nHost: b"),
        ("X", "a\n"),
        ("X", "a\0"),
        ("X", "漢"),
        ("a b", "c"),
        ("", "c"),
        ("Content-Length", "3"),
    ],
)
def test_a_header_that_would_break_the_request_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="--header"):
        sent({name: value})


@pytest.mark.parametrize(
    ("url", "path", "host", "port", "tls", "target"),
    [
        ("http://server:8000", "/generate", "server", 8000, False, "/generate"),
        ("http://server/", "/generate", "server", 80, False, "/generate"),
        ("https://server/base/", "generate", "server", 443, True, "/base/generate"),
        ("server:8000", "/x", "server", 8000, False, "/x"),
        ("http://[::1]:9", "/x?a=1 2", "::1", 9, False, "/x?a=1%202"),
    ],
)
def test_where_a_url_and_a_path_lead(
    url: str, path: str, host: str, port: int, tls: bool, target: str
) -> None:
    address = Address(url, path)
    assert (address.host, address.port, address.tls, address.path) == (host, port, tls, target)


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "http://", "http://x:abc", "http://x:99999", "http://a:b@x", "http://x?q=1", "http://[x"],
)
def test_a_url_of_no_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
        Address(url, "/x")
