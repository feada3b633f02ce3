"""Goodput: how many requests a second met every objective. After DistServe (arXiv 2401.09670).

Owns the objectives, how they are written (`ttft:500 tpot:50 e2el:3000`, milliseconds, as vLLM's client takes
them), and what meets them.

Invariant: only an ok request is good, and it must meet every objective named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.metrics import latencies
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.table import CODE, BoolArray, RecordTable
from prefixlab.core.errors import ConfigError

_FIELDS = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s"}


@dataclass(frozen=True, slots=True)
class Objectives:
    """The slowest that is good enough; None: anything is."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    @classmethod
    def parse(cls, words: Iterable[str]) -> Objectives:
        """From words such as `ttft:500`. ConfigError for anything else."""
        limits: dict[str, float] = {}
        for word in words:
            name, _, number = word.partition(":")
            field = _FIELDS.get(name)
            if field is None:
                raise ConfigError(f"--goodput {word}: give ttft, tpot or e2el, as in ttft:500 (milliseconds)")
            if field in limits:
                raise ConfigError(f"--goodput names {name} twice")
            try:
                limits[field] = float(number) / 1e3
            except ValueError:
                raise ConfigError(f"--goodput {word}: {number!r} is not a number of milliseconds") from None
            if not 0 < limits[field] < float("inf"):
                raise ConfigError(f"--goodput {word}: must be a positive number of milliseconds")
        if not limits:
            raise ConfigError("--goodput names no objective: give some, as in ttft:500 tpot:50 e2el:3000")
        return cls(**limits)

    def __str__(self) -> str:
        named = ((name, getattr(self, field)) for name, field in _FIELDS.items())
        return " ".join(f"{name}:{limit * 1e3:g}" for name, limit in named if limit is not None)


@dataclass(frozen=True, slots=True)
class Goodput:
    """How well a run met its objectives.

    Attributes:
        num_good: ok requests that met all of them.
        num_ended: ok and failed requests: what `share` is a share of.
        request_goodput: good requests per second of the run; None without a duration.
    """

    objectives: Objectives
    num_good: int
    num_ended: int
    request_goodput: float | None

    @property
    def share(self) -> float | None:
        return self.num_good / self.num_ended if self.num_ended else None


def meets(table: RecordTable, objectives: Objectives, *, open_loop: bool) -> BoolArray:
    """Shape (n,): the good requests. In open loop TTFT and E2E count from intent: a user waits from then on,
    whatever the client did meanwhile. A single token has no TPOT and so meets any."""
    ttft = latencies.ttft_from_intent_s(table) if open_loop else latencies.ttft_s(table)
    e2e = latencies.e2e_from_intent_s(table) if open_loop else latencies.e2e_s(table)
    good = table.ok & (table.num_arrivals > 0)
    if objectives.ttft_s is not None:
        good &= ttft <= objectives.ttft_s
    if objectives.e2e_s is not None:
        good &= e2e <= objectives.e2e_s
    if objectives.tpot_s is not None:
        tpot = latencies.tpot_s(table)
        good &= np.isnan(tpot) | (tpot <= objectives.tpot_s)
    return good


def goodput(table: RecordTable, objectives: Objectives, *, duration_s: float, open_loop: bool) -> Goodput:
    num_good = int(meets(table, objectives, open_loop=open_loop).sum())
    ended = table.ok | (table.outcome == CODE[Outcome.FAILED])
    return Goodput(
        objectives=objectives,
        num_good=num_good,
        num_ended=int(ended.sum()),
        request_goodput=num_good / duration_s if duration_s else None,
    )
