"""What a benchmark asks of a server besides requests: what it is, whether it is ready, to forget its cache.

Owns the admin endpoints of each kind of server. Believes nothing: whether a flush really flushed is for
`cold_start.py` to prove.

Invariant: a fact the server did not state is None; a flush counts as done only if the answer says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from prefixlab.bench.targets.admin import json_object, request
from prefixlab.bench.targets.dialects import quote
from prefixlab.core.clock import sleep
from prefixlab.core.errors import TargetError

IDLE_WAIT_S = 30.0
"""How long a server may take to become idle before its cache is flushed."""
NUM_FLUSH_ATTEMPTS = 3
FLUSH_RETRY_WAIT_S = 1.0
"""Between attempts: a server that cannot wait for idle refuses at once."""
METRICS_TIMEOUT_S = 5.0
"""Metrics wait for nothing: a server that does not tell them is stuck."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the server says about itself.

    Attributes:
        backend: what it is: "prefixlab", "sglang", "vllm", or what it was called where it does not say.
        expects_miss: why no request should hit ("forced miss", …): a baseline somebody asked for.
        warning: why no request will hit although nobody said that none should.
        capacity_tokens: tokens its cache holds.
        forgets_oldest: what was used longest ago goes first, and is gone then: no other policy, no further
            tier, as far as it says.
        simulated: the step times it acts on, in words, where no model runs.
        caching_off: why nothing is ever cached; None where something may be.
        kv_events: where it publishes KV events, as it bound.
        num_devices: it runs on.
    """

    backend: str
    model: str | None = None
    page_size: int | None = None
    vocab_size: int | None = None
    max_model_len: int | None = None
    capacity_tokens: int | None = None
    expects_miss: str | None = None
    warning: str | None = None
    version: str | None = None
    simulated: str | None = None
    forgets_oldest: bool = True
    caching_off: str | None = None
    kv_events: str | None = None
    num_devices: int | None = None


@dataclass(frozen=True, slots=True)
class FlushAnswer:
    """What came of asking for a flush, in the server's words."""

    done: bool
    detail: str


class Control(Protocol):
    """The admin side of one server."""

    def facts(self) -> ServerFacts:
        """Raises TargetError if the server cannot be reached, or answers nonsense."""
        ...

    def flush(self) -> FlushAnswer:
        """Ask it to drop its cache, waiting for idle where it can. Never raises for a refusal."""
        ...

    def metrics_text(self) -> str | None:
        """Its metrics as Prometheus text; None where it publishes none."""
        ...


class _OverHttp:
    """What all servers behind HTTP have in common. The client is the caller's to close."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def metrics_text(self) -> str | None:
        """See Control."""
        response = request(self._client, "GET", "/metrics", timeout_s=METRICS_TIMEOUT_S)
        return response.text if response.is_success else None


class NativeControl(_OverHttp):
    """SGLang and prefixlab: `/server_info`, `/flush_cache`."""

    def facts(self) -> ServerFacts:
        response = request(self._client, "GET", "/server_info")
        if response.status_code == 404:
            older = request(self._client, "GET", "/get_server_info")
            response = older if older.is_success else response
        return _native_facts(json_object(response, "/server_info"))

    def flush(self) -> FlushAnswer:
        answer = FlushAnswer(False, "not asked")
        for _ in range(NUM_FLUSH_ATTEMPTS):
            response = request(self._client, "POST", f"/flush_cache?timeout={IDLE_WAIT_S:g}")
            answer = FlushAnswer(
                _flushed(response), f"HTTP {response.status_code}: {quote(response.content)}"
            )
            if response.status_code in (401, 403):
                return FlushAnswer(False, f"{answer.detail} (give --admin-api-key)")
            if answer.done or response.status_code in (404, 405):
                break
            sleep(FLUSH_RETRY_WAIT_S)
        return answer


class VllmControl(_OverHttp):
    """vLLM: `/metrics` for the cache's settings, `/reset_prefix_cache` (only in its development mode)."""

    def facts(self) -> ServerFacts:
        cache = self._cache_config()
        served = served_model(self._client)
        block_size, num_blocks = (_int(cache, name) for name in ("block_size", "num_gpu_blocks"))
        off = cache.get("enable_prefix_caching") == "False"
        version = request(self._client, "GET", "/version")
        return ServerFacts(
            backend="vllm",
            model=_text(served, "id"),
            page_size=block_size,
            max_model_len=_int(served, "max_model_len"),
            capacity_tokens=block_size * num_blocks if block_size and num_blocks else None,
            warning="the server says prefix caching is off" if off else None,
            version=_text(json_object(version, "/version"), "version") if version.is_success else None,
            forgets_oldest=cache.get("kv_offloading_size", "None") == "None",
            caching_off="the server says prefix caching is off" if off else None,
        )

    def _cache_config(self) -> Mapping[str, Any]:
        """Labels of `vllm:cache_config_info`; empty where metrics are off."""
        text = self.metrics_text() or ""
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == "vllm:cache_config_info":
                        return sample.labels
        except ValueError:
            raise TargetError(f"/metrics is not Prometheus text: {quote(text.encode())}") from None
        return {}

    def flush(self) -> FlushAnswer:
        # Tiers beyond the GPU first; a server without any may refuse that, so then without them.
        answer = FlushAnswer(False, "not asked")
        for query in ("?reset_external=true", ""):
            response = request(self._client, "POST", f"/reset_prefix_cache{query}")
            answer = FlushAnswer(
                _flushed(response), f"HTTP {response.status_code}: {quote(response.content)}"
            )
            if response.status_code in (401, 403):
                return FlushAnswer(False, f"{answer.detail} (give --admin-api-key)")
            if response.status_code == 404:
                return FlushAnswer(False, "no /reset_prefix_cache (the server needs VLLM_SERVER_DEV_MODE=1)")
            if answer.done:
                break
        return answer


