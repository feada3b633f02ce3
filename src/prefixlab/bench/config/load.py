"""Settings of how requests are paced: arrivals, concurrency, phases.

Owns the choice between open and closed loop, and the flags vLLM's users know for arrivals. The processes
themselves are in `workloads/arrivals.py`.

Invariant: at most one of a rate, a ramp, stages and a schedule says when requests go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefixlab.bench.workloads.arrivals import (
    POISSON,
    FloatArray,
    Rate,
    Stages,
    Steady,
    arrivals,
    arrivals_within,
    parse_stages,
    ramp,
    ramp_bringing,
    read_schedule,
)
from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

LONGEST_SCHEDULE_S = 366 * 86_400.0
"""Beyond any run; in nanoseconds far within 64 bits."""


@dataclass(frozen=True)
class LoadConfig:
    """When requests go."""

    request_rate: float = setting(
        math.inf, "requests per second; inf sends each as soon as --max-concurrency allows, or all at once"
    )
    burstiness: float = setting(
        POISSON,
        "spread of arrivals at a rate: 1 is Poisson, inf constant, others gamma (below 1 burstier)",
    )
    max_concurrency: int | None = setting(
        None, "requests in flight at once (default: no limit)", aliases=("--concurrency",)
    )
    ramp_up_strategy: str | None = setting(
        None,
        "let the rate grow from --ramp-up-start-rps to --ramp-up-end-rps over the run",
        choices=("linear", "exponential"),
    )
    ramp_up_start_rps: float | None = setting(None, "requests per second at the start of the ramp")
    ramp_up_end_rps: float | None = setting(None, "requests per second at its end")
    stage: tuple[str, ...] = setting((), "rates one after another, as 5:60 20:30", metavar="RATE:SECONDS")
    schedule: str | None = setting(
        None,
        "file of arrivals: one offset in seconds per line, or JSON lines with a timestamp in milliseconds",
        metavar="FILE",
    )
    fixed_schedule: bool | None = setting(
        None,
        "send each request at the time the trace has for it (default: so, unless something else says when)",
    )
    duration: float | None = setting(
        None,
        "send nothing after so many seconds; requests may run out before, for without a rate there are as "
        "many as --num-prompts says",
        metavar="SECONDS",
    )
    retries: int = setting(
        0, "further attempts after a failure before the first byte of an answer, or a 429 or 503; counted"
    )
    repeats: int = setting(
        1, "times the run is made, with other random prompts each time; figures are pooled"
    )
    num_warmups: int = setting(
        0, "requests before the run that are not measured, of other prompts", aliases=("--warmup-requests",)
    )
    flush_cache: bool | None = setting(
        None, "empty the server's cache before the measured requests, and prove it (default: sweeps do)"
    )

    def __post_init__(self) -> None:
        ways = [
            name
            for name, given in (
                ("--request-rate", math.isfinite(self.request_rate)),
                ("--ramp-up-strategy", self.ramp_up_strategy is not None),
                ("--stage", bool(self.stage)),
                ("--schedule", self.schedule is not None),
                ("--fixed-schedule", bool(self.fixed_schedule)),
            )
            if given
        ]
        if len(ways) > 1:
            raise ConfigError(f"{' and '.join(ways)} both say when requests go: give one")
        if not self.request_rate > 0:
            raise ConfigError(f"--request-rate must be above 0, not {self.request_rate}")
        if not self.burstiness > 0:
            raise ConfigError(f"--burstiness must be above 0, not {self.burstiness}")
        if self.burstiness != POISSON and (not ways or not self.has_rate):
            raise ConfigError(
                "--burstiness shapes arrivals at a rate: give --request-rate, a ramp or --stage"
            )
        self._check_ramp()
        if self.duration is not None and not 0 < self.duration < math.inf:
            raise ConfigError(f"--duration must be a number of seconds above 0, not {self.duration}")
        for name, least in (("max_concurrency", 1), ("retries", 0), ("repeats", 1), ("num_warmups", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
        if self.stage:
            parse_stages(self.stage)

    def _check_ramp(self) -> None:
        ends = {"--ramp-up-start-rps": self.ramp_up_start_rps, "--ramp-up-end-rps": self.ramp_up_end_rps}
        if self.ramp_up_strategy is None:
            given = [flag for flag, value in ends.items() if value is not None]
            if given:
                raise ConfigError(f"{' and '.join(given)}: give --ramp-up-strategy too")
            return
        missing = [flag for flag, value in ends.items() if value is None]
        if missing:
            raise ConfigError(
                f"--ramp-up-strategy {self.ramp_up_strategy} needs {' and '.join(missing)}, "
                "in requests per second"
            )
        least = 0.0 if self.ramp_up_strategy == "linear" else math.ulp(0.0)
        for flag, value in ends.items():
            if value is None or not least <= value < math.inf:
                raise ConfigError(
                    f"--ramp-up-strategy {self.ramp_up_strategy} needs a {flag} of "
                    f"{'0 or more' if least == 0 else 'more than 0'}, not {value}"
                )
        if not any(ends.values()):
            raise ConfigError("--ramp-up-start-rps and --ramp-up-end-rps are both 0: nothing would be sent")

    @property
    def open_loop(self) -> bool:
        """Each request goes at its time; closed loop only where nothing but concurrency is said."""
        return self.max_concurrency is None or self.has_times

    @property
    def has_times(self) -> bool:
        return self.has_rate or self.schedule is not None or bool(self.fixed_schedule)

    @property
    def has_rate(self) -> bool:
        return math.isfinite(self.request_rate) or self.ramp_up_strategy is not None or bool(self.stage)

    @property
    def ends_by_itself(self) -> bool:
        """Arrivals say how many requests there are, where --num-prompts does not."""
        if self.stage or self.schedule is not None:
            return True
        return self.duration is not None and self.has_rate

    def rate(self, num_requests: int) -> Rate:
        """Only where there is one. A ramp takes --duration, else as long as `num_requests` need."""
        if self.stage:
            return Stages(parse_stages(self.stage))
        if self.ramp_up_strategy is None:
            return Steady(self.request_rate)
        assert self.ramp_up_start_rps is not None and self.ramp_up_end_rps is not None, "checked at the start"
        line = self.ramp_up_strategy, self.ramp_up_start_rps, self.ramp_up_end_rps
        return ramp_bringing(num_requests, *line) if self.duration is None else ramp(*line, self.duration)

    def offsets(
        self, num_requests: int | None, default: int, seed: int, repeat: int = 0
    ) -> FloatArray | None:
        """When requests arrive, in seconds from the start; None where nothing says when, or the data set.

        Args:
            num_requests: as the user said; None leaves it to arrivals that end by themselves, else `default`.

        Raises:
            ConfigError: the schedule cannot be read, or nothing would arrive.
        """
        if not self.has_times or self.fixed_schedule:
            return None
        key = (seed, repeat)
        within_s = math.inf if self.duration is None else self.duration
        if self.schedule is not None:
            offsets = read_schedule(Path(self.schedule))[:num_requests]
        elif num_requests is None and self.ends_by_itself:
            offsets = arrivals_within(self.rate(default), self.burstiness, key, within_s)
        else:
            count = num_requests or default
            offsets = arrivals(self.rate(count), self.burstiness, key, limit=count)
        offsets = offsets[offsets < within_s]
        self.check(offsets)
        return offsets

    def check(self, offsets: FloatArray) -> None:
        """Raises ConfigError if there is none, or a run would not end in anybody's lifetime."""
        if not len(offsets):
            raise ConfigError(f"no request arrives: {self.describe()}")
        if not offsets[-1] <= LONGEST_SCHEDULE_S:
            days = f"{offsets[-1] / 86_400:.3g} days"
            raise ConfigError(
                f"the last request would be sent after {days}, at {self.arrivals()}: send more often"
            )

    def ramp(self) -> dict[str, Any]:
        """Its settings, by the names of vLLM's results; empty without one."""
        if self.ramp_up_strategy is None:
            return {}
        names = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")
        return {name: getattr(self, name) for name in names}

    def arrivals(self) -> str:
        """In words: when requests come. Nothing in closed loop."""
        if self.schedule is not None:
            return f"times from {self.schedule}"
        if self.fixed_schedule:
            return "times of the trace"
        if not self.has_rate:
            return "all at once" if self.open_loop else ""
        shape = {POISSON: "Poisson", math.inf: "constant"}.get(self.burstiness, f"gamma {self.burstiness:g}")
        if self.stage:
            return f"{shape}, stages {' '.join(self.stage)}"
        if self.ramp_up_strategy is not None:
            ends = f"{self.ramp_up_start_rps:g} to {self.ramp_up_end_rps:g} req/s"
            return f"{shape}, {self.ramp_up_strategy} ramp {ends}"
        return f"{shape}, {self.request_rate:g} req/s"

    def describe(self, arrivals: str | None = None) -> str:
        """Which loop, and at what pace; `arrivals` where more is known of them than here."""
        if not self.open_loop:
            return f"closed loop, {self.max_concurrency} in flight"
        cap = "" if self.max_concurrency is None else f", at most {self.max_concurrency} in flight"
        return f"open loop, {arrivals or self.arrivals()}{cap}"
