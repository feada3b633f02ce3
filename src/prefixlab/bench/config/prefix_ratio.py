"""Settings of prompts of which a given part is a prefix shared by some, and of the sweep over that part.

Owns the rule from a ratio to lengths, which is that of Dynamo's `prefix_ratio_benchmark.py`, and the flags
its users know.

Invariant: every number decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

DEFAULT_ISL, DEFAULT_OSL, DEFAULT_REQUESTS, DEFAULT_CONCURRENCY, DEFAULT_SEED = 14_000, 200, 200, 20, 0
DEFAULT_RATIOS = ("0.1", "0.3", "0.5", "0.7", "0.9")
URL_SEEDS = ("different", "same")


@dataclass(frozen=True)
class PrefixRatioConfig:
    """Prompts of --isl tokens of which a part is one of a few prefixes, chosen at random by each request."""

    DATASETS: ClassVar[tuple[str, ...]] = ("prefix-ratio",)

    prefix_ratio: float = setting(
        0.5, "part of --isl that is prefix, 0 (nothing shared) to 1 (nothing else): int(isl·R) tokens"
    )
    num_prefix_prompts: int = setting(20, "different prefixes; each request takes one of them at random")
    isl_stddev: float = setting(
        0.0,
        "standard deviation of the tokens behind the prefix, as a part of their number; Dynamo's benchmark "
        "has 0.25, exact lengths are the default here",
    )
    osl_stddev: float = setting(0.0, "standard deviation of output tokens, as a part of --osl; likewise")
    url_seeds: str = setting(
        "different",
        "several URLs: each draws prefixes and lengths of its own, or all draw the same; tokens always "
        "differ, so that servers with a common cache do not hit each other's prompts",
        choices=URL_SEEDS,
    )

    def __post_init__(self) -> None:
        if not 0 <= self.prefix_ratio <= 1:
            raise ConfigError(f"--prefix-ratio must lie in [0, 1], not {self.prefix_ratio}")
        if self.num_prefix_prompts < 1:
            raise ConfigError(f"--num-prefix-prompts must be at least 1, not {self.num_prefix_prompts}")
        for name in ("isl_stddev", "osl_stddev"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name.replace('_', '-')} must lie in [0, 1], not {getattr(self, name)}")

    def lengths(self, isl: int) -> tuple[int, int]:
        """Tokens of the prefix, and behind it. Cut off like Dynamo's: both together may be one less."""
        return int(isl * self.prefix_ratio), int(isl * (1 - self.prefix_ratio))


@dataclass(frozen=True)
class PrefixRatioSweep:
    """Which ratios `bench prefix-ratio` measures."""

    prefix_ratios: tuple[str, ...] = setting(
        DEFAULT_RATIOS, "ratios to measure, each from 0 to 1", metavar="R"
    )

    def __post_init__(self) -> None:
        ratios = self.ratios()
        if not ratios:
            raise ConfigError("--prefix-ratios needs at least one ratio")
        if len(set(ratios)) < len(ratios):
            raise ConfigError(f"--prefix-ratios holds a ratio twice: {' '.join(self.prefix_ratios)}")

    def ratios(self) -> list[float]:
        found = []
        for word in (word for given in self.prefix_ratios for word in given.split(",") if word):
            try:
                ratio = float(word)
            except ValueError:
                ratio = -1.0
            if not 0 <= ratio <= 1:
                raise ConfigError(f"--prefix-ratios takes numbers in [0, 1], not {word!r}")
            found.append(ratio)
        return found
