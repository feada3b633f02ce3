"""Settings of `bench saturate`: what is looked for, how closely, and what a probe is.

Owns those settings, and how a load becomes the settings of a probe. The probes' own are `bench serve`'s.

Invariant: every number decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from prefixlab.bench.config.dataset import TRACE_DATASETS
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.saturate.search import Search
from prefixlab.bench.workloads.arrivals import POISSON
from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

RATE, CONCURRENCY = "rate", "concurrency"
FEWEST_REQUESTS = 200
"""Of a probe: a share of 95 % is then known to within 1.5 %, if requests are independent."""
FEWEST_JUDGED = 40
WAVES = 10
"""Requests for each slot of a closed loop, where nothing else says how many."""
CAPACITY_CONCURRENCY = 64
CAPACITY_WAVES = 4
GUESSED_CONCURRENCY = 16.0
SPREADS = {"told": math.log(2), "measured": math.log(2), "unknown": math.log(4)}
"""Of the belief at the beginning: within this of the guess the knee lies as likely as not."""


@dataclass(frozen=True)
class SaturateConfig:
    """What `bench saturate` looks for."""

    find: str = setting(
        RATE,
        "what to raise: rate (requests per second, in open loop) or concurrency (in flight, in closed loop)",
        choices=(RATE, CONCURRENCY),
    )
    share: float = setting(0.95, "part of requests that must meet --goodput, above 0 and below 1")
    tolerance: float = setting(
        0.05, "stop when the answer is sure to within this part of itself", metavar="PART"
    )
    max_probes: int = setting(10, "stop after so many probes, however sure")
    start: float | None = setting(
        None,
        "where to begin (default: 80 % of what a short closed loop of 64 gets through; of concurrency 16)",
        metavar="LOAD",
        aliases=("--from",),
    )
    burstiness: float = setting(
        POISSON, "spread of arrivals at a rate: 1 is Poisson, inf constant, others gamma (below 1 burstier)"
    )
    probe_duration: float = setting(
        20.0,
        "seconds of arrivals of a probe; a queue must have time to grow beyond --goodput's ttft",
        metavar="SECONDS",
    )
    probe_requests: int = setting(
        FEWEST_REQUESTS, "requests of a probe at least, however few seconds they take"
    )

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"--share must lie above 0 and below 1, not {self.share}")
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"--tolerance must lie above 0 and below 1, not {self.tolerance}")
        if self.probe_requests < FEWEST_JUDGED:
            raise ConfigError(
                f"--probe-requests must be at least {FEWEST_JUDGED}, or no probe can be judged, not "
                f"{self.probe_requests}"
            )
        if self.max_probes < 2:
            raise ConfigError(f"--max-probes must be at least 2, not {self.max_probes}")
        if self.start is not None and not 0 < self.start < math.inf:
            raise ConfigError(f"--from must be a number above 0, not {self.start}")
        if not self.burstiness > 0:
            raise ConfigError(f"--burstiness must be above 0, not {self.burstiness}")
        if self.whole and self.burstiness != POISSON:
            raise ConfigError("--burstiness is of arrivals at a rate: leave it out with --find concurrency")
        if not 0 < self.probe_duration < math.inf:
            raise ConfigError(f"--probe-duration must be above 0 seconds, not {self.probe_duration}")

    @property
    def whole(self) -> bool:
        return self.find == CONCURRENCY

    @property
    def unit(self) -> str:
        return "in flight" if self.whole else "req/s"

    def check(self, config: ServeConfig) -> None:
        """Raises ConfigError where a probe's settings say already what is looked for, or nothing is asked."""
        load = config.load
        if config.report.objectives() is None:
            raise ConfigError(
                "bench saturate needs to know what is good enough: give --goodput, as in --goodput ttft:500 "
                "tpot:50"
            )
        if config.dataset.dataset_name in TRACE_DATASETS:
            raise ConfigError(
                "a trace has its own times: bench trace --speedup 1,2,4 --goodput … shows which speed still "
                "meets them"
            )
        taken = [
            flag
            for flag, given in (
                ("--request-rate", math.isfinite(load.request_rate)),
                ("--ramp-up-strategy", load.ramp_up_strategy is not None),
                ("--stage", bool(load.stage)),
                ("--schedule", load.schedule is not None),
                ("--max-concurrency", self.whole and load.max_concurrency is not None),
                ("--repeats", load.repeats > 1),
                ("--duration", load.duration is not None),
                ("--num-prompts", config.dataset.num_prompts is not None),
            )
            if given
        ]
        if taken:
            raise ConfigError(f"{taken[0]} is decided by the search of bench saturate: leave it out")

    def search(self, capacity: float | None) -> Search:
        """What to look for, given what a closed loop got through, if that was measured (requests/s)."""
        if self.start is not None:
            guess, spread = self.start, SPREADS["told"]
        elif capacity is not None:
            guess, spread = 0.8 * capacity, SPREADS["measured"]
        else:
            guess, spread = GUESSED_CONCURRENCY, SPREADS["unknown"]
        return Search(guess, spread, self.tolerance, self.max_probes, self.whole)

    def probe(self, config: ServeConfig, number: int, load: float, throughput: float | None) -> ServeConfig:
        """The settings of a probe.

        Args:
            number: of the probe: prompts are other ones each time, or the cache would know them.
            throughput: requests/s seen so far, for how many a closed loop needs.
        """
        if self.whole:
            enough = max(WAVES * load, (throughput or 0.0) * self.probe_duration)
            paced = dataclasses.replace(config.load, max_concurrency=int(load))
        else:
            enough = load * self.probe_duration
            paced = dataclasses.replace(config.load, request_rate=load, burstiness=self.burstiness)
        return _sized(config, number, paced, max(self.probe_requests, math.ceil(enough)))

    def capacity_probe(self, config: ServeConfig) -> ServeConfig:
        """A short closed loop: what gets through at most, or nearly."""
        slots = config.load.max_concurrency or CAPACITY_CONCURRENCY
        paced = dataclasses.replace(config.load, max_concurrency=slots)
        return _sized(config, 0, paced, CAPACITY_WAVES * slots)


def _sized(config: ServeConfig, number: int, paced: LoadConfig, num_prompts: int) -> ServeConfig:
    dataset = dataclasses.replace(
        config.dataset,
        seed=config.dataset.seed + number,
        num_prompts=num_prompts,
    )
    return dataclasses.replace(config, load=paced, dataset=dataset)
