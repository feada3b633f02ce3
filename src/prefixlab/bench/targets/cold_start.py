"""Making a server's cache cold, and finding out whether it is.

Owns the one thing no answer can be trusted for: a flush that says yes may have dropped nothing, or not every
tier. So a prompt is cached on purpose, seen to hit, flushed, and seen not to hit any more. A server that
cannot be emptied, or says it was and was not, is given prompts it has never seen instead.

Invariant: PROVEN only after a hit turned into a miss.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from prefixlab.bench.targets.control import Control
from prefixlab.bench.workloads.wording import Prompt

AskCached = Callable[[Prompt], int | None]
"""Sends a prompt for one token; returns the cached tokens reported. Raises TargetError if it failed."""


class Coldness(enum.Enum):
    PROVEN = "proven"
    """A probe hit, the cache was flushed, the probe missed."""
    ASSUMED = "assumed"
    """The server says it flushed, and reports too little to check."""
    SALTED = "salted"
    """The cache was not emptied; the prompts are new to the server."""


@dataclass(frozen=True, slots=True)
class ColdStart:
    """How cold the cache is, and how that is known.

    Attributes:
        lied: the server said that it had dropped everything, and had not.
    """

    coldness: Coldness
    detail: str
    lied: bool = False


def start_cold(control: Control, ask_cached: AskCached, probe: Prompt, *, can_hit: bool) -> ColdStart:
    """Flush the cache and prove it with `probe`.

    Args:
        can_hit: whether a second sending of the probe would hit: it is longer than a page, and hits are not
            switched off.
    """
    hit = None
    if can_hit:
        # Usually cached by the point before; evicted since, or at the first point, it takes a second sending.
        hit = ask_cached(probe) or ask_cached(probe)
    answer = control.flush()
    if not answer.done:
        return ColdStart(Coldness.SALTED, f"the cache could not be flushed: {answer.detail}")
    if not can_hit:
        return ColdStart(Coldness.ASSUMED, "no probe could have hit")
    left = ask_cached(probe)
    if left:
        return ColdStart(
            Coldness.SALTED,
            f"the flush said yes ({answer.detail}), but a probe still found {left} cached tokens",
            lied=True,
        )
    if hit is None or left is None:
        return ColdStart(Coldness.ASSUMED, "the server does not report cached tokens")
    if hit == 0:
        return ColdStart(
            Coldness.ASSUMED, "a prompt sent twice reported 0 cached tokens, so a miss proves nothing"
        )
    return ColdStart(Coldness.PROVEN, f"a probe found {hit} cached tokens before the flush, 0 after")
