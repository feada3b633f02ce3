"""Run directories as verbs leave them, made up: for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefixlab.bench.records.record import Record
from prefixlab.bench.records.store import write_parquet
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.points.keys import result_keys
from prefixlab.bench.witness.samples import UP, SampleLog, join_metrics, write_metrics
from tests.bench.points import a_point


def write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def save_run(
    path: Path,
    *,
    verb: str = "bench serve",
    records: Sequence[Record] | None = None,
    finished: bool | None = True,
    **summary: Any,
) -> Path:
    """One run; `finished` None: nothing but settings, as of one that was killed."""
    (path / "segments").mkdir(parents=True)
    load = {"request_rate": "inf", "max_concurrency": 4}
    write(path / "config.json", {"verb": verb, "load": load, "report": {"label": None}})
    write(path / "environment.json", {"client_machine": "here", "server": {"page_size": 16}})
    if finished is not None:
        keys = result_keys(a_point()) | {"finished": finished, "date": "20260101-000000"} | summary
        write(path / "summary.json", keys)
        write_parquet(path / "requests.parquet", RecordTable.of(records or a_point().table.to_records()))
    return path


def save_sweep(path: Path, points: Mapping[str, Mapping[str, Any]], verb: str = "bench sweep") -> Path:
    names = [{"name": name, "swept": {}, "config": {}} for name in points]
    write(path / "config.json", {"verb": verb, "points": names})
    for name, summary in points.items():
        save_run(path / name, **summary)
    return path


def save_metrics(run: Path, beats: Mapping[float, str | None], *, segment: int = 0, url: str = "u") -> None:
    """What `/metrics` said at these times; None: nothing."""
    log = SampleLog()
    for time_s, text in beats.items():
        log.add(time_s, text, {UP: float(text is not None)})
    folder = run / f"segments/{segment:04}"
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder / "metrics.parquet", {url: log.samples()})
    join_metrics(run)
