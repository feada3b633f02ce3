"""Which faults there are, and what `--sim-fault NAME[=VALUE]` says of them. Plain data.

Owns the names, their values and their words. What a fault does to an answer is the business of
`edge.py` and `answers.py`.

Invariant: a Faults that exists can be acted out; a name or value that cannot is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefixlab.core.errors import ConfigError

FLAG = "--sim-fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong.

    Attributes:
        cached_added, cached_factor: what answers say of cached tokens that is not so.
        hides_cached: they name none.
        keeps_on_flush: a flush says yes, and drops nothing.
        bundle: events that are put into one.
        stall_s, stall_share: how long a stream falls silent in its middle, and how many do.
        eos_rate: of each token, to end a request that ignores the end of sequence.
        drop_share: of requests, answered 503.
        num_miscounted: tokens by which prompts are counted too long.
        foreign_per_s: prompts of nobody's.
        accept_every_s: between two connections taken; each is closed after an answer. None: at once.
    """

    cached_added: int = 0
    cached_factor: float = 1.0
    hides_cached: bool = False
    keeps_on_flush: bool = False
    bundle: int = 1
    stall_s: float = 0.0
    stall_share: float = 1.0
    eos_rate: float = 0.0
    drop_share: float = 0.0
    num_miscounted: int = 0
    foreign_per_s: float = 0.0
    accept_every_s: float | None = None


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One row of the table.

    Attributes:
        value: what stands behind `=`, for people; empty where nothing does.
        meaning: for people.
        read: the value's text → fields of Faults. ValueError if it is none.
    """

    value: str
    meaning: str
    read: Callable[[str], Mapping[str, Any]]


def _lie(text: str) -> Mapping[str, Any]:
    if text.startswith("+"):
        return {"cached_added": _count(text[1:])}
    return {"cached_factor": _above_zero(text)}


def _stall(text: str) -> Mapping[str, Any]:
    seconds, at, share = text.partition("@")
    return {"stall_s": _above_zero(seconds), "stall_share": _share(share) if at else 1.0}


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _above_zero(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise ValueError
    return number


def _share(text: str) -> float:
    number = _above_zero(text)
    if number > 1:
        raise ValueError
    return number


KINDS: Mapping[str, FaultKind] = {
    "lie-cached": FaultKind(
        "+N or FACTOR", "reports hits that were none: N tokens or so many times more", _lie
    ),
    "null-cached": FaultKind("", "reports no cached tokens at all", lambda _: {"hides_cached": True}),
    "keep-on-flush": FaultKind(
        "", "says that the cache was flushed, and keeps it", lambda _: {"keeps_on_flush": True}
    ),
    "bundle": FaultKind("K", "K tokens in one event of a stream", lambda text: {"bundle": _count(text)}),
    "stall": FaultKind(
        "SECONDS[@SHARE]", "streams (or a share of them) fall silent so long in their middle", _stall
    ),
    "ignore-eos-off": FaultKind(
        "RATE",
        "ends outputs early that were told to ignore the end of sequence, with this chance at each token",
        lambda text: {"eos_rate": _share(text)},
    ),
    "drop": FaultKind(
        "SHARE", "this share of requests is answered 503", lambda text: {"drop_share": _share(text)}
    ),
    "miscount": FaultKind(
        "N", "prompts are counted N tokens too long", lambda text: {"num_miscounted": _count(text)}
    ),
    "foreign": FaultKind(
        "RATE",
        "serves made-up prompts of its own beside ours, so many a second",
        lambda text: {"foreign_per_s": _above_zero(text)},
    ),
    "slow-connect": FaultKind(
        "SECONDS",
        "takes one connection in so many seconds, and closes it after its answer",
        lambda text: {"accept_every_s": _above_zero(text)},
    ),
}
"""By name, as `--sim-fault` takes it."""


def parse_faults(words: Sequence[str]) -> Faults:
    """Of all words together.

    Raises:
        ConfigError: a name that is none, a value that cannot be, a fault given twice.
    """
    faults = Faults()
    given: set[str] = set()
    for word in words:
        name, equals, text = word.partition("=")
        kind = KINDS.get(name)
        if kind is None:
            raise ConfigError(f"{FLAG} {word}: there is no such fault, but {', '.join(KINDS)}")
        if name in given:
            raise ConfigError(f"{FLAG} {name} is given twice")
        given.add(name)
        if bool(kind.value) != bool(equals):
            takes = f"takes a value: {name}={kind.value}" if kind.value else "takes no value"
            raise ConfigError(f"{FLAG} {word}: {name} {takes}")
        try:
            faults = replace(faults, **kind.read(text))
        except ValueError:
            raise ConfigError(f"{FLAG} {word}: {text!r} is not {kind.value}") from None
    return faults


def fault_help() -> str:
    """For the flag's help: every name with its value and what it does."""
    rows = [
        f"{name}{'=' + kind.value if kind.value else ''} ({kind.meaning})" for name, kind in KINDS.items()
    ]
    return "; ".join(rows)
