"""The sweep: many points, on one server after another, each a run of its own.

Owns the order of points, their folders, and which of them are done already. A point is `serve.py`'s.

Invariants: a point's requests depend on its own settings, not on which others run; every point starts from a
cache as cold as the server can make it, unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.records.run_dir import CONFIG, RunDir, is_finished
from prefixlab.bench.runs import files
from prefixlab.bench.runs.checks import check_point
from prefixlab.bench.runs.remembered import remembered_endpoint
from prefixlab.bench.runs.serve import ServeRun, Watcher
from prefixlab.bench.runs.trace import within_limits
from prefixlab.bench.runs.trial import try_out
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.files.saved import path_of
from prefixlab.core.errors import ConfigError, TargetError
from prefixlab.core.seams import Tokenizer

POINT_VERB = "bench serve"
"""A point's folder is that of a run of this verb, and can be read and resumed as one."""


@dataclass(frozen=True)
class SweepPoint:
    """One point on one server.

    Attributes:
        name: of its folder.
        swept: what it sets, for reports.
    """

    name: str
    swept: Mapping[str, Any]
    config: ServeConfig


OpenEndpoint = Callable[[ServeConfig], AbstractContextManager[Endpoint]]
MakeTokenizer = Callable[[ServeConfig, Endpoint], Tokenizer | None]
OnPoint = Callable[[SweepPoint, PointResult], None]


def run_sweep(
    points: Sequence[SweepPoint],
    open_endpoint: OpenEndpoint,
    make_tokenizer: MakeTokenizer,
    *,
    folder: Path | None,
    watcher: Watcher,
    on_point: OnPoint,
) -> Iterator[PointResult]:
    """Measure the points, one after another; those whose folder says they are finished are only read, and not
    given to `on_point` a second time.

    Raises:
        ConfigError, TargetError: as a run and its trial do; the points before have been given to `on_point`.
    """
    for _, of_one_server in groupby(points, key=lambda point: point.config.target):
        several = list(of_one_server)
        if folder is not None and all(_is_done(folder, point) for point in several):
            open_one = _remembering(folder / several[0].name)  # nothing is left to ask it
        else:
            open_one = open_endpoint
        with open_one(several[0].config) as endpoint:
            tried = False
            for point in several:
                config = own_config(point, points)
                point = replace(point, config=within_limits(config, endpoint))
                if not (tried or _has_begun(folder, point)):
                    try_out(endpoint, point.config)
                    tried = True
                only_read = _is_done(folder, point)
                result, gone = measure_point(point, endpoint, make_tokenizer, folder, watcher)
                if not only_read:
                    on_point(point, result)
                yield result
                if gone is not None:
                    raise TargetError(f"{point.name}: {gone}")
                if result.interrupted:
                    return


def probe(
    points: Sequence[SweepPoint],
    open_endpoint: OpenEndpoint,
    make_tokenizer: MakeTokenizer,
    folder: Path | None,
) -> None:
    """Find out before anything is measured whether every server is there and takes what it will be sent. An
    embedded engine is only looked at when its turn comes: it would have to be started for it.

    Raises:
        ConfigError, TargetError: one does not; the server is named.
    """
    left = [point for point in points if not point.config.target.is_embedded and not _is_done(folder, point)]
    for target, of_one_server in groupby(left, key=lambda point: point.config.target):
        try:
            several = list(of_one_server)
            with open_endpoint(several[0].config) as endpoint:
                for point in several:
                    config = within_limits(point.config, endpoint)
                    check_point(endpoint, config, make_tokenizer(config, endpoint))
        except (ConfigError, TargetError) as error:
            name = several[0].swept.get("target")
            where = f"--target {name}={target.url}: " if name else ""
            raise type(error)(f"{where}{error}") from None


def _is_done(folder: Path | None, point: SweepPoint) -> bool:
    return folder is not None and is_finished(folder / point.name)


def _has_begun(folder: Path | None, point: SweepPoint) -> bool:
    return folder is not None and (folder / point.name / CONFIG).exists()


def measure_point(
    point: SweepPoint,
    endpoint: Endpoint,
    make_tokenizer: MakeTokenizer,
    folder: Path | None,
    watcher: Watcher,
) -> tuple[PointResult, str | None]:
    """One point, in a folder of its name below `folder`; a finished one is only read.

    Returns:
        Also why the server could not be asked to the end.
    """
    config = point.config
    notes: list[str] = []
    with ExitStack() as resources:
        kept = None if folder is None else resources.enter_context(point_folder(folder, point, endpoint))
        finished = kept is not None and kept.is_finished
        if kept is not None and not finished:
            notes = files.begin(kept, endpoint, config.dataset.seed)
        run = ServeRun(
            endpoint,
            config,
            tokenizer=make_tokenizer(config, endpoint),
            folder=kept,
            cold=config.load.flush_cache is not False,
            swept=dict(point.swept),
            watcher=Named(watcher, point.name),
        )
        result = run.run()
        if kept is not None and not finished:
            result = files.finish(kept, endpoint, result, detailed=config.report.save_detailed, notes=notes)
    return result, run.gone


def own_config(point: SweepPoint, points: Sequence[SweepPoint]) -> ServeConfig:
    """What all points would write to one file is written to one of each."""
    report = point.config.report
    if report.save_workload is None or len(points) == 1:
        return point.config
    path = path_of(Path(report.save_workload), point.name)
    return replace(point.config, report=replace(report, save_workload=str(path)))


def _remembering(path: Path) -> OpenEndpoint:
    @contextmanager
    def opened(config: ServeConfig) -> Iterator[Endpoint]:
        with RunDir.open(path, even_finished=True) as kept:
            endpoint = remembered_endpoint(kept, config)
        yield endpoint

    return opened


@contextmanager
def point_folder(folder: Path, point: SweepPoint, endpoint: Endpoint) -> Iterator[RunDir]:
    """Of one point, new or as it was left, for as long as the block."""
    path = folder / point.name
    if (path / CONFIG).exists():
        run_dir = RunDir.open(path, even_finished=True)
    else:
        run_dir = RunDir.create(
            path, {"verb": POINT_VERB, **point.config.stored(), "resolved": files.resolved(endpoint)}
        )
    with run_dir:
        yield run_dir


@dataclass(frozen=True)
class Named:
    """Says which point it is that is watched."""

    watcher: Watcher
    name: str

    def describe(self, what: str) -> None:
        self.watcher.describe(f"{self.name}: {what}")

    def update(self, progress: Any) -> None:
        self.watcher.update(progress)
