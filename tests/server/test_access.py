"""Keys: who may ask what."""

from __future__ import annotations

import httpx
import pytest

from prefixlab.core.errors import AuthenticationError, ConfigError
from prefixlab.server.access import Access, check_access
from prefixlab.server.config import ServerConfig
from tests.server.harness import serving

KEY, ADMIN = "Bearer k", "Bearer a"


@pytest.mark.parametrize(
    ("api_key", "admin_key", "access", "opens"),
    [
        # access OPEN: whatever the keys
        ("k", "a", Access.OPEN, {None, KEY, ADMIN, "Bearer x"}),
        # no keys: everything is open
        (None, None, Access.API, {None, KEY, ADMIN, "Bearer x"}),
        (None, None, Access.ADMIN, {None, KEY, ADMIN, "Bearer x"}),
        # the API key alone opens both
        ("k", None, Access.API, {KEY}),
        ("k", None, Access.ADMIN, {KEY}),
        # an admin key takes the admin endpoints for itself, and opens the others too
        ("k", "a", Access.API, {KEY, ADMIN}),
        ("k", "a", Access.ADMIN, {ADMIN}),
        (None, "a", Access.API, {None, KEY, ADMIN, "Bearer x"}),
        (None, "a", Access.ADMIN, {ADMIN}),
    ],
)
def test_a_key_opens_what_it_should(
    api_key: str | None, admin_key: str | None, access: Access, opens: set[str | None]
) -> None:
    config = ServerConfig(api_key=api_key, admin_api_key=admin_key)
    for header in (None, KEY, ADMIN, "Bearer x"):
        if header in opens:
            check_access(config, access, header)
        else:
            with pytest.raises(AuthenticationError):
                check_access(config, access, header)


@pytest.mark.parametrize("header", ["k", "Basic k", "Bearer", "Bearer ", "Bearer kk", "Bearer \u00e9", ""])
def test_a_header_that_is_almost_right_is_wrong(header: str) -> None:
    with pytest.raises(AuthenticationError):
        check_access(ServerConfig(api_key="k"), Access.API, header)


def test_an_empty_key_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="--api-key"):
        ServerConfig(api_key="")


def test_endpoints_are_guarded_as_the_table_says() -> None:
    with serving(api_key="k", admin_api_key="a") as served, httpx.Client(base_url=served.url) as client:
        for path in ("/health", "/health_generate", "/metrics"):
            assert client.get(path).status_code == 200
        for path in ("/server_info", "/v1/models", "/v1", "/openapi.json", "/flush_cache"):
            refused = client.get(path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
        for path in ("/generate", "/v1/completions", "/v1/chat/completions", "/abort_request"):
            assert client.post(path, json={}).status_code == 401, path
        client.headers["authorization"] = KEY
        assert client.get("/server_info").status_code == 200
        assert client.get("/flush_cache").status_code == 401
        client.headers["authorization"] = ADMIN
        assert client.get("/flush_cache").status_code == 200
