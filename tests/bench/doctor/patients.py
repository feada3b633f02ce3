"""Runs made up by hand: one that nothing is wrong with, and what may be changed of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from prefixlab.bench.doctor.checks import diagnose
from prefixlab.bench.doctor.diagnosis import Check, Diagnosis, Status
from prefixlab.bench.doctor.evidence import Evidence
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics.point import PointResult, evaluate
from prefixlab.bench.records.table import IntArray, RecordTable
from tests.bench.points import a_run, settings_of

NUM_REQUESTS = 600
"""So many that p99 is no luck."""


def healthy_table(
    *, concurrency: int = 4, rate: float | None = None, seed: int = 0, **columns: Any
) -> RecordTable:
    """Every count is reported and right; nothing shares anything."""
    table = a_run(concurrency=concurrency, num_requests=NUM_REQUESTS, rate=rate, seed=seed)
    zeros = np.zeros(len(table), dtype=np.int64)
    told = {
        "num_prompt_tokens": table.planned_prompt_tokens,
        "num_expected_cached_tokens": zeros,
        "num_cached_tokens": zeros,
    }
    return replace(table, **{**told, **columns})


def healthy_client(**fields: Any) -> ClientHealth:
    health = ClientHealth(
        stamps="kernel", num_reads=NUM_REQUESTS * 10, peak_in_flight=4, wall_s=40.0, cpu_s=1.0
    )
    health.send_lag_s.record(0.0001, NUM_REQUESTS)
    for name, value in fields.items():
        setattr(health, name, value)
    return health


def a_result(
    *tables: RecordTable,
    open_loop: bool = False,
    health: ClientHealth | None = None,
    interrupted: bool = False,
) -> PointResult:
    """Of one table per repeat."""
    settings = settings_of(open_loop=open_loop)
    return evaluate(
        settings, tables or [healthy_table()], health or healthy_client(), interrupted=interrupted
    )


def examined(
    *tables: RecordTable,
    open_loop: bool = False,
    health: ClientHealth | None = None,
    ignores_eos: bool | None = True,
    **evidence: Any,
) -> Diagnosis:
    result = a_result(*tables, open_loop=open_loop, health=health)
    return diagnose(Evidence(result=result, ignores_eos=ignores_eos, **evidence))


def named(diagnosis: Diagnosis, name: str) -> Check:
    (check,) = [check for check in diagnosis.checks if check.name == name]
    return check


def troubles(diagnosis: Diagnosis) -> dict[str, str]:
    """What is wrong, by name."""
    return {
        check.name: check.status.value
        for check in diagnosis.checks
        if check.status in (Status.CAUTION, Status.BAD)
    }


def first_rows(values: IntArray, num: int, *, to: int) -> IntArray:
    """A column, with `to` in its first rows."""
    return np.where(np.arange(len(values)) < num, to, values)
