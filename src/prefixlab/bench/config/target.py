"""Settings of the server to measure, and of the connections to it. Owns which options there are and their
defaults.

Invariant: `resolve` returns every number decided or refuses by the flag's name; defaults live only here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

import msgspec

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

IN_PROCESS = "in-process"
BACKENDS = ("prefixlab", "sglang", "vllm", "openai", "openai-chat", IN_PROCESS)
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT, VLLM_PORT = 30000, 8000
DEFAULT_PORTS = {"sglang": DEFAULT_PORT, "vllm": VLLM_PORT, "openai": VLLM_PORT, "openai-chat": VLLM_PORT}
"""Where clients of SGLang and vLLM look when only a backend is named."""
DEFAULT_VOCAB_SIZE = 32_000
MAX_TIMEOUT_S = 24 * 3600.0
OF_CONNECTIONS = frozenset(
    {
        "endpoint",
        "header",
        "api_key",
        "admin_api_key",
        "insecure",
        "connect_timeout_s",
        "read_timeout_s",
        "request_timeout_s",
        "reuse_connections",
        "kernel_stamps",
        "kv_events",
        "num_workers",
        "ray",
    }
)
"""Settings that mean nothing where there is no connection."""
OUR_HEADERS = frozenset({"accept-encoding", "connection", "content-length", "transfer-encoding"})
"""What the load generator itself must decide: framing, and that answers come uncompressed."""

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


PATHS = {"openai-chat": "/chat/completions", "openai": "/v1/completions"}
CHAT_AND_OTHERS = {"openai-chat": ("openai", "vllm"), "openai": ("openai-chat",)}
"""Backend → others whose requests are of another form than what its path takes."""


@dataclass(frozen=True)
class TargetConfig:
    """The server to ask. Without any of base_url, host and port, an embedded engine is started and asked."""

    backend: str | None = setting(
        None,
        "the server's kind (default: sglang with a URL, which our own server speaks too); in-process: the "
        "embedded engine without HTTP",
        choices=BACKENDS,
    )
    base_url: str | None = setting(None, "server to measure, e.g. http://127.0.0.1:30000", metavar="URL")
    host: str | None = setting(None, f"host of the server to measure (default: {DEFAULT_HOST})")
    port: int | None = setting(
        None, "port of the server to measure (default: the usual one of --backend, 8000 or 30000)"
    )
    endpoint: str | None = setting(
        None, "path that requests go to (default: the usual one of --backend)", metavar="PATH"
    )
    model: str | None = setting(
        None,
        "model to name in requests and results (default: as the server calls it); embedded: model to serve "
        "(default: tiny)",
    )
    tokenizer: str | None = setting(
        None,
        "folder or hub id of the model's tokenizer, or 'byte': needed on chat, names special ids elsewhere",
    )
    page_size: int | None = setting(
        None, "tokens per page of the server's cache (default: what the server says); embedded: its setting"
    )
    vocab_size: int | None = setting(
        None,
        f"token ids to draw from (default: the tokenizer's, the server's, else {DEFAULT_VOCAB_SIZE:,})",
    )
    expect_miss: bool = setting(
        False, "expect no hit at all: the server's cache is off, or forced to miss and does not say so"
    )
    disable_ignore_eos: bool = setting(False, "let the model end its output before --output-len")
    extra_request_body: str | None = setting(
        None, "JSON object merged into every request", metavar="JSON", aliases=("--extra-body",)
    )
    header: tuple[str, ...] = setting((), "headers to send with every request", metavar="K=V", secret=True)
    api_key: str | None = setting(None, "key to send as 'Authorization: Bearer KEY'", secret=True)
    admin_api_key: str | None = setting(None, "key for flushing the cache (default: --api-key)", secret=True)
    insecure: bool = setting(False, "do not check the server's certificate (https)")
    connect_timeout_s: float = setting(10.0, "longest wait for a connection to the server")
    read_timeout_s: float = setting(1200.0, "longest silence of the server before a request counts as failed")
    request_timeout_s: float | None = setting(
        None, "longest a whole request may take before it counts as failed (default: no limit)"
    )
    reuse_connections: bool = setting(True, "send the next request on a connection that has answered one")
    kernel_stamps: bool = setting(True, "take arrival times from the kernel, where it gives them")
    kv_events: tuple[str, ...] = setting(
        (),
        "where the server publishes KV events, as tcp://host:port, of several servers each: what its cache "
        "evicts during the run is counted (default: where the server says)",
        metavar="ADDRESS",
    )
    num_workers: int | None = setting(
        None,
        "processes that send requests and stamp answers (default: what load and cores suggest; with --ray "
        "one on each node)",
    )
    ray: str | None = setting(
        None,
        "spread client processes over the Ray cluster at ADDRESS, as ray.init takes it: auto, host:port, "
        "ray://host:port (needs prefixlab[ray])",
        metavar="ADDRESS",
    )

    def __post_init__(self) -> None:
        if self.backend == IN_PROCESS:
            self._check_in_process()
        if self.base_url is not None:
            if self.host is not None or self.port is not None:
                raise ConfigError("--base-url already names the server: leave out --host and --port")
            _check_url(self.base_url)
        elif self.is_embedded and self.backend == "vllm":
            raise ConfigError("--backend vllm needs a server: give --base-url")
        if self.port is not None and not 0 < self.port < 65_536:
            raise ConfigError(f"--port must lie in 1 … 65535, not {self.port}")
        for name in ("page_size", "vocab_size", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        for name in ("connect_timeout_s", "read_timeout_s", "request_timeout_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_TIMEOUT_S:
                raise ConfigError(
                    f"--{name.replace('_', '-')} must lie in (0, {MAX_TIMEOUT_S:.0f}], not {value}"
                )
        if self.host is not None:
            self._check_host(self.host)
        if self.ray == "":
            raise ConfigError("--ray needs an address: auto, host:port or ray://host:port")
        for backend, others in CHAT_AND_OTHERS.items():
            if self.backend in others and (self.endpoint or "").endswith(PATHS[backend]):
                raise ConfigError(
                    f"--endpoint {self.endpoint} is not what --backend {self.backend} asks: give --backend "
                    f"{backend}"
                )
        if self.endpoint is not None and not re.fullmatch(r"/[!-~]*", self.endpoint):
            raise ConfigError(f"--endpoint must be a path such as /v1/completions, not {self.endpoint!r}")
        for address in self.kv_events:
            if not re.fullmatch(r"(tcp|ipc)://[!-~]+", address):
                raise ConfigError(f"--kv-events takes tcp://host:port, not {address!r}")
        self.extra_body()
        self.headers()

    def _check_host(self, host: str) -> None:
        try:
            named = urlsplit(self.url).hostname
        except ValueError:
            named = None
        if not named or named != host.strip("[]").lower():
            raise ConfigError(
                f"--host {host!r} is no name or address of a machine (a whole URL is --base-url's)"
            )

    def _check_in_process(self) -> None:
        """The engine in this process has no connection to set up."""
        if not self.is_embedded:
            raise ConfigError(
                f"--backend {IN_PROCESS} asks no server: leave out --base-url, --host and --port"
            )
        for field in fields(self):
            if field.name in OF_CONNECTIONS and getattr(self, field.name) != field.default:
                no = "no-" if field.default is True else ""
                flag = f"--{no}{field.name.replace('_', '-')}"
                raise ConfigError(f"{flag} is for a server behind HTTP, not {IN_PROCESS}")

    @property
    def is_embedded(self) -> bool:
        """Whether the engine is ours to start: as a child behind HTTP, or in this process."""
        return self.base_url is None and self.host is None and self.port is None

    @property
    def is_in_process(self) -> bool:
        return self.backend == IN_PROCESS

    @property
    def url(self) -> str:
        """Where the server is. Not for the embedded engine, which has no address until it runs."""
        if self.base_url is not None:
            return self.base_url.rstrip("/")
        usual = DEFAULT_PORTS.get(self.backend or "", DEFAULT_PORT)
        host = self.host or DEFAULT_HOST
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"http://{host}:{usual if self.port is None else self.port}"

    def extra_body(self) -> dict[str, Any]:
        if self.extra_request_body is None:
            return {}
        try:
            return msgspec.json.decode(self.extra_request_body, type=dict[str, Any])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ConfigError(f"--extra-request-body is not a JSON object: {error}") from None

    def headers(self) -> dict[str, str]:
        """`--header`, as names and values. What the API key needs is not among them."""
        headers: dict[str, str] = {}
        for given in self.header:
            name, equals, value = given.partition("=")
            if not equals or not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise ConfigError(f"--header {given!r} is not NAME=VALUE")
            if name.lower() in OUR_HEADERS:
                raise ConfigError(f"--header {name}: the load generator sets this one itself")
            if name.lower() in map(str.lower, headers):
                raise ConfigError(f"--header {name} is given twice")
            if name.lower() == "authorization" and self.api_key is not None:
                raise ConfigError("--header Authorization and --api-key are the same header: give one")
            headers[name] = value
        return headers


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--base-url must start with http:// or https://, not {url!r}")
    try:
        parts = urlsplit(url)
        port = parts.port  # reading it is what checks it
    except ValueError as error:
        raise ConfigError(f"--base-url {url!r}: {error}") from None
    if not parts.hostname or port == 0:
        raise ConfigError(f"--base-url {url!r} names no server, as http://127.0.0.1:30000 does")
    if parts.query or parts.fragment:
        raise ConfigError(f"--base-url {url!r} must end before any ? or #")
