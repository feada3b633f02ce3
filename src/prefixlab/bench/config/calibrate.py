"""Settings of `bench calibrate`. Owns which options there are and their defaults.

Invariant: `resolve` returns every number decided or refuses by the flag's name; defaults live only here.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

LONGEST_S = 86_400.0


@dataclass(frozen=True)
class CalibrateConfig:
    """`bench calibrate` as given: the load to try the client with."""

    max_concurrency: int = setting(256, "streams at once", aliases=("--concurrency",))
    request_rate: float | None = setting(
        None, "requests a second, at set times (default: a new one whenever one ends)"
    )
    num_prompts: int | None = setting(None, "requests (default: 4 times --max-concurrency)")
    output_len: int = setting(128, "tokens of each stream")
    ttft_ms: float = setting(100.0, "time to the first token")
    itl_ms: float = setting(10.0, "time between two tokens of a stream")
    num_workers: int | None = setting(None, "client processes (default: as the benchmarks choose)")
    quick: bool = setting(False, "fewer requests and coarser steps: seconds instead of a minute or two")

    def __post_init__(self) -> None:
        for name in ("max_concurrency", "num_prompts", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if self.output_len < 2:
            raise ConfigError(f"--output-len must be at least 2, or there is no ITL, not {self.output_len}")
        if self.request_rate is not None and not 0 < self.request_rate < float("inf"):
            raise ConfigError(f"--request-rate must be a positive number, not {self.request_rate}")
        if self.request_rate is not None and self.num_requests / self.request_rate > LONGEST_S:
            raise ConfigError(
                f"--request-rate {self.request_rate}: {self.num_requests} requests would take days"
            )
        if not 0 <= self.ttft_ms < 60_000:
            raise ConfigError(f"--ttft-ms must lie in [0, 60000), not {self.ttft_ms}")
        if not 0.1 <= self.itl_ms < 60_000:
            raise ConfigError(f"--itl-ms must lie in [0.1, 60000), not {self.itl_ms}")

    @property
    def num_requests(self) -> int:
        if self.num_prompts is not None:
            return self.num_prompts
        return self.max_concurrency * (1 if self.quick else 4)
