from __future__ import annotations

from typing import Any

import pytest

from prefixlab.bench.config.target import TargetConfig
from prefixlab.core.config import as_public_dict
from prefixlab.core.errors import ConfigError

URL = "http://127.0.0.1:30000"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base_url": URL, "endpoint": "v1/completions"}, "--endpoint must be a path"),
        ({"base_url": URL, "endpoint": "/a b"}, "--endpoint must be a path"),
        ({"base_url": URL, "header": ("novalue",)}, "--header 'novalue' is not NAME=VALUE"),
        ({"base_url": URL, "header": ("a b=c",)}, "is not NAME=VALUE"),
        ({"base_url": URL, "header": ("X-A=1\r\nX-B: 2",)}, "is not NAME=VALUE"),
        ({"base_url": URL, "header": ("Content-Length=3",)}, "sets this one itself"),
        ({"base_url": URL, "header": ("x-a=1", "X-A=2")}, "given twice"),
        ({"base_url": URL, "header": ("Authorization=x",), "api_key": "k"}, "--api-key are the same header"),
        ({"base_url": URL, "connect_timeout_s": 0.0}, "--connect-timeout-s must lie in"),
        ({"base_url": URL, "request_timeout_s": -1.0}, "--request-timeout-s must lie in"),
        ({"base_url": URL, "read_timeout_s": float("nan")}, "--read-timeout-s must lie in"),
        ({"base_url": URL, "num_workers": 0}, "--num-workers must be at least 1"),
        ({"base_url": URL, "backend": "in-process"}, "--backend in-process asks no server"),
        ({"backend": "in-process", "header": ("a=1",)}, "--header is for a server behind HTTP"),
        ({"backend": "in-process", "num_workers": 2}, "--num-workers is for a server behind HTTP"),
        ({"backend": "in-process", "ray": "auto"}, "--ray is for a server behind HTTP"),
        ({"backend": "in-process", "kernel_stamps": False}, "--no-kernel-stamps is for a server behind HTTP"),
        ({"backend": "in-process", "reuse_connections": False}, "--no-reuse-connections is for a server"),
        ({"backend": "in-process", "api_key": "k"}, "--api-key is for a server behind HTTP"),
        ({"backend": "in-process", "read_timeout_s": 1e-6}, "--read-timeout-s is for a server behind HTTP"),
        ({"backend": "in-process", "connect_timeout_s": 3.0}, "--connect-timeout-s is for a server"),
        ({"base_url": URL, "ray": ""}, "--ray needs an address"),
        ({"host": "http://h"}, "--host 'http://h' is no name or address"),
        ({"host": "a b:c"}, "is no name or address"),
        ({"host": "h:80"}, "is no name or address"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TargetConfig(**given)


def test_headers_are_names_and_values_and_a_value_may_hold_anything_printable() -> None:
    config = TargetConfig(base_url=URL, header=("X-Tenant=a=b, c", "X-Empty="))
    assert config.headers() == {"X-Tenant": "a=b, c", "X-Empty": ""}


def test_headers_may_be_secrets_and_are_masked_where_settings_are_shown() -> None:
    config = TargetConfig(base_url=URL, header=("Authorization=Bearer sesame",))
    assert "sesame" not in str(as_public_dict(config))


def test_the_engine_is_ours_to_start_where_no_server_is_named() -> None:
    assert TargetConfig().is_embedded and not TargetConfig().is_in_process
    assert TargetConfig(backend="in-process").is_embedded
    assert not TargetConfig(base_url=URL).is_embedded


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("::1", "http://[::1]:30000"),
        ("[fe80::1]", "http://[fe80::1]:30000"),
        ("Server.example", "http://Server.example:30000"),
        ("10.0.0.1", "http://10.0.0.1:30000"),
    ],
)
def test_a_host_is_a_name_or_an_address_of_either_kind(host: str, url: str) -> None:
    assert TargetConfig(host=host).url == url


@pytest.mark.parametrize(
    ("backend", "endpoint", "meant"),
    [
        ("openai", "/v1/chat/completions", "openai-chat"),
        ("vllm", "/v1/chat/completions", "openai-chat"),
        ("openai-chat", "/v1/completions", "openai"),
    ],
)
def test_a_path_that_takes_another_form_of_request_names_the_backend_to_give(
    backend: str, endpoint: str, meant: str
) -> None:
    with pytest.raises(ConfigError, match=f"^--endpoint {endpoint} .* give --backend {meant}$"):
        TargetConfig(base_url=URL, backend=backend, endpoint=endpoint)
    TargetConfig(base_url=URL, backend=meant, endpoint=endpoint)
