"""A server with a prefix cache, on virtual time: what a request takes depends on what it finds there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.targets.control import FlushAnswer, ServerFacts
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import IdWording
from tests.bench.virtual_driver import VirtualDriver

PAGE = 16
PROMPT_TOKEN_S, TOKEN_S = 1e-4, 1e-3
FACTS = ServerFacts("prefixlab", model="m", page_size=PAGE, vocab_size=4096, max_model_len=4096)


@dataclass
class Machine:
    """What servers share. It gets slower with every request it has served, and is never quite even."""

    drift: float = 0.0
    noise: float = 0.0
    served: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def takes(self, seconds: float) -> float:
        self.served += 1
        uneven = self.rng.normal(1.0, self.noise) if self.noise else 1.0
        return float(seconds * (1 + self.drift * self.served) * uneven)


@dataclass
class CachingDriver(VirtualDriver):
    """One after another. `path_s`: what every request costs besides its tokens."""

    machine: Machine = field(default_factory=Machine)
    caches: bool = True
    path_s: float = 0.0
    factor: float = 1.0
    pages: set[bytes] = field(default_factory=set)

    def _play(self, planned: list[Planned], load: Load) -> list[Record]:
        now_s, records = 0.0, []
        for one in planned:
            found = self._found(one)
            computed_s = (one.num_prompt_tokens - found) * PROMPT_TOKEN_S + self.path_s
            first_s = now_s + self.machine.takes(computed_s * self.factor)
            arrivals = tuple(first_s + TOKEN_S * n for n in range(one.request.max_new_tokens))
            record = self._record(one, now_s, now_s, arrivals)
            if record.outcome is Outcome.OK:
                record = replace(record, num_cached_tokens=found)
            records.append(record)
            now_s = arrivals[-1]
        return records

    def _found(self, one: Planned) -> int:
        tokens = one.request.prompt_token_ids
        assert tokens is not None
        keys = [tokens[: end + PAGE].tobytes() for end in range(0, len(tokens) - PAGE + 1, PAGE)]
        hits = next((number for number, key in enumerate(keys) if key not in self.pages), len(keys))
        if not self.caches:
            return 0
        self.pages |= set(keys)
        return 0 if one.request.extra_body.get("force_miss") else min(hits, (len(tokens) - 1) // PAGE) * PAGE


@dataclass
class Emptied:
    """The server's control."""

    driver: CachingDriver

    def facts(self) -> ServerFacts:
        return FACTS

    def flush(self) -> FlushAnswer:
        self.driver.pages.clear()
        return FlushAnswer(True, "asked")

    def metrics_text(self) -> str | None:
        return None


@dataclass
class Site:
    """Every server that settings may name: by URL, or with --cache none. Each start of one is faster or
    slower than the others by `luck`."""

    machine: Machine = field(default_factory=Machine)
    backend: str = "prefixlab"
    path_s: float = 0.0
    luck: float = 0.0
    drivers: dict[str, CachingDriver] = field(default_factory=dict)

    @contextmanager
    def open(self, config: ServeConfig) -> Iterator[Endpoint]:
        off = config.engine.get("cache") == "none" or config.target.expect_miss
        url = config.target.base_url or ("http://off" if off else "http://on")
        path_s = 0.0 if off else self.path_s
        driver = self.drivers.setdefault(
            url, CachingDriver(machine=self.machine, caches=not off, path_s=path_s)
        )
        driver.factor = self.machine.rng.normal(1.0, self.luck) if self.luck else 1.0
        driver.pages.clear()
        fields: dict[str, Any] = {"expects_miss": "the cache shares nothing"} if off else {}
        yield Endpoint(
            **{
                "url": url,
                "backend": self.backend,
                "model": "m",
                "driver": driver,
                "num_workers": None,
                "control": Emptied(driver),
                "facts": replace(FACTS, backend=self.backend),
                "warnings": (),
                "wording": IdWording(Vocabulary.of_size(4096, "for the test")),
                "page_size": PAGE,
                "expects_miss": None,
                "ignore_eos": True,
                "extra_body": {},
                **fields,
            }
        )