class OpenAIControl(_OverHttp):
    """Any other OpenAI-compatible server: it names its model, and nothing makes it forget."""

    def __init__(self, client: httpx.Client, backend: str) -> None:
        super().__init__(client)
        self._backend = backend

    def facts(self) -> ServerFacts:
        served = served_model(self._client)
        return ServerFacts(
            backend=self._backend, model=_text(served, "id"), max_model_len=_int(served, "max_model_len")
        )

    def flush(self) -> FlushAnswer:
        return FlushAnswer(False, "this API has no way to empty the cache")


class InProcessControl:
    """The engine in this process. It speaks of itself as our server does.

    Args:
        info: what `/server_info` would say.
        flush: empties the cache; says whether it did.
    """

    def __init__(self, info: Callable[[], Mapping[str, Any]], flush: Callable[[], bool]) -> None:
        self._info = info
        self._flush = flush

    def facts(self) -> ServerFacts:
        return _native_facts(self._info())

    def flush(self) -> FlushAnswer:
        done = self._flush()
        return FlushAnswer(done, "the engine emptied its cache" if done else "the engine is not idle")

    def metrics_text(self) -> str | None:
        return None


def find_control(client: httpx.Client, backend: str) -> Control:
    """The admin API beside an OpenAI one: SGLang and vLLM serve both, and then their cache can be emptied."""
    # vLLM first: in its development mode it has a /server_info too, of another kind.
    metrics = request(client, "GET", "/metrics")
    if metrics.is_success and "vllm:" in metrics.text:
        return VllmControl(client)
    if request(client, "GET", "/server_info").is_success:
        return NativeControl(client)
    return OpenAIControl(client, backend)


def served_model(client: httpx.Client) -> Mapping[str, Any]:
    """The first entry of `/v1/models`; empty if the server lists none."""
    response = request(client, "GET", "/v1/models")
    if not response.is_success:
        return {}
    models = json_object(response, "/v1/models").get("data")
    if isinstance(models, list) and models and isinstance(models[0], Mapping):
        return models[0]
    return {}


def why_not_ready(client: httpx.Client, timeout_s: float) -> str | None:
    """Why the server does not take requests yet; None if it does. Sends it no prompt, so warms nothing.

    Ready is: `/health` answers 200, or is not there; and `/v1/models` lists a model, or is not there (a
    frontend may be healthy before it has a worker, and then lists none). Each may take `timeout_s`.
    """
    try:
        for path in ("/health", "/v1/models"):
            response = request(client, "GET", path, timeout_s=timeout_s)
            if response.status_code >= 500:
                return f"HTTP {response.status_code} from {path}: {quote(response.content)}"
        if response.is_success and json_object(response, path).get("data") == []:
            return f"{path} lists no model"
    except TargetError as error:
        return str(error)
    return None


