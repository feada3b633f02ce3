"""Runs made up for comparisons: a steady open loop whose latencies are known, kept in folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefixlab.bench.compare.run import ALL, Run, ours
from prefixlab.bench.compare.side import Point, Side
from prefixlab.bench.metrics.summary import as_result_keys, summarise
from prefixlab.bench.records.record import Record
from prefixlab.bench.records.store import write_parquet
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record

NUM_TOKENS = 5


def a_table(
    num_requests: int = 400,
    *,
    seed: int = 0,
    slower: float = 1.0,
    spread: float = 0.05,
    prompts_seed: int | None = None,
    prefix: str = "",
) -> RecordTable:
    """TTFT 100 ms and ITL 20 ms on average, times `slower`; with `prompts_seed`, prompts differ in cost."""
    rng = np.random.default_rng(seed)
    cost = np.zeros(num_requests)
    if prompts_seed is not None:
        cost = np.random.default_rng(prompts_seed).normal(0, 6 * spread, num_requests)
    records: list[Record] = []
    for number in range(num_requests):
        sent_s = number / 50
        factor = slower * float(np.exp(rng.normal(0, spread) + cost[number]))
        gaps = 0.02 * factor * np.exp(rng.normal(0, spread, NUM_TOKENS - 1))
        arrivals_s = sent_s + 0.1 * factor + np.concatenate([[0.0], np.cumsum(gaps)])
        records.append(
            ok_record(
                f"{prefix}{number}",
                intended_s=sent_s,
                arrivals_s=arrivals_s.tolist(),
                planned_prompt_tokens=64,
                num_prompt_tokens=64,
                planned_output_tokens=NUM_TOKENS,
            )
        )
    return RecordTable.of(records)


def save(
    path: Path,
    table: RecordTable,
    *,
    swept: dict[str, Any] | None = None,
    repeats: int = 1,
    config: dict[str, Any] | None = None,
    version: str = "1",
    cause: str | None = None,
    grade: str = "A",
) -> Path:
    """A run directory that holds what comparisons read."""
    path.mkdir(parents=True)
    options = {"dataset": {"random_input_len": 64}, "load": {"request_rate": 50.0, "repeats": repeats}}
    for section, values in (config or {}).items():
        options.setdefault(section, {}).update(values)
    keys = as_result_keys(summarise(table, len(table)))
    about = {"finished": True, "loop": "open", "swept": swept, "repeats": repeats}
    judged = {"ledger": {"verdict": cause or "consistent", "cause": cause}, "doctor": {"grade": grade}}
    files = {
        "config.json": {"verb": "bench serve", **options, "resolved": {"model": "m"}},
        "environment.json": {"prefixlab": "0.1.0", "server": {"version": version}},
        "summary.json": {**about, **judged, **keys},
    }
    for name, data in files.items():
        (path / name).write_text(json.dumps(data))
    write_parquet(path / "requests.parquet", table)
    return path


def a_side(name: str, tables: Sequence[RecordTable]) -> Side:
    """Repeats of one point that never were in a folder."""
    runs = [
        Run(
            source=name,
            client="prefixlab",
            key={},
            table=table,
            known={},
            definitions=ours(*ALL),
            question={},
            circumstances={},
            open_loop=True,
            planned=len(table),
            failed=0,
        )
        for table in tables
    ]
    return Side(name, (Point({}, tuple(runs)),))
