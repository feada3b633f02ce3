"""Settings of the scheduler: one frozen dataclass, from which flags and environment variables are made."""

from __future__ import annotations

from dataclasses import dataclass

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

POLICIES = ("fcfs", "lpm", "dfs-weight", "lof", "random", "priority")


@dataclass(frozen=True)
class SchedulerConfig:
    """Who goes first, how much at once, and what happens when there is too much."""

    schedule_policy: str = setting("fcfs", "order of the waiting queue", choices=POLICIES)
    max_running_requests: int = setting(64, "requests computed side by side")
    max_prefill_tokens: int = setting(
        16384, "prompt tokens computed in one step, all requests together", aliases=("--max-extend-tokens",)
    )
    chunked_prefill_size: int = setting(
        2048,
        "longest piece of one prompt computed in one step, rounded down to pages; -1 computes prompts whole",
    )
    enable_mixed_chunk: bool = setting(False, "decode running requests in the same step as a prefill")
    schedule_conservativeness: float = setting(
        1.0, "how much of each request's possible output is kept free on admission; higher retracts less"
    )
    in_batch_deferral_threshold: int = setting(
        32, "tokens a waiting request must share with one being computed to wait for it; -1 never waits"
    )
    max_queued_requests: int | None = setting(None, "waiting requests beyond which new ones get 503")
    queue_timeout_s: float | None = setting(None, "seconds a request may wait before it is ended")
    running_timeout_s: float | None = setting(None, "seconds a request may run before it is ended")
    priority_preemption_threshold: int = setting(
        10,
        "priority policy: a waiting request preempts a running one whose priority is lower by more than this",
    )
    schedule_low_priority_values_first: bool = setting(False, "priority policy: lower values run first")
    schedule_seed: int = setting(0, "seed of the random policy")

    def __post_init__(self) -> None:
        if self.schedule_policy not in POLICIES:
            raise ConfigError(
                f"--schedule-policy {self.schedule_policy!r} is not one of {', '.join(POLICIES)}"
            )
        if self.schedule_low_priority_values_first and self.schedule_policy != "priority":
            raise ConfigError("--schedule-low-priority-values-first needs --schedule-policy priority")
        if self.priority_preemption_threshold < 0:
            raise ConfigError("--priority-preemption-threshold must not be negative")
        positive = ("max_running_requests", "max_prefill_tokens")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.chunked_prefill_size != -1 and self.chunked_prefill_size < 1:
            raise ConfigError(
                f"--chunked-prefill-size must be -1 or at least 1, not {self.chunked_prefill_size}"
            )
        if self.schedule_conservativeness < 0:
            raise ConfigError("--schedule-conservativeness must not be negative")
        if self.in_batch_deferral_threshold < -1:
            raise ConfigError("--in-batch-deferral-threshold must be -1 or more")
        for name in ("max_queued_requests", "queue_timeout_s", "running_timeout_s"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"--{name.replace('_', '-')} must not be negative, not {value}")
