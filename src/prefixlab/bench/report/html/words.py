"""How the report writes figures: few digits, a unit, the interval beside them. "n/a" is never 0.

Owns digits, and the short definitions; the long ones are docs/measuring.md's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NOTHING = "n/a"

DEFINITIONS: Mapping[str, str] = {
    "TTFT": "time to first token: first arrival - sent. Opening a connection is before, so not inside.",
    "TPOT": "time per output token of a request: (E2E - TTFT) ÷ (output tokens - 1).",
    "ITL": "inter-token latency: the gap before an event ÷ the tokens it brought, once for each of them; "
    "pooled over all tokens, so long answers count for more.",
    "E2E": "end-to-end latency: last token - sent.",
    "Output throughput": "output tokens of ok requests ÷ duration, ramp and drain included.",
    "Steady throughput": "the same inside the stretch in which as many requests are in flight as there will "
    "be (closed loop), or in the last two thirds of the arrivals (open loop).",
    "Hit rate": "cached ÷ prompt tokens, as the server reports them; what it did not report is n/a, not 0.",
    "Expected": "what a cache that holds every page it has seen would serve of these very prompts, rounded "
    "down to pages, one token left to compute.",
    "Interval, band": "95 %, of batches of neighbouring requests (or of repeats, where there are enough): "
    "neighbours share a queue and a cache, so they are not independent.",
    "Percentile": "of all requests pooled (of ITL, all tokens), interpolated linearly, never averaged.",
    "Queued": "due and not yet sent: waiting for a slot or a connection. Drawn from intended to sent.",
}


_LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E", "content_ttft": "TTFT of content"}


def short(value: float | None, digits: int = 4) -> str:
    """So many significant digits, thousands grouped."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(places, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float | None, digits: int = 1) -> str:
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"


def number_at(keys: Mapping[str, Any], name: str) -> float | None:
    """A key of a summary, if it is a number."""
    value = keys.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def interval_at(keys: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Its 95 % interval, where there is one."""
    found = (keys.get("intervals_95") or {}).get(name)
    return (float(found[0]), float(found[1])) if found else None


def with_interval(keys: Mapping[str, Any], name: str) -> str:
    """As "22.8 (22.0 … 24.0)"."""
    value, interval = number_at(keys, name), interval_at(keys, name)
    if interval is None or value is None:
        return short(value, 3)
    return f"{short(value, 3)} ({short(interval[0], 3)} … {short(interval[1], 3)})"


def figure_name(key: str) -> str:
    """A result key as people read it: p99_ttft_ms is "TTFT p99, ms"."""
    if key.endswith("_ms"):
        statistic, _, latency = key.removesuffix("_ms").partition("_")
        name = latency.removesuffix("_from_intent")
        words = _LATENCIES.get(name, name.replace("_", " "))
        return f"{words} {statistic}, ms{' from the schedule' if name != latency else ''}"
    return key.replace("_", " ")


def plain(value: Any) -> str:
    """Any value of a settings file, for people."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return short(value, 6)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 100_000 else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    return str(value)
