"""Settings of the server to measure. Owns which options there are and their defaults.

Invariant: `resolve` returns every number decided or refuses by the flag's name; defaults live only here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

BACKENDS = ("prefixlab", "sglang", "vllm", "openai", "openai-chat")
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 30000
DEFAULT_VOCAB_SIZE = 32_000
MAX_READ_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True)
class TargetConfig:
    """The server to ask. Without any of base_url, host and port, an embedded engine is started and asked."""

    backend: str | None = setting(
        None,
        "the server's kind (default: sglang with a URL, which our own server speaks too)",
        choices=BACKENDS,
    )
    base_url: str | None = setting(None, "server to measure, e.g. http://127.0.0.1:30000", metavar="URL")
    host: str | None = setting(None, f"host of the server to measure (default: {DEFAULT_HOST})")
    port: int | None = setting(None, f"port of the server to measure (default: {DEFAULT_PORT})")
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
    extra_request_body: str | None = setting(None, "JSON object merged into every request", metavar="JSON")
    api_key: str | None = setting(None, "key to send as 'Authorization: Bearer KEY'", secret=True)
    admin_api_key: str | None = setting(None, "key for flushing the cache (default: --api-key)", secret=True)
    read_timeout_s: float = setting(1200.0, "longest silence of the server before a request counts as failed")

    def __post_init__(self) -> None:
        if self.base_url is not None:
            if self.host is not None or self.port is not None:
                raise ConfigError("--base-url already names the server: leave out --host and --port")
            _check_url(self.base_url)
        elif self.is_embedded and self.backend == "vllm":
            raise ConfigError("--backend vllm needs a server: give --base-url")
        if self.port is not None and not 0 < self.port < 65_536:
            raise ConfigError(f"--port must lie in 1 … 65535, not {self.port}")
        for name in ("page_size", "vocab_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if not 0 < self.read_timeout_s <= MAX_READ_TIMEOUT_S:
            limit = f"(0, {MAX_READ_TIMEOUT_S:.0f}]"
            raise ConfigError(f"--read-timeout-s must lie in {limit}, not {self.read_timeout_s}")
        self.extra_body()

    @property
    def is_embedded(self) -> bool:
        return self.base_url is None and self.host is None and self.port is None

    @property
    def url(self) -> str:
        """Where the server is. Not for the embedded engine, which has no address until it runs."""
        if self.base_url is not None:
            return self.base_url.rstrip("/")
        return f"http://{self.host or DEFAULT_HOST}:{DEFAULT_PORT if self.port is None else self.port}"

    def extra_body(self) -> dict[str, Any]:
        if self.extra_request_body is None:
            return {}
        try:
            return msgspec.json.decode(self.extra_request_body, type=dict[str, Any])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ConfigError(f"--extra-request-body is not a JSON object: {error}") from None


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
