"""Finding out where and what a server is when nobody said, and whether it serves the model asked for.

Owns the questions users of other clients never had to answer. Sends no prompt.

Invariant: what the server says is believed; what it does not say is left to the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from prefixlab.bench.config.target import DEFAULT_PORT, VLLM_PORT, TargetConfig
from prefixlab.bench.targets.admin import json_object, open_admin, request
from prefixlab.bench.targets.control import NativeControl, VllmControl, find_control
from prefixlab.core.config import did_you_mean
from prefixlab.core.errors import ConfigError, TargetError

USUAL_PORTS = {DEFAULT_PORT: "SGLang, prefixlab", VLLM_PORT: "vLLM"}
"""Where servers listen unless told otherwise, in the order in which they are looked for."""
LOOK_TIMEOUT_S = 5.0


def find_port(config: TargetConfig, usual: Mapping[int, str] = USUAL_PORTS) -> int:
    """The first of the usual ports of `config`'s host where something answers, whatever it says.

    Raises:
        TargetError: nothing does.
    """
    for port in usual:
        with open_admin(replace(config, port=port).url, config) as client, suppress(TargetError):
            request(client, "GET", "/v1/models", timeout_s=LOOK_TIMEOUT_S)
            return port
    places = " or ".join(f"{port} ({whose})" for port, whose in usual.items())
    raise TargetError(f"nothing answers on {config.host}, port {places}: give --port, or --base-url")


def detect_backend(config: TargetConfig, url: str) -> str:
    """The `--backend` that fits the server at `url`: its own API where it has one, else OpenAI completions.

    Raises:
        TargetError: it cannot be reached.
    """
    with open_admin(url, config) as client:
        control = find_control(client, "openai")
    if isinstance(control, NativeControl):
        return "sglang"
    return "vllm" if isinstance(control, VllmControl) else "openai"


def check_model(config: TargetConfig, url: str, model: str) -> None:
    """Raises ConfigError, with the names the server has, if it lists models and this is none of them."""
    with open_admin(url, config) as client:
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
