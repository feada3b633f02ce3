"""Settings of workloads whose prompts share prefixes by design: by groups, by percent, or up to a hit rate.

Owns one class per data set, with the flags vLLM's and SGLang's users know for it. `ServeConfig` refuses
options of a data set that is not asked for.

Invariant: every number decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

SHARING_DATASETS = ("shared-prefix", "hit-rate", "prefix_repetition", "generated-shared-prefix")
POPULARITIES = ("uniform", "zipf")
DEFAULT_PAGE_SIZE = 16


@dataclass(frozen=True)
class PrefixRepetitionConfig:
    """vLLM's `prefix_repetition`: so many prefixes, each in front of as many suffixes."""

    DATASETS: ClassVar[tuple[str, ...]] = ("prefix_repetition",)

    prefix_repetition_prefix_len: int = setting(256, "tokens of each prefix")
    prefix_repetition_suffix_len: int = setting(256, "tokens behind it, nobody else's")
    prefix_repetition_num_prefixes: int = setting(10, "different prefixes")
    prefix_repetition_output_len: int = setting(128, "output tokens of each request")

    def __post_init__(self) -> None:
        _at_least_one(self)


@dataclass(frozen=True)
class GspConfig:
    """SGLang's `generated-shared-prefix`: groups of prompts behind one system prompt each."""

    DATASETS: ClassVar[tuple[str, ...]] = ("generated-shared-prefix",)

    gsp_num_groups: int = setting(64, "system prompts, each of a group")
    gsp_prompts_per_group: int = setting(16, "prompts of each group, on average where groups are not equal")
    gsp_system_prompt_len: int = setting(2048, "tokens of each system prompt")
    gsp_question_len: int = setting(128, "tokens behind it, nobody else's")
    gsp_output_len: int = setting(256, "output tokens of each request")
    gsp_group_distribution: str = setting(
        "uniform", "which groups prompts are of: the same number each, or by Zipf's law", choices=POPULARITIES
    )
    gsp_zipf_alpha: float = setting(
        1.0, "exponent of Zipf's law: above 0, the larger the fewer groups matter"
    )
    gsp_range_ratio: float = setting(1.0, "lengths are drawn from [len·R, len]; 1: all the same")
    gsp_ordered: bool = setting(False, "send group by group; else in random order, as SGLang's client does")

    def __post_init__(self) -> None:
        _at_least_one(self)
        _check_zipf("gsp_zipf_alpha", self.gsp_zipf_alpha, self.gsp_group_distribution)
        if not 0 <= self.gsp_range_ratio <= 1:
            raise ConfigError(f"--gsp-range-ratio must lie in [0, 1], not {self.gsp_range_ratio}")

    @property
    def num_prompts(self) -> int:
        """Where nothing else says how many."""
        return self.gsp_num_groups * self.gsp_prompts_per_group


@dataclass(frozen=True)
class SharedPrefixConfig:
    """Ours: prompts of one length of which an exact part is shared, by one group or by several."""

    DATASETS: ClassVar[tuple[str, ...]] = ("shared-prefix",)

    shared_len: int = setting(
        1024, "tokens of a whole prompt, its shared part (--shared-percent of it) included"
    )
    shared_pct: float = setting(
        50.0,
        "of which so many percent are shared: their tokens rounded down",
        aliases=("--shared-percent",),
    )
    shared_groups: int = setting(1, "different prefixes")
    shared_popularity: str = setting("uniform", "how requests choose among them", choices=POPULARITIES)
    shared_zipf_alpha: float = setting(1.0, "exponent of Zipf's law")
    shared_output_len: int = setting(128, "output tokens of each request")

    def __post_init__(self) -> None:
        _at_least_one(self)
        _check_zipf("shared_zipf_alpha", self.shared_zipf_alpha, self.shared_popularity)
        if not 0 <= self.shared_pct < 100:
            raise ConfigError(
                f"--shared-pct must lie in [0, 100), not {self.shared_pct:g}: the last token at least is "
                "each prompt's own"
            )

    @property
    def prefix_tokens(self) -> int:
        """The shared part of each prompt."""
        # Rounded first: 57 % of 100 tokens are 57, though 0.57 * 100 is less in floating point.
        return min(self.shared_len - 1, math.floor(round(self.shared_len * self.shared_pct / 100, 6)))


@dataclass(frozen=True)
class HitRateConfig:
    """Ours: prompts that a cache of a given size serves a given part of, in the order sent."""

    DATASETS: ClassVar[tuple[str, ...]] = ("hit-rate",)

    hit_rate: float = setting(0.5, "part of all prompt tokens that the cache is to serve: 0 to below 1")
    hit_rate_len: int = setting(1024, "tokens of each prompt")
    hit_rate_output_len: int = setting(128, "output tokens of each request")
    hit_rate_page_size: int | None = setting(
        None, f"tokens per page to aim for (default: --page-size, else {DEFAULT_PAGE_SIZE})"
    )
    hit_rate_capacity: int | None = setting(
        None, "tokens the cache holds that is aimed for (default: it forgets nothing)"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.hit_rate < 1:
            meant = f"; did you mean {self.hit_rate / 100:g}?" if 1 < self.hit_rate < 100 else ""
            raise ConfigError(f"--hit-rate must lie in [0, 1), not {self.hit_rate:g}{meant}")
        _at_least_one(self)


def _check_zipf(name: str, exponent: float, distribution: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    if not 0 < exponent < math.inf:
        raise ConfigError(f"{flag} must be above 0, not {exponent:g}")
    if distribution != "zipf" and exponent != 1:
        choice = "--gsp-group-distribution" if name.startswith("gsp") else "--shared-popularity"
        raise ConfigError(f"{flag} is for {choice} zipf")


def _at_least_one(config: Any) -> None:
    """Whole numbers, that is."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if hint in (int, int | None) and value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
