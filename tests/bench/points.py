"""Points as `bench serve` would measure them, made up: a closed or open loop over a few slots."""

from __future__ import annotations

import numpy as np

from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics.goodput import Objectives
from prefixlab.bench.metrics.point import PointResult, PointSettings, evaluate
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record

NUM_TOKENS = 10


def a_run(
    *,
    concurrency: int = 4,
    num_requests: int = 200,
    seed: int = 0,
    rate: float | None = None,
    failed: int = 0,
) -> RecordTable:
    """TTFT 0.1 s and some, ITL 0.02 s on average. With a rate requests come at it, else as slots free."""
    rng = np.random.default_rng(seed)
    free_at = [0.0] * concurrency
    records: list[Record] = []
    for number in range(num_requests):
        slot = int(np.argmin(free_at))
        intended_s = free_at[slot] if rate is None else number / rate
        sent_s = max(free_at[slot], intended_s)
        arrivals_s = (sent_s + 0.1 + np.cumsum(rng.exponential(0.02, NUM_TOKENS))).tolist()
        free_at[slot] = arrivals_s[-1]
        records.append(
            ok_record(
                f"r{number}",
                intended_s=intended_s,
                sent_s=sent_s,
                arrivals_s=arrivals_s,
                planned_prompt_tokens=64,
                planned_output_tokens=NUM_TOKENS,
            )
        )
    for number in range(failed):
        records.append(
            Record(
                f"f{number}",
                Outcome.FAILED,
                intended_s=0.0,
                sent_s=0.0,
                last_s=0.01,
                failure=Failure.HTTP_STATUS,
                http_status=503,
                error="HTTP 503: full",
            )
        )
    return RecordTable.of(records)


def settings_of(
    *,
    open_loop: bool = False,
    concurrency: int = 4,
    goodput: str = "",
    percentiles: tuple[float, ...] = (99.0,),
) -> PointSettings:
    return PointSettings(
        backend="openai",
        model="some-model",
        num_prompts=200,
        open_loop=open_loop,
        request_rate=50.0 if open_loop else float("inf"),
        arrivals="Poisson" if open_loop else "",
        date="20260101-000000",
        max_concurrency=concurrency,
        percentiles=percentiles,
        objectives=Objectives.parse(goodput.split()) if goodput else None,
        swept={"--max-concurrency": concurrency},
    )


def a_point(
    *,
    open_loop: bool = False,
    repeats: int = 1,
    concurrency: int = 4,
    failed: int = 0,
    goodput: str = "",
    percentiles: tuple[float, ...] = (99.0,),
    health: ClientHealth | None = None,
) -> PointResult:
    """In open loop at about twice what the slots carry."""
    runs = [
        a_run(concurrency=concurrency, seed=seed, rate=28.0 if open_loop else None, failed=failed)
        for seed in range(repeats)
    ]
    asked = settings_of(
        open_loop=open_loop, concurrency=concurrency, goodput=goodput, percentiles=percentiles
    )
    return evaluate(asked, runs, health or ClientHealth(stamps="kernel"))
