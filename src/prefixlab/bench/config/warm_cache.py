"""Settings of `bench warm-cache`. Owns which options there are and their defaults, per target.

Invariant: `resolve` returns every number decided or refuses by the flag's name; defaults live only here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError


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
