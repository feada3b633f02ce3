"""Settings of sessions: conversations of several turns, in which each prompt is all that was said before.

Owns the flags of made-up sessions, and of how sessions are paced, whoever made them. Sessions of a file take
the options of traces besides, and none of those that make any up.

Invariant: every number decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from prefixlab.bench.config.trace import TraceConfig
from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

THINK_TIMES = ("constant", "exponential", "lognormal")
MADE_UP = ("turn_len", "system_len", "first_turn_len", "turn_range_ratio")
"""Options that say what a file says."""
DEFAULT_NUM_SESSIONS = 16
DEFAULT_NUM_TURNS = 5


@dataclass(frozen=True)
class SessionsConfig:
    """Sessions of several turns: made up with live answers fed back, or as a file recorded them."""

    DATASETS: ClassVar[tuple[str, ...]] = ("sessions",)

    num_sessions: int | None = setting(
        None, f"conversations in all (default: {DEFAULT_NUM_SESSIONS}; of a file all)"
    )
    num_turns: int | None = setting(
        None,
        f"turns of each conversation (default: {DEFAULT_NUM_TURNS}; of a file as many as it has)",
        aliases=("--num-rounds", "--max-turns"),
    )
    turn_len: int = setting(512, "new prompt tokens of each turn", aliases=("--request-length",))
    turn_output_len: int = setting(64, "output tokens of each turn", aliases=("--output-length",))
    system_len: int = setting(0, "tokens at the start of every conversation, the same in all")
    first_turn_len: int | None = setting(
        None, "new prompt tokens of the first turn behind --system-len (default: --turn-len)"
    )
    turn_range_ratio: float = setting(1.0, "lengths are drawn from [len·R, len]; 1: all the same")
    think_time: float | None = setting(
        None,
        "seconds between an answer and the next turn, on average (default: 0; of a file as it says)",
        aliases=("--delay",),
    )
    think_time_distribution: str = setting(
        "constant",
        "how they vary about that mean; lognormal: with a logarithm of deviation 1",
        choices=THINK_TIMES,
    )

    def __post_init__(self) -> None:
        for name, least in (
            ("num_sessions", 1),
            ("num_turns", 1),
            ("turn_len", 1),
            ("turn_output_len", 1),
            ("system_len", 0),
            ("first_turn_len", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{_flag(name)} must be at least {least}, not {value}")
        if not 0 <= self.turn_range_ratio <= 1:
            raise ConfigError(f"--turn-range-ratio must lie in [0, 1], not {self.turn_range_ratio}")
        if self.think_time is not None and not 0 <= self.think_time < math.inf:
            raise ConfigError(f"--think-time must be seconds, 0 or more, not {self.think_time}")
        if self.think_time_distribution not in THINK_TIMES:
            raise ConfigError(
                f"--think-time-distribution: there is {', '.join(THINK_TIMES)}, "
                f"not {self.think_time_distribution}"
            )
        if self.think_time_distribution != "constant" and not self.think_time:
            raise ConfigError(
                f"--think-time-distribution {self.think_time_distribution} varies about a mean: "
                "give --think-time"
            )

    def check(self, trace: TraceConfig, *, has_file: bool) -> None:
        """Sessions are made up or a trace's: what is for the others is refused.

        Raises:
            ConfigError: it names the flag.
        """
        if not has_file:
            if wrong := _changed(trace):
                raise ConfigError(f"{_flag(wrong[0])} is for sessions of a file: give --dataset-path")
            return
        made_up = [name for name in _changed(self) if name in MADE_UP]
        if made_up:
            raise ConfigError(
                f"{_flag(made_up[0])} is for made-up sessions; with --dataset-path the file says it"
            )
        if trace.factor != 1 and self.think_time is not None:
            raise ConfigError(
                "--speedup and --time-scale change the recorded think times, and --think-time replaces them: "
                "give one"
            )

    def check_file(self, trace: TraceConfig, *, in_words: bool) -> None:
        """A file of conversations in words is asked anew; a trace says how long all was. Raises ConfigError
        for options of the other kind."""
        if in_words and (wrong := _changed(trace)):
            raise ConfigError(f"{_flag(wrong[0])} is for traces, and the file holds conversations in words")
        if not in_words and "turn_output_len" in _changed(self):
            raise ConfigError(
                "--turn-output-len is for made-up sessions and for conversations in words; a trace says it"
            )


def _changed(options: SessionsConfig | TraceConfig) -> list[str]:
    return [
        option.name
        for option in dataclasses.fields(options)
        if getattr(options, option.name) != option.default
    ]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
