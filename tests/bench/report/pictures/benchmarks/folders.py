"""Folders of results as verbs and as Dynamo's scripts leave them, made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics.goodput import Objectives
from prefixlab.bench.metrics.point import PointResult, PointSettings, evaluate
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.store import write_parquet
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.points.keys import result_keys
from tests.bench.helpers import ok_record

TTFT_S, GAP_S, NUM_TOKENS = 0.1, 0.02, 11
AIPERF = Path(__file__).parents[3] / "compare" / "data"


def rows(
    concurrency: int,
    *,
    tokens: int,
    repeat: int = 0,
    failed: int = 0,
    slower: float = 1.0,
    waves: int = 10,
) -> list[Record]:
    """So many waves of `concurrency` requests, each wave together; every fourth request gets its tokens half
    as fast. Repeats differ by a tenth in their gaps."""
    records = []
    for number in range(concurrency * waves):
        gap_s = slower * GAP_S * (2 if number % 4 == 3 else 1) * (1 + 0.1 * repeat)
        sent_s = 2.0 * (number // concurrency)
        arrivals_s = [sent_s + TTFT_S + gap_s * token for token in range(tokens)]
        records.append(
            ok_record(
                f"repeat{repeat}-r{number}",
                intended_s=sent_s,
                arrivals_s=arrivals_s,
                planned_prompt_tokens=64,
                planned_output_tokens=tokens,
            )
        )
    for number in range(failed):
        records.append(
            Record(
                f"repeat{repeat}-f{number}",
                Outcome.FAILED,
                intended_s=0.0,
                sent_s=0.0,
                last_s=0.01,
                failure=Failure.HTTP_STATUS,
                http_status=503,
                error="HTTP 503: full",
            )
        )
    return records


def save_point(
    path: Path,
    concurrency: int | None = 1,
    *,
    label: str | None = None,
    tokens: int = NUM_TOKENS,
    repeats: int = 1,
    failed: int = 0,
    slower: float = 1.0,
    goodput: str = "",
    swept: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
    **summary: Any,
) -> PointResult:
    """A finished run."""
    level = concurrency or 1
    tables = [
        RecordTable.of(rows(level, tokens=tokens, repeat=repeat, failed=failed, slower=slower))
        for repeat in range(repeats)
    ]
    settings = PointSettings(
        backend="openai",
        model="some-model",
        num_prompts=level,
        open_loop=False,
        date="20260131-140500",
        label=label,
        max_concurrency=concurrency,
        objectives=Objectives.parse(goodput.split()) if goodput else None,
        swept=swept or {},
    )
    result = evaluate(settings, tables, ClientHealth(stamps="kernel"))
    (path / "segments").mkdir(parents=True)
    write(
        path / "config.json", {"verb": "bench serve", "load": {"repeats": repeats}, "command": "prefixlab …"}
    )
    write(
        path / "environment.json",
        {
            "client_machine": "a machine",
            "prefixlab": "0.1.0",
            "git_commit": "0123456789abcdef",
            "started": "20260131-140500",
            "seed": 7,
            "url": "http://here",
            "server": {"backend": "sglang", "version": "0.9", **(server or {})},
        },
    )
    write(path / "summary.json", {"finished": True, **result_keys(result), **summary})
    write_parquet(path / "requests.parquet", result.table)
    return result


def save_sweep(path: Path, levels: Sequence[int] = (1, 4), **point: Any) -> list[PointResult]:
    write(path / "config.json", {"verb": "bench sweep", "points": [{}] * len(levels)})
    swept = point.pop("swept", {})
    return [
        save_point(path / f"{number:03}", level, swept={**swept, "max-concurrency": level}, **point)
        for number, level in enumerate(levels)
    ]


def write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def save_aiperf(path: Path, concurrency: int = 4, *, records: bool = True, **changed: Any) -> dict[str, Any]:
    """A real result of aiperf, with another concurrency in it; returns its summary."""
    path.mkdir(parents=True)
    data: dict[str, Any] = json.loads((AIPERF / "profile_export_aiperf.json").read_text())
    data["input_config"]["phases"][0]["concurrency"] = concurrency
    data |= changed
    write(path / "profile_export_aiperf.json", data)
    if records:
        (path / "profile_export.jsonl").write_bytes((AIPERF / "profile_export.jsonl").read_bytes())
    return data
