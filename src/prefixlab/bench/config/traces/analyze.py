"""Settings of `trace analyze`: what to read, and which sizes of cache to look at.

Owns these options, and how the size of a cache is written.

Invariant: every value decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from prefixlab.bench.config.traces.reading import ReadingConfig
from prefixlab.bench.traces.analyze import Capacity
from prefixlab.bench.traces.trace import Trace
from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

BYTE_UNITS = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate(("k", "M", "G", "T", "P"), start=1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T", "P"), start=1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?(?:[eE]\d+)?)([A-Za-z]*)")


@dataclass(frozen=True)
class AnalyzeConfig(ReadingConfig):
    """What to read and what to look at."""

    num_requests: int | None = setting(None, "only the first so many requests", metavar="N")
    capacity: str = setting(
        "",
        "sizes of cache to look at besides: 20000 (blocks), 5e6tokens, or 80GiB with --kv-bytes-per-token",
        metavar="SIZE,…",
    )
    kv_bytes_per_token: int | None = setting(
        None, "bytes of keys and values of one token, over all layers: tells sizes in bytes too"
    )
    plot: str | None = setting(None, "draw a picture (.png, .svg or .pdf)", metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_requests", "kv_bytes_per_token"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        self.capacities(block_size=1)

    def check_against(self, trace: Trace) -> None:
        """ConfigError for settings that this trace cannot honour."""
        for name in ("capacity", "kv_bytes_per_token", "block_size"):
            if getattr(self, name) and not trace.has_ids:
                raise ConfigError(
                    f"--{name.replace('_', '-')}: {trace.name} names no blocks, so it says nothing of caches"
                )

    def capacities(self, block_size: int) -> list[Capacity]:
        """In blocks, a part of one not counted."""
        return [Capacity(text, self._blocks(text, block_size)) for text in _words(self.capacity)]

    def _blocks(self, text: str, block_size: int) -> int:
        found = _SIZE.fullmatch(text)
        unit = found[2] if found else ""
        if not found or unit not in ("", "blocks", "tokens", *BYTE_UNITS):
            raise ConfigError(
                f"--capacity {text!r} is not the size of a cache: a number of blocks, or a number with "
                f"'tokens', {', '.join(BYTE_UNITS)} behind it"
            )
        amount = float(found[1])
        if unit in BYTE_UNITS:
            if self.kv_bytes_per_token is None:
                raise ConfigError(f"--capacity {text} is in bytes: give --kv-bytes-per-token")
            amount = amount * BYTE_UNITS[unit] // (self.kv_bytes_per_token * block_size)
        elif unit == "tokens":
            amount //= block_size
        if not amount < 2**53:
            raise ConfigError(f"--capacity {text} is more than any cache holds")
        return int(amount)


def _words(text: str) -> list[str]:
    """A list with commas; of nothing, none."""
    return [word.strip() for word in text.split(",") if word.strip()]