def _flushed(response: httpx.Response) -> bool:
    """Status 200, and no `"success": false` in the body: vLLM answers 200 to a reset it did not do."""
    if response.status_code != 200:
        return False
    try:
        body = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        return True  # plain words, as SGLang says them; or nothing, as older vLLM
    return not (isinstance(body, Mapping) and body.get("success") is False)


def _native_facts(info: Mapping[str, Any]) -> ServerFacts:
    """What `/server_info` of SGLang, or of us, says."""
    ours = "prefixlab_version" in info
    off = "the server says its prefix cache is off" if info.get("disable_radix_cache") else None
    return ServerFacts(
        backend="prefixlab" if ours else "sglang",
        model=_text(info, "served_model_name") or _text(info, "model_path"),
        page_size=_int(info, "page_size"),
        vocab_size=_int(info, "vocab_size"),
        max_model_len=_int(info, "max_model_len") or _int(info, "context_length"),
        capacity_tokens=_int(info, "max_total_num_tokens"),
        expects_miss=_why_miss(info),
        warning=off,
        version=_text(info, "prefixlab_version") or _text(info, "version"),
        simulated=_simulated(info),
        forgets_oldest=_forgets_oldest(info),
        caching_off=off,
        kv_events=_kv_events(info),
        num_devices=_num_devices(info),
    )


def _num_devices(info: Mapping[str, Any]) -> int | None:
    """As SGLang's ranks multiply. With data-parallel attention replicas share the tensor-parallel ranks."""
    tensor, pipeline = _int(info, "tp_size"), _int(info, "pp_size") or 1
    replicas = 1 if info.get("enable_dp_attention") else _int(info, "dp_size") or 1
    return None if tensor is None else tensor * pipeline * replicas


def _kv_events(info: Mapping[str, Any]) -> str | None:
    """We state it as an object, SGLang as the JSON text of its flag."""
    stated = info.get("kv_events") or info.get("kv_events_config")
    if isinstance(stated, str):
        try:
            stated = msgspec.json.decode(stated)
        except msgspec.DecodeError:
            return None
    if not isinstance(stated, Mapping) or stated.get("publisher") != "zmq":
        return None
    return _text(stated, "endpoint")


def _forgets_oldest(info: Mapping[str, Any]) -> bool:
    policy = _text(info, "eviction_policy") or _text(info, "radix_eviction_policy") or "lru"
    return policy == "lru" and not info.get("enable_hierarchical_cache")


def _simulated(info: Mapping[str, Any]) -> str | None:
    """`h200-llama-3.1-8b`, what was changed of it, and what it does wrong on purpose."""
    if "sim_step_times" not in info:
        return None
    rest = {"sim_step_times", "sim_profile", "sim_speedup", "sim_vocab_size", "sim_eos_rate", "sim_fault"}
    faults = ", ".join(map(str, info.get("sim_fault") or ()))
    changed = ", ".join(
        f"--{name.replace('_', '-')} {value:g}"
        if isinstance(value, float)
        else f"--{name.replace('_', '-')} {value}"
        for name, value in sorted(info.items())
        if name.startswith("sim_") and name not in rest and value is not None
    )
    speedup = info.get("sim_speedup", 1)
    return (
        (_text(info, "sim_profile") or "step times of its own")
        + (f", changed by hand ({changed})" if changed else "")
        + (f", {speedup} times as fast" if speedup != 1 else "")
        + (f", with faults on purpose: {faults}" if faults else "")
    )


def _why_miss(info: Mapping[str, Any]) -> str | None:
    if info.get("force_miss"):
        return "forced miss"
    if info.get("cache") == "none":
        return "the cache shares nothing"
    return None


def _int(info: Mapping[str, Any], name: str) -> int | None:
    """A positive whole number, spelt as a number or (in Prometheus labels) as text."""
    value = info.get(name)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _text(info: Mapping[str, Any], name: str) -> str | None:
    value = info.get(name)
    return value if isinstance(value, str) and value else None
