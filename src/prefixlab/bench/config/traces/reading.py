"""Settings of how a trace is read, the same for every verb that takes a file.

Owns these options, and the way from them to a trace.

Invariant: every value decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from prefixlab.bench.config.trace import FORMATS, names_in
from prefixlab.bench.traces.formats.format import DEFAULT_SESSION_INTERVAL_S
from prefixlab.bench.traces.reading import read_trace
from prefixlab.bench.traces.trace import Trace
from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError


@dataclass(frozen=True)
class ReadingConfig:
    """What to make of a file."""

    trace_format: str | None = setting(
        None, "format of the trace (default: as its content shows)", choices=FORMATS
    )
    block_size: int | None = setting(
        None, "tokens per hash id (default: the format's, or inferred from lengths and numbers of ids)"
    )
    session_interval: float = setting(
        DEFAULT_SESSION_INTERVAL_S, "seconds between the starts of sessions, where a trace has none"
    )
    ignore_fields: str = setting("", "unknown fields or columns to pass over, not refuse", metavar="NAME,…")
    sort: bool = setting(False, "put requests in the order of their times, not refuse times that go back")

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size < 1:
            raise ConfigError(f"--block-size must be at least 1, not {self.block_size}")
        if not 0 <= self.session_interval < math.inf:
            raise ConfigError(f"--session-interval must not be negative, not {self.session_interval}")

    def read(
        self, file: str, on_read: Callable[[int, int | None], None], *, num_requests: int | None = None
    ) -> Trace:
        """All of it, or the first so many requests. Raises ConfigError: see `read_trace`."""
        return read_trace(
            file,
            format=self.trace_format,
            num_requests=num_requests or 0,
            block_size=self.block_size,
            session_interval_s=self.session_interval,
            ignore_fields=names_in(self.ignore_fields),
            sort=self.sort,
            on_read=on_read,
        )
