"""Finding out what a server is when nobody said, and whether it serves the model asked for.

Owns the two questions users of other clients never had to answer. Sends no prompt.

Invariant: what the server says is believed; what it does not say is left to the user.
"""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.targets.admin import json_object, open_admin, request
from prefixlab.bench.targets.control import NativeControl, VllmControl, find_control
from prefixlab.core.config import did_you_mean
from prefixlab.core.errors import ConfigError


def detect_backend(config: TargetConfig, url: str) -> str:
    """The `--backend` that fits the server at `url`: its own API where it has one, else OpenAI completions.

    Raises:
        TargetError: it cannot be reached.
    """
    with _client(config, url) as client:
        control = find_control(client, "openai")
    if isinstance(control, NativeControl):
        return "sglang"
    return "vllm" if isinstance(control, VllmControl) else "openai"


def check_model(config: TargetConfig, url: str, model: str) -> None:
    """Raises ConfigError, with the names the server has, if it lists models and this is none of them."""
    with _client(config, url) as client:
        response = request(client, "GET", "/v1/models")
        if not response.is_success:
            return
        models = json_object(response, "/v1/models").get("data")
    entries = models if isinstance(models, list) else []
    names = [str(entry["id"]) for entry in entries if isinstance(entry, Mapping) and "id" in entry]
    if names and model not in names:
        raise ConfigError(
            f"--model {model}: the server serves {', '.join(names)}{did_you_mean(model, names)} "
            f"(--served-model-name {model} sends that name all the same)"
        )


def _client(config: TargetConfig, url: str) -> httpx.Client:
    return open_admin(
        url,
        api_key=config.admin_api_key or config.api_key,
        headers=config.headers(),
        verify_tls=not config.insecure,
        connect_timeout_s=config.connect_timeout_s,
    )
