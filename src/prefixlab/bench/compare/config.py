"""Settings of `compare` and `gate`: what to look at, how small is nothing, how much is too much.

Owns these options, and how shares are written.

Invariant: every value decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from prefixlab.bench.compare.difference import MARGIN
from prefixlab.bench.compare.figures import Figure, parse_figures
from prefixlab.bench.metrics.intervals import LEVEL
from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

_SHARE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(%?)")


@dataclass(frozen=True)
class LookConfig:
    """What both verbs take."""

    figures: tuple[str, ...] = setting(
        (),
        "look only at these, as throughput ttft p99_itl (default: output throughput, and mean, median and "
        "p99 of ttft, tpot, itl and e2el)",
        metavar="FIGURE",
    )
    confidence: str = setting(
        f"{LEVEL:.0%}", "of all intervals together, however many figures there are", metavar="SHARE"
    )
    seed: int = setting(0, "of the random draws behind the intervals")

    def __post_init__(self) -> None:
        if not 0.5 <= self.level < 1:
            raise ConfigError(f"--confidence must be at least 50% and less than 100%, not {self.confidence}")
        if self.seed < 0:
            raise ConfigError(f"--seed must be at least 0, not {self.seed}")
        self.chosen()

    @property
    def level(self) -> float:
        return share("--confidence", self.confidence)

    def chosen(self) -> list[Figure]:
        """Each once; none where all are looked at."""
        return list(dict.fromkeys(figure for word in self.figures for figure in parse_figures(word)))


@dataclass(frozen=True)
class CompareConfig(LookConfig):
    """And what is no difference."""

    margin: str = setting(
        f"{MARGIN:.0%}", "differences within this, either way, are none, as 2%", metavar="SHARE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.margin_share < 1:
            raise ConfigError(f"--margin must lie between 0% and 100%, not {self.margin}")

    @property
    def margin_share(self) -> float:
        return share("--margin", self.margin)


@dataclass(frozen=True)
class GateConfig(LookConfig):
    """And what a gate lets through."""

    max_regression: str = setting("5%", "how much worse B may be, in any figure", metavar="SHARE")
    metric: tuple[str, ...] = setting(
        (), "another limit for one figure, as ttft_p99=10% (it is looked at besides)", metavar="FIGURE=SHARE"
    )
    strict: bool = setting(False, "let nothing through that is not shown to be within its limit")
    any_question: bool = setting(
        False, "judge also where the two were not asked the same (else that is refused)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.limits()
        share("--max-regression", self.max_regression)

    def limits(self) -> dict[str, float]:
        """By figure, of those that have their own."""
        limits: dict[str, float] = {}
        for word in self.metric:
            name, equals, text = word.partition("=")
            if not equals:
                raise ConfigError(f"--metric takes FIGURE=SHARE, as ttft_p99=10%, not {word!r}")
            limits |= {figure.key: share(f"--metric {name}", text) for figure in parse_figures(name)}
        return limits

    def limit(self, figure: str) -> float:
        return self.limits().get(figure, share("--max-regression", self.max_regression))

    def more_figures(self) -> list[Figure]:
        return [figure for word in self.metric for figure in parse_figures(word.partition("=")[0])]


def share(flag: str, text: str) -> float:
    """Of "5%" or "0.05". ConfigError for anything else: 5 may be five percent or five times as much."""
    found = _SHARE.fullmatch(text.strip())
    if not found:
        raise ConfigError(f"{flag} takes a share as 5% or 0.05, not {text!r}")
    value = float(found[1]) / (100 if found[2] else 1)
    if not found[2] and value >= 1:
        raise ConfigError(f"{flag} {text}: write {text}% if that is meant")
    return value
