"""Settings of the benchmarks: frozen dataclasses, from which flags are made.

Owns which options there are and what they default to. What a benchmark does with them is its own file's.

Invariant: `resolve_*` returns every number decided; nothing downstream knows a default.
"""

from __future__ import annotations

import dataclasses
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


@dataclass(frozen=True)
class WarmCacheOptions:
    """The sweep, every number decided."""

    total_tokens: int
    pcts: tuple[int, ...]
    num_prompts: int
    output_len: int
    max_concurrency: int
    seed: int
    repeats: int


ALL_PCTS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 92, 95, 97, 99)
REMOTE = WarmCacheOptions(
    total_tokens=70_000, pcts=ALL_PCTS, num_prompts=64, output_len=200, max_concurrency=4, seed=42, repeats=1
)
"""The defaults for a server at a URL: those of SGLang's bench_warm_cache."""
EMBEDDED = WarmCacheOptions(
    total_tokens=2_048,
    pcts=(0, 25, 50, 75, 90, 95, 99),
    num_prompts=16,
    output_len=8,
    max_concurrency=4,
    seed=42,
    repeats=3,
)
"""The defaults for the embedded engine: small enough for two CPU cores, long enough for prefill to
dominate."""


def _both(name: str, meaning: str) -> str:
    """Help for an option whose default depends on whom we ask."""
    remote, embedded = (_shown(getattr(options, name)) for options in (REMOTE, EMBEDDED))
    return f"{meaning} (default: {remote}" + (f"; embedded: {embedded})" if embedded != remote else ")")


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class WarmCacheConfig:
    """`bench warm-cache` as given: None where the default depends on the target."""

    total_tokens: int | None = setting(None, _both("total_tokens", "tokens of each prompt"))
    pcts: str | None = setting(None, _both("pcts", "shared prefix in percent of the prompt"), metavar="P,P,…")
    num_prompts: int | None = setting(None, _both("num_prompts", "prompts per point"))
    output_len: int | None = setting(None, _both("output_len", "output tokens of each request"))
    max_concurrency: int | None = setting(None, _both("max_concurrency", "requests in flight at once"))
    seed: int | None = setting(
        None, _both("seed", "seed of the prompts; a point's depend on it and on its percent")
    )
    repeats: int | None = setting(
        None, _both("repeats", "times each point is measured, cold started every time")
    )
    output_file: str | None = setting(
        None, "append one JSON line per point and repeat to this file", metavar="FILE"
    )
    plot: str | None = setting(
        None, "write a picture of the sweep to this file (PNG, SVG or PDF)", metavar="FILE"
    )
    strict: bool = setting(False, "exit with 3 unless every point is consistent")
    dry_run: bool = setting(False, "print the planned points and their cost in tokens, and stop")

    def options(self, *, embedded: bool) -> WarmCacheOptions:
        """Every number decided. Raises ConfigError naming the flag that is wrong."""
        defaults = EMBEDDED if embedded else REMOTE
        given = {
            field.name: value
            for field in dataclasses.fields(WarmCacheOptions)
            if (value := getattr(self, field.name)) is not None and field.name != "pcts"
        }
        if self.pcts is not None:
            given["pcts"] = parse_pcts(self.pcts)
        options = dataclasses.replace(defaults, **given)
        for name in ("total_tokens", "num_prompts", "output_len", "max_concurrency", "repeats"):
            value = getattr(options, name)
            if value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if options.seed < 0:
            raise ConfigError(f"--seed must not be negative, not {options.seed}")
        return options


def parse_pcts(text: str) -> tuple[int, ...]:
    """`"0,50,90"` → (0, 50, 90). Raises ConfigError for what is no list of different whole percentages."""
    try:
        pcts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--pcts must be whole numbers with commas between, not {text!r}") from None
    if any(not 0 <= pct <= 99 for pct in pcts):
        raise ConfigError(f"--pcts takes 0 to 99 (at 100 all prompts would be one), not {text!r}")
    if len(set(pcts)) < len(pcts):
        raise ConfigError(f"--pcts names a point twice: {text!r}")
    return pcts


@dataclass(frozen=True)
class TraceConfig:
    """`bench trace` as given."""

    num_prompts: int = setting(50, "requests to replay, from the start of the trace; 0 for all")
    speedup: float = setting(1.0, "2 replays twice as fast as recorded")
    length_scale: float | None = setting(
        None, "multiplies every length and the block size (default: 1; embedded: 0.25)"
    )
    block_size: int | None = setting(
        None, "tokens per hash id (default: inferred from lengths and numbers of ids)"
    )
    max_len: int | None = setting(
        None, "longest prompt plus output; longer requests are cut (default: what the server says)"
    )
    seed: int = setting(42, "seed of the token ids that stand for each block")
    output_file: str | None = setting(None, "append the result as a JSON line to this file", metavar="FILE")
    strict: bool = setting(False, "exit with 3 unless the cache served what an ideal one would have")
    dry_run: bool = setting(False, "print what would be sent, and stop")

    def __post_init__(self) -> None:
        if self.num_prompts < 0:
            raise ConfigError(f"--num-prompts must not be negative, not {self.num_prompts}")
        if not 0 < self.speedup < float("inf"):
            raise ConfigError(f"--speedup must be a positive number, not {self.speedup}")
        if self.length_scale is not None and not 0 < self.length_scale <= 1:
            raise ConfigError(f"--length-scale must lie in (0, 1], not {self.length_scale}")
        if self.block_size is not None and self.block_size < 1:
            raise ConfigError(f"--block-size must be at least 1, not {self.block_size}")
        if self.max_len is not None and self.max_len < 2:
            raise ConfigError(f"--max-len must be at least 2 (prompt and output), not {self.max_len}")
        if self.seed < 0:
            raise ConfigError(f"--seed must not be negative, not {self.seed}")


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
