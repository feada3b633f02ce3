"""Settings of `bench ab`: which arms there are, and how long they take turns.

Owns those settings and the words of `--arm`. What an arm asks of its server is `bench serve`'s.

Invariant: every number decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from prefixlab.bench.compare.config import share
from prefixlab.bench.compare.figures import Figure, parse_figures
from prefixlab.bench.config.load import LoadConfig
from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

ROUNDS, MAX_ROUNDS = 48, 1000
TURNS_AT_LOW_LOAD, WAVES, OPEN_LOOP_CHUNK = 4, 4, 100
FIGURES = ("ttft_median", "ttft_mean", "tpot_median", "e2el_mean", "output_throughput")

_ARM = re.compile(r"([a-zA-Z0-9][a-zA-Z0-9_-]*)(?::(.*))?", re.DOTALL)
_NEXT_SETTING = re.compile(r",(?=(?:--)?[a-z][a-z0-9_-]*(?:=|,|$))")


@dataclass(frozen=True)
class AbConfig:
    """What `bench ab` sets against what."""

    arm: tuple[str, ...] = setting(
        (),
        "an arm: a name, and the options of bench serve in which it differs, as a:max-concurrency=4 or "
        "b:base-url=http://host:8001 (default: hit, miss and off, the worth of the cache)",
        metavar="NAME:KEY=VALUE,…",
    )
    off_url: str | None = setting(
        None,
        "the same model on a server without a prefix cache, for the arm off (the embedded engine is started "
        "a second time for it)",
        metavar="URL",
    )
    rounds: int | None = setting(None, f"rounds in which every arm has its turn (default: {ROUNDS})")
    chunk: int | None = setting(
        None,
        f"requests of an arm in each of its turns (default: {TURNS_AT_LOW_LOAD} of a closed loop of one, "
        f"{WAVES} for each slot of a wider one, {OPEN_LOOP_CHUNK} in open loop)",
    )
    restart_every: int | None = setting(
        None,
        "start embedded engines anew after so many rounds, and take each start for one pair: two processes "
        "of one engine may differ by some percent, and only that shows by how much",
        metavar="ROUNDS",
    )
    duration: float | None = setting(
        None, "begin no new round after so many seconds of measured requests", metavar="SECONDS"
    )
    until_ci: str | None = setting(
        None,
        "go on until the first figure's 95% interval reaches no further than this to either side, as 3%",
        metavar="SHARE",
    )
    max_rounds: int = setting(MAX_ROUNDS, "rounds after which --until-ci and --duration give up")
    figure: tuple[str, ...] = setting(
        (),
        f"what is compared (default: {' '.join(FIGURES)}); the verdict, and --until-ci, are about the first",
        metavar="FIGURE",
    )

    def __post_init__(self) -> None:
        for name in ("rounds", "chunk", "max_rounds", "restart_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if self.duration is not None and not 0 < self.duration < math.inf:
            raise ConfigError(f"--duration must be above 0 seconds, not {self.duration}")
        if self.rounds is not None and self.until_ci is not None:
            raise ConfigError("--rounds says when to stop, and so does --until-ci: use --max-rounds with it")
        if self.arm and self.off_url is not None:
            raise ConfigError("--off-url is for the arms hit, miss and off; with --arm name it as an arm")
        if not 0 < self.half_width < 1:
            raise ConfigError(f"--until-ci must lie between 0% and 100%, not {self.until_ci}")
        _ = self.figures
        self.settings()

    @property
    def half_width(self) -> float:
        """Of the interval to reach; any where there is none."""
        return 0.5 if self.until_ci is None else share("--until-ci", self.until_ci)

    @property
    def figures(self) -> list[Figure]:
        """Each once, in the order given. ConfigError if one is none."""
        named = [figure for word in self.figure or FIGURES for figure in parse_figures(word)]
        return list(dict.fromkeys(named))

    @property
    def most_rounds(self) -> int:
        if self.rounds is not None:
            return self.rounds
        return ROUNDS if self.until_ci is None and self.duration is None else self.max_rounds

    def chunk_of(self, load: LoadConfig) -> int:
        """Requests of a turn at this load."""
        if self.chunk is not None:
            return self.chunk
        if load.open_loop:
            return OPEN_LOOP_CHUNK
        assert load.max_concurrency is not None, "a closed loop has slots"
        return TURNS_AT_LOW_LOAD if load.max_concurrency == 1 else WAVES * load.max_concurrency

    def settings(self) -> dict[str, list[str]]:
        """The words of `--arm`, as flags by the name of the arm; empty without any.

        Raises:
            ConfigError: a word cannot be read, a name stands twice, or there is only one arm.
        """
        arms: dict[str, list[str]] = {}
        for word in self.arm:
            found = _ARM.fullmatch(word)
            if found is None:
                raise ConfigError(
                    f"--arm takes NAME:KEY=VALUE,… with a name of letters, digits, - and _, not {word!r}"
                )
            name, rest = found[1], found[2] or ""
            if name in arms:
                raise ConfigError(f"--arm names {name} twice")
            arms[name] = [flag for part in _NEXT_SETTING.split(rest) if part for flag in _flag(part)]
        if len(arms) == 1:
            raise ConfigError(f"--arm {self.arm[0]} stands alone: an A/B needs a second arm")
        return arms


def _flag(part: str) -> list[str]:
    key, equals, value = part.partition("=")
    flag = "--" + key.strip().removeprefix("--").replace("_", "-")
    return [f"{flag}={value}"] if equals else [flag]
