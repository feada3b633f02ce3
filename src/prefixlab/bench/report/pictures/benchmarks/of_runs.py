"""Benchmarks out of our own run folders: sweeps over the concurrency, and runs that belong together.

Owns which runs are one benchmark, and what it is called. A sweep is one; of several servers, or of several
settings beside the concurrency, one for each. Runs that no sweep made are one if they have the same label; of
those with the same concurrency, too, the later are others, with a number.

Invariant: a run that is not drawn is named, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefixlab.bench.compare.importers.ours import read_ours
from prefixlab.bench.records.run_dir import CONFIG, object_in
from prefixlab.bench.report.pictures.benchmarks.benchmark import (
    TOKENS_PER_USER,
    Benchmark,
    Ends,
    Point,
    tokens_per_user,
)
from prefixlab.bench.report.pictures.provenance import Provenance
from prefixlab.bench.saved.catalogue import FINISHED, Catalogue, Row, read_catalogue
from prefixlab.bench.saved.saved_run import SavedRun, run_folders

CONCURRENCY, TARGET = "max-concurrency", "target"
NUM_DEVICES = "num_devices"
"""Of the server's facts, or of `--metadata num_devices=N`."""
_SERVER_FACTS = ("backend", "version", "model", "page_size", "capacity_tokens", "simulated", "caching_off")


@dataclass(frozen=True, slots=True)
class _Group:
    """What runs of one benchmark have in common. `settings`: what a sweep set beside the concurrency;
    `number`: how many times the same was measured before, and this."""

    folder: str
    label: str
    target: str
    settings: str
    number: int = 1

    @property
    def name(self) -> str:
        base = self.label or (Path(self.folder).name if self.folder and not self.target else "")
        again = f"#{self.number}" if self.number > 1 else ""
        return " ".join(word for word in (base, self.target, self.settings, again) if word)


def runs_by_benchmark(path: Path) -> tuple[dict[str, list[SavedRun]], list[str]]:
    """The runs below `path` that can be drawn, by the name of their benchmark; and what was left out, in
    sentences. No records are read."""
    if not run_folders(path):
        return {}, []
    catalogue = read_catalogue(path)
    groups: dict[_Group, list[SavedRun]] = {}
    seen: Counter[tuple[_Group, object]] = Counter()
    left_out = list(catalogue.broken)
    for row in catalogue.rows:
        run = catalogue.runs[row["run"]]
        if reason := _why_not(row, run):
            left_out.append(f"{row['name']}: {reason}")
        else:
            group = _group(row, run, catalogue)
            place = (group, run.summary["max_concurrency"])
            seen[place] += 1
            groups.setdefault(replace(group, number=seen[place]), []).append(run)
    taken = Counter(group.name for group in groups)
    return {
        group.name if taken[group.name] == 1 else f"{group.name} ({Path(group.folder).name or 'runs'})": runs
        for group, runs in groups.items()
    }, left_out


def benchmark_of_runs(name: str, runs: Sequence[SavedRun]) -> Benchmark:
    """With its records read. ConfigError if they cannot be."""
    points = sorted(map(_point, runs), key=lambda point: (point.concurrency, point.source))
    return Benchmark(name, tuple(points))


def _why_not(row: Row, run: SavedRun) -> str:
    if row["state"] != FINISHED:
        return f"it is {row['state']}"
    if not run.summary.get("completed"):
        return "no request succeeded"
    if run.is_scout:
        return "it only told a search for saturation where to begin"
    if run.summary.get("loop") == "open":
        return "it was asked at a rate, not with a concurrency"
    if not isinstance(run.summary.get("max_concurrency"), int):
        return "no concurrency was set"
    return ""


def _group(row: Row, run: SavedRun, catalogue: Catalogue) -> _Group:
    swept = {name.lstrip("-"): value for name, value in run.swept.items()}
    rest = {name: value for name, value in swept.items() if name not in (CONCURRENCY, TARGET)}
    label = str(run.summary.get("label") or "")
    sweep = catalogue.sweeps.get(row["sweep"] or "")
    return _Group(
        folder=str(sweep.path.resolve()) if sweep is not None else "" if label else str(run.path.resolve()),
        label=label,
        target=str(swept.get(TARGET) or ""),
        settings=" ".join(f"{name}={value}" for name, value in rest.items()),
    )


def _point(run: SavedRun) -> Point:
    summary, environment = run.summary, run.environment
    repeats = tuple(read_ours(run))
    figures = {
        name: float(value)
        for name, value in summary.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    ends: dict[str, Ends] = {
        name: (float(of[0]), float(of[1])) for name, of in (summary.get("intervals_95") or {}).items()
    }
    per_user, interval = tokens_per_user([one.table for one in repeats if one.table is not None])
    if per_user is not None:
        figures[TOKENS_PER_USER] = per_user
    if interval is not None:
        ends[TOKENS_PER_USER] = (interval.low, interval.high)
    return Point(
        concurrency=int(summary["max_concurrency"]),
        source=str(run.path),
        runs=repeats,
        figures=figures,
        ends=ends,
        planned=summary.get("planned"),
        failed=summary.get("failed"),
        provenance=Provenance(
            date=str(environment.get("started") or summary.get("date") or ""),
            machine=str(environment.get("client_machine") or ""),
            client=f"prefixlab {environment.get('prefixlab') or ''}".rstrip(),
            commit=str(environment.get("git_commit") or ""),
            command=_command(run),
        ),
        num_devices=_num_devices(run),
        server=_server(environment),
        seed=str(environment.get("seed", "")),
        goodput=_goodput(summary),
    )


def _command(run: SavedRun) -> str:
    """Of the run, or of its sweep."""
    above = object_in(run.path.parent / CONFIG) or {}
    return str(run.config.get("command") or above.get("command") or "")


def _num_devices(run: SavedRun) -> int | None:
    """What the user noted, else what the server said, of one server."""
    noted = run.summary.get(NUM_DEVICES)
    if str(noted).isdecimal() and int(str(noted)) > 0:
        return int(str(noted))
    if len((run.config.get("request") or {}).get("url") or ()) > 1:
        return None  # facts are of the first server alone
    said = (run.environment.get("server") or {}).get(NUM_DEVICES)
    return said if isinstance(said, int) and said > 0 else None


def _server(environment: Mapping[str, Any]) -> str:
    facts: Mapping[str, Any] = environment.get("server") or {}
    words = [f"{name} {facts[name]}" for name in _SERVER_FACTS if facts.get(name) not in (None, "")]
    return ", ".join([*words, *([f"at {environment['url']}"] if environment.get("url") else [])])


def _goodput(summary: Mapping[str, Any]) -> str:
    rate, share = summary.get("request_goodput"), summary.get("goodput_share")
    if rate is None or share is None:
        return ""
    return f"{rate:,.2f} req/s, {share:.1%} of requests, within {summary.get('goodput_objectives')}"
