"""Settings of traces: which part of one is replayed, how fast, and what is done to make it fit.

Owns these options for every verb that replays a trace, and the presets of `bench trace`. What they do to a
trace is `traces/fitting.py`'s.

Invariant: every number decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from prefixlab.bench.config.dataset import TRACE_DATASETS
from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

FORMATS = ("mooncake", "bailian", "azure", "burstgpt", "agentic", "lengths")


@dataclass(frozen=True)
class TraceConfig:
    """A trace to replay. Options that choose requests come first, then those that change them."""

    DATASETS: ClassVar[tuple[str, ...]] = (*TRACE_DATASETS, "sessions")

    trace_format: str | None = setting(
        None, "format of the trace (default: as its content shows)", choices=FORMATS
    )
    block_size: int | None = setting(
        None,
        "tokens per hash id (default: the format's, or inferred from lengths and numbers of ids)",
        aliases=("--timed-trace-chunk-hash-size",),
    )
    session_interval: float | None = setting(
        None, "seconds between the starts of sessions, where a trace has none (default: 30)"
    )
    ignore_fields: str = setting("", "unknown fields or columns to pass over, not refuse", metavar="NAME,…")
    sort: bool = setting(False, "put requests in the order of their times, not refuse times that go back")
    slice_start: float = setting(0.0, "leave out requests before so many seconds of the trace")
    slice_duration: float | None = setting(None, "and those so many seconds after that")
    min_isl: int | None = setting(None, "leave out requests with fewer prompt tokens")
    max_isl: int | None = setting(None, "leave out requests with more prompt tokens")
    agentic_max_turns: int | None = setting(None, "leave out turns of a session behind so many")
    min_osl: int | None = setting(None, "raise outputs to so many tokens")
    max_osl: int | None = setting(None, "cut outputs to so many tokens")
    length_scale: float | None = setting(
        None, "multiplies every length and the block size (default: 1; bench trace, embedded engine: 0.25)"
    )
    max_len: int | None = setting(
        None, "longest prompt plus output; longer requests are cut (default: what the server says)"
    )
    speedup: float = setting(1.0, "2 replays twice as fast as recorded")
    time_scale: float | None = setting(
        None,
        "the other way round: 2 replays half as fast as recorded",
        aliases=("--mooncake-slowdown-factor",),
    )

    def __post_init__(self) -> None:
        for name in ("speedup", "time_scale", "slice_duration", "session_interval"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{_flag(name)} must be a positive number, not {value}")
        if self.time_scale is not None and self.speedup != 1:
            raise ConfigError("--speedup and --time-scale both say how fast: give one")
        if not 0 <= self.slice_start < math.inf:
            raise ConfigError(f"--slice-start must not be negative, not {self.slice_start}")
        if self.length_scale is not None and not 0 < self.length_scale <= 1:
            raise ConfigError(f"--length-scale must lie in (0, 1], not {self.length_scale}")
        if self.max_len is not None and self.max_len < 2:
            raise ConfigError(f"--max-len must be at least 2 (prompt and output), not {self.max_len}")
        for name in ("block_size", "min_isl", "max_isl", "agentic_max_turns", "min_osl", "max_osl"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{_flag(name)} must be at least 1, not {value}")
        for low, high in (("min_isl", "max_isl"), ("min_osl", "max_osl")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ConfigError(f"{_flag(low)} {least} is more than {_flag(high)} {most}")

    @property
    def factor(self) -> float:
        """How much faster than recorded, whichever way it was said."""
        return self.speedup if self.time_scale is None else 1 / self.time_scale

    @property
    def chooses(self) -> bool:
        """Which requests are replayed depends on more than their number."""
        return bool(self.slice_start) or any(
            getattr(self, name) is not None
            for name in ("slice_duration", "min_isl", "max_isl", "agentic_max_turns")
        )

    @property
    def choosing(self) -> TraceConfig:
        """Those that choose requests, without those that change them: points that differ in these alone read
        their trace once."""
        unchanged: dict[str, Any] = dict.fromkeys(("length_scale", "max_len", "min_osl", "max_osl"))
        return replace(self, **unchanged, speedup=1.0, time_scale=None)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "qwen": {"trace_format": "bailian", "num_prompts": 1000, "time_scale": (0.4, 0.5, 0.6, 0.7, 0.8, 1.6)},
}
"""Settings under a name, each to be overruled: `qwen` is the replay that mini-sglang's users know, the first
1,000 requests of a Bailian trace at six time scales."""


def names_in(text: str) -> list[str]:
    """A list with commas; names may have blanks within."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
