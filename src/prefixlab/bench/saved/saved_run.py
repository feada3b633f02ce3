"""A run that is over, as its folder tells it: what comparisons, reports and lists of runs start from.

Owns finding runs below a folder and reading them. Asks no server, judges nothing, writes nothing.

Invariant: what a folder does not hold is empty or None, never made up; a folder somebody still writes in is
read as far as it goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.records.run_dir import CONFIG, ENVIRONMENT, SEGMENTS, SUMMARY, object_in, settled
from prefixlab.bench.records.store import read_parquet
from prefixlab.bench.records.table import RecordTable
from prefixlab.core.errors import ConfigError

MAX_DEPTH = 4
"""Folders of runs lie in folders of sweeps, which lie in `runs/`."""
PARQUET = "requests.parquet"


@dataclass(frozen=True)
class SavedRun:
    """One run, or one point of a sweep.

    Attributes:
        config: `config.json`: settings as resolved, by option; `verb`, `command`, `resolved` beside them.
        environment: `environment.json`: machine, versions, commit, server.
        summary: `summary.json`, the keys of `report/points/keys.py`; empty where the run did not get there.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Short, for tables: the label if it has one, else its folder's name."""
        return str(self.summary.get("label") or self.path.name)

    @property
    def finished(self) -> bool:
        return bool(self.summary.get("finished"))

    @property
    def swept(self) -> Mapping[str, Any]:
        """What its sweep set at this point; empty of a run of its own."""
        return self.summary.get("swept") or {}

    @cached_property
    def is_scout(self) -> bool:
        """It only told a search for saturation where to begin: no point of its curve."""
        above = object_in(self.path.parent / CONFIG) or {}
        return above.get("verb") == "bench saturate" and not self.swept

    @cached_property
    def table(self) -> RecordTable:
        """Its records, one row per request, read once. Of repeats and of stretches of a resumed run the
        segments differ. ConfigError if they cannot be read."""
        if (self.path / PARQUET).is_file():
            return read_parquet([self.path / PARQUET])
        stretches = sorted((self.path / SEGMENTS).glob("*/"))
        lines = [sorted(folder.glob("**/records-*.jsonl")) for folder in stretches]
        return settled([RecordTable.read(files) for files in lines if files])

    @cached_property
    def health(self) -> ClientHealth | None:
        """Of the client; None where it left no word."""
        try:
            return ClientHealth.from_json((self.path / "health.json").read_bytes())
        except (OSError, msgspec.DecodeError, msgspec.ValidationError):
            return None


def open_run(path: Path) -> SavedRun:
    """ConfigError if there is no run in this folder."""
    config = object_in(path / CONFIG)
    if config is None:
        raise ConfigError(f"{path}: there is no run, for there is no {CONFIG} in it")
    return SavedRun(path, config, object_in(path / ENVIRONMENT) or {}, object_in(path / SUMMARY) or {})


def find_runs(path: Path) -> list[SavedRun]:
    """The run in `path`; or those below it, as of a sweep or of `runs/`, in the order of their paths.

    Raises:
        ConfigError: there is none.
    """
    found = [open_run(folder) for folder in run_folders(path)]
    if not found:
        raise ConfigError(f"{path}: {why_no_run(path)}")
    return found


def why_no_run(path: Path) -> str:
    """What stands at this path instead."""
    if path.is_dir():
        return "there is no run in it"
    if path.exists():
        return "it is a file, and a run is a folder; result files of benchmarks are for prefixlab compare"
    return "there is no such folder"


def run_folders(path: Path, depth: int = MAX_DEPTH) -> list[Path]:
    """Where there are runs, readable or not, in the order of their paths. A sweep's own folder has settings
    and a summary too, but no records of its own."""
    if (path / CONFIG).is_file() and ((path / SEGMENTS).is_dir() or (path / PARQUET).is_file()):
        return [path]
    if depth == 0 or not path.is_dir():
        return []
    below = sorted(folder for folder in path.iterdir() if folder.is_dir() and folder.name != SEGMENTS)
    return [found for folder in below for found in run_folders(folder, depth - 1)]
