"""What the doctor looks at: a point and its settings, and what is kept of this client. Plain data.

Owns how evidence is gathered from a point that was just measured and from the folder of one that is over.

Invariant: both give the same diagnosis of the same run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefixlab.bench.calibrate import store
from prefixlab.bench.calibrate.store import Calibration
from prefixlab.bench.config.report import ReportConfig
from prefixlab.bench.config.serve import RequestConfig, ServeConfig
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics import intervals, latencies
from prefixlab.bench.metrics.point import PointResult, PointSettings, evaluate
from prefixlab.bench.records.table import FloatArray, RecordTable
from prefixlab.bench.saved.saved_run import SavedRun
from prefixlab.core.errors import ConfigError

SERIES: Mapping[str, Callable[[RecordTable], FloatArray]] = {
    "TTFT": latencies.ttft_s,
    "TPOT": latencies.tpot_s,
    "E2E": latencies.e2e_s,
    "E2E from the schedule": latencies.e2e_from_intent_s,
}
"""What may drift over a run."""


@dataclass(frozen=True, slots=True)
class Alone:
    """How long a prompt takes that no other request holds up.

    Attributes:
        num_computed: tokens that had to be computed, of the median prompt.
    """

    ttft_s: float
    num_computed: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """See the module.

    Attributes:
        knows_client: the client left word of its health.
        ignores_eos: outputs were to go to their full length; None if that is not known.
        calibration: of this machine's client with as many processes; None if there is none.
        tried: when calibrating was tried in vain.
        alone: of another run that sent the like one at a time; None: this one's own records may tell.
        ledger: the keys of the ledger, as results keep them; None of a run that has none.
    """

    result: PointResult
    knows_client: bool = True
    ignores_eos: bool | None = None
    calibration: Calibration | None = None
    tried: str | None = None
    alone: Alone | None = None
    ledger: Mapping[str, Any] | None = None

    @property
    def trends(self) -> list[str]:
        """Latencies that drift over a whole repeat; one that differs from another repeat does not drift."""
        repeats = repeats_of(self.result.table)
        return [name for name, series in SERIES.items() if any(_drifts(table, series) for table in repeats)]


def _drifts(table: RecordTable, series: Callable[[RecordTable], FloatArray]) -> bool:
    """Neighbours resemble each other over all of it, so that no interval of the mean can be given."""
    values = np.where(table.ok, series(table), np.nan)[np.lexsort((table.sent_s, table.segment))]
    values = values[~np.isnan(values)]
    return len(values) >= intervals.FEWEST_VALUES and intervals.of_mean(values) is None


def evidence_of(
    result: PointResult,
    *,
    ignores_eos: bool | None,
    knows_client: bool = True,
    alone: Alone | None = None,
    ledger: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Evidence:
    """`ledger`: of a point that was judged anew without one."""
    num_workers = result.health.num_workers
    left_word = num_workers > 0 or result.health.stamps == "target"
    return Evidence(
        result=result,
        knows_client=knows_client and left_word,
        ignores_eos=ignores_eos,
        calibration=store.load(num_workers, environ),
        tried=store.tried(num_workers, environ),
        alone=alone,
        ledger=ledger if result.ledger is None else result.ledger.keys(),
    )


def saved_evidence(
    run: SavedRun, *, alone: Alone | None = None, environ: Mapping[str, str] = os.environ
) -> Evidence:
    """Of a run that is over; judged anew from its records.

    Raises:
        ConfigError: it did not get as far as a summary, or its files are not ours.
    """
    result, ignores_eos = saved_point(run)
    return evidence_of(
        result,
        ignores_eos=ignores_eos,
        knows_client=run.health is not None,
        alone=alone,
        ledger=run.summary.get("ledger"),
        environ=environ,
    )


def saved_point(run: SavedRun) -> tuple[PointResult, bool]:
    """The point, and whether its outputs ignored the end of sequence. Raises as `saved_evidence`."""
    if not run.summary:
        raise ConfigError(f"{run.path}: the run did not come to its end: there is no summary.json to go by")
    report, request = run.config.get("report") or {}, run.config.get("request") or {}
    backend = str(run.summary.get("backend"))
    told = ReportConfig(
        percentile_metrics=report.get("percentile_metrics", ReportConfig.percentile_metrics),
        metric_percentiles=report.get("metric_percentiles", ReportConfig.metric_percentiles),
    )
    settings = PointSettings(
        backend=backend,
        model=run.summary.get("model_id"),
        num_prompts=int(run.summary.get("num_prompts") or len(run.table)),
        open_loop=run.summary.get("loop") == "open",
        date=str(run.summary.get("date", "")),
        max_concurrency=run.summary.get("max_concurrency"),
        selected=told.metrics(),
        percentiles=told.percentiles(),
        swept=run.swept,
    )
    health = run.health or ClientHealth(num_workers=0)
    interrupted = bool(run.summary.get("interrupted"))
    result = evaluate(settings, repeats_of(run.table), health, interrupted=interrupted)
    asked = RequestConfig(ignore_eos=request.get("ignore_eos"))
    return result, ServeConfig(request=asked).ignores_eos(backend)


def repeats_of(table: RecordTable) -> list[RecordTable]:
    """Pooled rows apart again: a repeat sends every request once, a stretch of a resumed one the rest."""
    if len(np.unique(table.segment)) < 2:
        return [table]
    repeats: list[list[int]] = []
    seen: set[str] = set()
    ids = np.asarray(table.request_id)
    for segment in np.unique(table.segment).tolist():
        here = set(ids[table.segment == segment].tolist())
        if not repeats or here & seen:
            repeats.append([])
            seen = set()
        repeats[-1].append(segment)
        seen |= here
    return [table.select(np.isin(table.segment, segments)) for segments in repeats]
