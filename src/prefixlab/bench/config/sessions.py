"""Settings of sessions: conversations of several turns, in which each prompt is all that was said before.

Owns the flags of made-up sessions, and of how sessions are paced, whoever made them.

Invariant: every number decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prefixlab.core.config import setting

THINK_TIMES = ("constant", "exponential", "lognormal")


@dataclass(frozen=True)
class SessionsConfig:
    """Made-up sessions of several turns, live answers fed back."""

    DATASETS: ClassVar[tuple[str, ...]] = ("sessions",)

    num_sessions: int = setting(16, "conversations in all")
    num_turns: int = setting(5, "turns of each conversation", aliases=("--num-rounds",))
    turn_len: int = setting(512, "new prompt tokens of each turn", aliases=("--request-length",))
    turn_output_len: int = setting(64, "output tokens of each turn", aliases=("--output-length",))
    system_len: int = setting(0, "tokens at the start of every conversation, the same in all")
    first_turn_len: int | None = setting(None, "new prompt tokens of the first turn, where it differs")
    turn_range_ratio: float = setting(1.0, "lengths are drawn from [len·R, len]; 1: all the same")
    think_time: float = setting(0.0, "seconds between an answer and the next turn", aliases=("--delay",))
    think_time_distribution: str = setting("constant", "how they vary about that mean", choices=THINK_TIMES)
