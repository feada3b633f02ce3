"""What servers count of their caches themselves: the growth of their Prometheus counters over a stretch.

Owns which counters of vLLM, SGLang and ours say what, and growth: by series, summed over labels and servers.
Who asks, and when, is `witness/counters.py`'s.

Invariant: what no counter tells is None, which is not zero; a counter that fell was started anew, and is
counted from 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

PROMPT = ("prefixlab:prompt_tokens_total", "sglang:prompt_tokens_total", "vllm:prompt_tokens_total")
LOOKED_UP = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
"""Of vLLM only: prompts that no cache was asked for are not among them."""
CACHED = (
    "prefixlab:cached_tokens_total",
    "sglang:cached_tokens_total",
    "vllm:prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_hits_total",
    "vllm:external_prefix_cache_hits_total",
)
REQUESTS = ("prefixlab:requests_total", "sglang:num_requests_total", "vllm:request_success_total")
EVICTED = ("prefixlab:evicted_pages_total", "sglang:evicted_tokens_total")
WANTED = (*PROMPT, *LOOKED_UP, *CACHED, *REQUESTS, *EVICTED)
_TIERS = {"vllm:external_prefix_cache_hits_total": "external"}
_TIER = re.compile(r'(?:tier|cache_source)="([^"]*)"')
_UNTOLD_TIER = "total"
"""SGLang's word where it cannot tell tiers apart."""
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")

Reading = Mapping[str, float]
"""One server's counters at one moment, by series: name and labels as they are spelt."""


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """Growth over a stretch, all servers together. None: not told.

    Attributes:
        prompt_tokens: of prompts taken in.
        looked_up_tokens: of those for which the cache was asked.
        cached_tokens: of prompts, served from any tier.
        by_tier: the same by tier, where the server tells them apart.
        num_requests: that ended.
        num_evicted: pages (ours) or tokens (SGLang's) that the cache gave up.
        num_restarts: servers that counted anew from 0: what they had counted before is lost.
    """

    prompt_tokens: int | None = None
    looked_up_tokens: int | None = None
    cached_tokens: int | None = None
    by_tier: Mapping[str, int] = field(default_factory=dict)
    num_requests: int | None = None
    num_evicted: int | None = None
    num_restarts: int = 0

    @property
    def hit_rate(self) -> float | None:
        if self.cached_tokens is None or not self.prompt_tokens:
            return None
        return self.cached_tokens / self.prompt_tokens

    @classmethod
    def sum(cls, parts: Iterable[ServerCounts]) -> ServerCounts:
        """Of several stretches or servers; a figure that one of them does not tell is not told."""
        several = list(parts)
        tiers: Counter[str] = Counter()
        for part in several:
            tiers.update(part.by_tier)
        return cls(
            prompt_tokens=_sum(part.prompt_tokens for part in several),
            looked_up_tokens=_sum(part.looked_up_tokens for part in several),
            cached_tokens=_sum(part.cached_tokens for part in several),
            by_tier=dict(tiers),
            num_requests=_sum(part.num_requests for part in several),
            num_evicted=_sum(part.num_evicted for part in several),
            num_restarts=sum(part.num_restarts for part in several),
        )


def read_counters(text: str) -> Reading:
    """Those among WANTED in one server's Prometheus text; torn and foreign lines say nothing."""
    found = {}
    for line in text.split("\n"):
        name = _NAME.match(line)
        if name is None or name[0] not in WANTED:
            continue
        series, brace, rest = line.rpartition("}")
        if not brace:
            series, _, rest = line.partition(" ")
        try:
            found[series + brace] = float(rest.split()[0])
        except (ValueError, IndexError):
            continue
    return found


def growth(before: Reading, after: Reading) -> ServerCounts | None:
    """Of one server. A series that appears between the two began at 0. None: it counts nothing we know."""
    if not after:
        return None
    fell = any(after.get(series, 0.0) < value for series, value in before.items())
    grown = {series: value - (0.0 if fell else before.get(series, 0.0)) for series, value in after.items()}
    tiers: Counter[str] = Counter()
    for series, value in grown.items():
        tier = _tier(series)
        if tier is not None and value:
            tiers[tier] += round(value)
    return ServerCounts(
        prompt_tokens=_total(grown, PROMPT),
        looked_up_tokens=_total(grown, LOOKED_UP),
        cached_tokens=_total(grown, CACHED),
        by_tier=dict(tiers),
        num_requests=_total(grown, REQUESTS),
        num_evicted=_total(grown, EVICTED),
        num_restarts=int(fell),
    )


def _total(grown: Reading, names: tuple[str, ...]) -> int | None:
    values = [value for series, value in grown.items() if series.partition("{")[0] in names]
    return round(sum(values)) if values else None


def _tier(series: str) -> str | None:
    name = series.partition("{")[0]
    if name not in CACHED:
        return None
    if name.startswith("vllm:"):
        return _TIERS.get(name, "device")
    label = _TIER.search(series)
    return None if label is None or label[1] == _UNTOLD_TIER else label[1]


def _sum(values: Iterable[int | None]) -> int | None:
    total, known = 0, False
    for value in values:
        if value is None:
            return None
        total, known = total + value, True
    return total if known else None
