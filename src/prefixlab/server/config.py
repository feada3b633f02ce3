"""Settings of the HTTP side: one frozen dataclass, from which flags and environment variables are made.

When the server takes requests it prints one line on stdout, `READY_PREFIX` and its URL (with `--port 0`, the
port it was given), and writes the same to `--ready-file` as JSON: {"url", "host", "port", "pid"}.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

READY_PREFIX = "prefixlab ready "
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class ServerConfig:
    """Where it listens, who may ask, and how it stops."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(30000, "port to listen on; 0 takes a free one and prints it")
    api_key: str | None = setting(None, "key clients must send as 'Authorization: Bearer KEY'", secret=True)
    admin_api_key: str | None = setting(
        None, "key for flushing the cache and aborting others' requests (default: the API key)", secret=True
    )
    served_model_name: str | None = setting(None, "model name clients use (default: the model's own)")
    max_body_bytes: int = setting(64 * 2**20, "largest request body; a larger one gets 413")
    drain_timeout_s: float = setting(30.0, "seconds running requests get to finish after SIGTERM")
    kv_events_config: str | None = setting(
        None,
        'publish KV events, as JSON: {"publisher": "zmq", "endpoint": "tcp://*:5557", …}',
        metavar="JSON",
    )
    ready_file: str | None = setting(None, "file to write URL, port and pid to once ready", metavar="FILE")
    log_level: str = setting("info", "how much is said on stderr", choices=LOG_LEVELS)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must lie between 0 and 65535, not {self.port}")
        if self.max_body_bytes < 1:
            raise ConfigError(f"--max-body-bytes must be at least 1, not {self.max_body_bytes}")
        if self.drain_timeout_s < 0:
            raise ConfigError(f"--drain-timeout-s must not be negative, not {self.drain_timeout_s}")
        for name in ("api_key", "admin_api_key"):
            if getattr(self, name) == "":
                raise ConfigError(f"--{name.replace('_', '-')} must not be empty")
