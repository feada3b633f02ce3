"""Settings of the cache: one frozen dataclass, from which flags and environment variables are made."""

from __future__ import annotations

from dataclasses import dataclass

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

CACHES = ("radix", "none")
EVICTION_POLICIES = ("lru", "lfu", "slru", "fifo", "mru", "filo", "priority")


@dataclass(frozen=True)
class CacheConfig:
    """What is cached and what goes first when pages run out."""

    cache: str = setting("radix", "prefix cache; none shares nothing between requests", choices=CACHES)
    page_size: int = setting(16, "tokens per page, the unit that is shared and evicted")
    num_pages: int | None = setting(None, "pages of KV on the device (default: sized from memory)")
    eviction_policy: str = setting(
        "lru",
        "which unused prefix goes first",
        choices=EVICTION_POLICIES,
        aliases=("--radix-eviction-policy",),
    )
    slru_protected_threshold: int = setting(2, "slru: hits from which a prefix is protected")
    force_miss: bool = setting(
        False, "answer every lookup with 'nothing matched' while insert, lock and eviction run as ever"
    )

    def __post_init__(self) -> None:
        if self.page_size < 1:
            raise ConfigError(f"--page-size must be at least 1, not {self.page_size}")
        if self.num_pages is not None and self.num_pages < 1:
            raise ConfigError(f"--num-pages must be at least 1, not {self.num_pages}")
        if self.slru_protected_threshold < 1:
            raise ConfigError(
                f"--slru-protected-threshold must be at least 1, not {self.slru_protected_threshold}"
            )
