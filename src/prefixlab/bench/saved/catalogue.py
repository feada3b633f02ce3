"""All runs below a folder as rows: what lists of runs, filters and SQL are made of.

Owns what a row holds. First the columns of COLUMNS, which are what one looks for; behind them all that the
run's folder tells: the keys of `summary.json` under their own names, the options of `config.json` as
`config_…`, and `environment.json` as `env_…`, nested ones joined by `_`, lists as JSON text.

Invariants: a run that cannot be read is named in `broken`, and does not keep others from being listed; what a
run does not say is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from prefixlab.bench.records.run_dir import CONFIG, ENVIRONMENT, LOCK, SUMMARY, is_finished, object_in
from prefixlab.bench.saved.saved_run import SavedRun, open_run, run_folders, why_no_run
from prefixlab.core.errors import ConfigError

Row = dict[str, Any]

COLUMNS: Mapping[str, str] = {
    "name": "its folder, from the one that is listed",
    "verb": "what made it",
    "date": "when it began: YYYYmmdd-HHMMSS",
    "backend": "the server's kind",
    "model": "as requests name it",
    "dataset": "of its prompts",
    "rate": "requests per second asked for; of closed loops none",
    "concurrency": "requests at once asked for, at most",
    "ok": "requests that succeeded",
    "failed": "requests that did not",
    "ttft_p50_ms": "time to first token",
    "ttft_p99_ms": "time to first token",
    "output_tokens_s": "output tokens per second",
    "hit_rate": "cached ÷ prompt tokens as reported, 0 to 1",
    "verdict": "of the cache",
    "grade": "of the doctor",
    "state": "finished, unfinished, or running",
    "sweep": "the folder whose point it is",
    "run": "its folder",
}
"""Column → what it is."""
FINISHED, UNFINISHED, RUNNING = "finished", "unfinished", "running"


@dataclass(frozen=True)
class Sweep:
    """A folder that runs are the points of, whatever verb made it.

    Attributes:
        num_points: as planned; None where its settings do not say.
    """

    path: Path
    name: str
    verb: str
    num_points: int | None
    finished: bool


@dataclass(frozen=True)
class Catalogue:
    """See the module.

    Attributes:
        rows: oldest first.
        runs: by the column `run`.
        sweeps: by the column `sweep`.
        broken: what could not be read, in sentences.
    """

    rows: tuple[Row, ...]
    runs: Mapping[str, SavedRun]
    sweeps: Mapping[str, Sweep]
    broken: tuple[str, ...]

    def how_to_go_on(self, row: Row) -> str | None:
        """The command, of a run that is not finished and that nobody is busy with."""
        if row["state"] != UNFINISHED:
            return None
        sweep = self.sweeps.get(row["sweep"] or "")
        verb, path = (row["verb"], row["run"]) if sweep is None else (sweep.verb, sweep.path)
        return f"prefixlab {verb} --resume {path}"


def read_catalogue(path: Path) -> Catalogue:
    """Every run below `path`, or the one in it.

    Raises:
        ConfigError: there is no such folder, or no run in it.
    """
    folders = run_folders(path)
    if not folders:
        raise ConfigError(f"{path}: {why_no_run(path)}: prefixlab bench serve makes one")
    locked = _locked_inodes()
    rows: list[Row] = []
    runs: dict[str, SavedRun] = {}
    sweeps: dict[str, Sweep] = {}
    broken: list[str] = []
    for folder in folders:
        try:
            run = _whole(folder)
        except ConfigError as error:
            broken.append(str(error))
            continue
        sweep = _sweep_of(folder, path) if folder != path else None
        if sweep is not None:
            sweeps[str(sweep.path)] = sweep
        runs[str(folder)] = run
        rows.append(_row(run, path, sweep, is_held=_inode(folder / LOCK) in locked))
    rows.sort(key=lambda row: (row["date"] or "", row["name"]))
    return Catalogue(tuple(rows), runs, sweeps, tuple(broken))


def _whole(folder: Path) -> SavedRun:
    """ConfigError names the file that is not what it should be."""
    for name in (CONFIG, ENVIRONMENT, SUMMARY):
        if (folder / name).is_file() and object_in(folder / name) is None:
            raise ConfigError(f"{folder / name} is no JSON object: this run is left out")
    return open_run(folder)


def _row(run: SavedRun, listed: Path, sweep: Sweep | None, *, is_held: bool) -> Row:
    summary, environment = run.summary, run.environment
    load = run.config.get("load") or {}
    rate = summary.get("request_rate", load.get("request_rate"))
    is_open = summary.get("loop") == "open" or (not summary and rate != "inf")
    state = RUNNING if is_held else FINISHED if run.finished else UNFINISHED
    told = {
        "name": run.path.name if run.path == listed else str(run.path.relative_to(listed)),
        "verb": run.config.get("verb"),
        "date": summary.get("date") or environment.get("started"),
        "backend": summary.get("backend") or environment.get("backend"),
        "model": summary.get("model_id") or environment.get("model"),
        "dataset": summary.get("dataset_name") or (run.config.get("dataset") or {}).get("dataset_name"),
        "rate": float("inf") if rate == "inf" and is_open else rate if is_open else None,
        "concurrency": summary.get("max_concurrency", load.get("max_concurrency")),
        "ok": summary.get("completed"),
        "failed": summary.get("failed"),
        "ttft_p50_ms": summary.get("median_ttft_ms"),
        "ttft_p99_ms": summary.get("p99_ttft_ms"),
        "output_tokens_s": summary.get("output_throughput"),
        "hit_rate": summary.get("measured_hit_rate"),
        "verdict": summary.get("verdict"),
        "grade": (summary.get("doctor") or {}).get("grade"),
        "state": state,
        "sweep": None if sweep is None else str(sweep.path),
        "run": str(run.path),
    }
    rest = dict(flat(summary))
    rest |= {f"config_{name}": value for name, value in flat(_options(run.config))}
    rest |= {f"env_{name}": value for name, value in flat(environment)}
    return told | {name: value for name, value in rest.items() if name not in told}


def flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested names joined by `_`; lists as JSON text."""
    for word, value in data.items():
        name = word.lstrip("-").replace("-", "_")
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}_")
        else:
            listed = isinstance(value, list | tuple)
            yield f"{above}{name}", msgspec.json.encode(value).decode() if listed else value


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """By their own names, as their flags are: no two of them share one."""
    options: dict[str, Any] = {}
    for name, part in config.items():
        options |= part if isinstance(part, Mapping) and name != "engine" else {name: part}
    return options


def _sweep_of(folder: Path, listed: Path) -> Sweep | None:
    """The nearest folder above with settings, not above the one that is listed."""
    for above in folder.parents:
        config = object_in(above / CONFIG)
        if config is not None:
            name = above.name if above == listed else str(above.relative_to(listed))
            points = config.get("points")
            num_points = len(points) if isinstance(points, list) else None
            return Sweep(above, name, str(config.get("verb")), num_points, is_finished(above))
        if above == listed:
            break
    return None


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _locked_inodes() -> set[int | None]:
    """Of files that somebody holds a lock on. Asking the lock itself would take it for a moment, from a
    process that wants it just then. Where the system does not tell, nothing is known to be held."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return set()
    return {
        int(line.split()[5].rpartition(":")[2]) for line in lines if " FLOCK " in line and "->" not in line
    }
