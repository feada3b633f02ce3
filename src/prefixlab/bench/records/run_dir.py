"""A run's folder: what was asked, on what, every record as it came, and what it amounted to.

    config.json            the settings as resolved, secrets masked
    environment.json       machine, versions, commit, what the server says of itself
    segments/0000/         one stretch of the run: the driver's folder, records-*.jsonl as requests end
    segments/0000.json     what that stretch was: its repeat, its salt, and at its end the client's health
    segments/0000/metrics.parquet    the server's own metrics during it, on its time axis (witness/samples.py)
    metrics-before.txt     the server's own metrics, where it offers them
    metrics.parquet        those of all stretches, written at the end
    requests.jsonl .csv .parquet, summary.json, health.json, report.txt      written at the end
    lock                   held while somebody writes here

Owns the names, the lock, and the account of what is done. Knows neither drivers nor reports.

Invariants: a file is there whole or not at all (records apart, which grow line by line); a request that is
ok, or that the server failed, is never sent again, unless the server had gone; two
processes never write in one folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from prefixlab.bench.records.record import Failure, Outcome
from prefixlab.bench.records.table import CODE, RecordTable
from prefixlab.core.errors import ConfigError

CONFIG, ENVIRONMENT, SUMMARY = "config.json", "environment.json", "summary.json"
LOCK, SEGMENTS = "lock", "segments"
MAX_TRIES = 1000
NOT_TAKEN = (Failure.CONNECT, Failure.DROPPED)
CUT_OFF = (*NOT_TAKEN, Failure.RESET, Failure.TRUNCATED)
"""What requests meet whose server goes away."""
_DRAFT = ".new"
_PART = "server-"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a run.

    Attributes:
        number: 0, 1, … in the order they were begun.
        folder: the driver's.
        about: what it was.
    """

    number: int
    folder: Path
    about: Mapping[str, Any]

    @property
    def about_path(self) -> Path:
        return self.folder.with_suffix(".json")

    def driver_folders(self) -> list[Path]:
        """The driver's; of several drivers at the same time each has its own."""
        return sorted(self.folder.glob(f"{_PART}*")) or [self.folder]

    def record_files(self) -> list[Path]:
        """Lines of records, as the driver left them."""
        return [path for folder in self.driver_folders() for path in sorted(folder.glob("records-*.jsonl"))]

    def table(self) -> RecordTable:
        """Its records so far."""
        return RecordTable.read(self.record_files())


class RunDir:
    """See the module. Use as a context manager: the lock goes with it."""

    def __init__(self, path: Path, lock: BinaryIO) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunDir:
        """A new folder, holding its settings before anything is done.

        Raises:
            ConfigError: it holds something already, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ConfigError(f"--run-dir {path} is not empty: give another, or --resume {path} to go on")
        except OSError as error:
            raise ConfigError(f"--run-dir {path} cannot be made: {error.strerror}") from None
        run_dir = cls(path, _locked(path))
        run_dir.write_json(CONFIG, config)
        return run_dir

    @classmethod
    def create_beside(cls, path: Path, config: Mapping[str, Any]) -> RunDir:
        """As `create`, under another name where that one is taken: two runs may start in one second."""
        return cls.create(free_name(path), config)

    @classmethod
    def open(cls, path: Path, *, even_finished: bool = False) -> RunDir:
        """A folder that is there, to go on in.

        Raises:
            ConfigError: it is no run, it is finished, or somebody is writing in it.
        """
        if not (path / CONFIG).is_file():
            raise ConfigError(f"--resume {path}: there is no run, for there is no {CONFIG} in it")
        run_dir = cls(path, _locked(path))
        if run_dir.is_finished and not even_finished:
            run_dir.close()
            raise ConfigError(f"--resume {path}: that run is finished")
        for draft in path.rglob(f"*{_DRAFT}"):  # a kill may have come while it was written
            draft.unlink()
        return run_dir

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock."""
        self._lock.close()

    def remove_if_empty(self) -> None:
        """Leave no trace of a run that never began: nothing is here but its settings."""
        if {path.name for path in self.path.iterdir()} <= {CONFIG, LOCK}:
            shutil.rmtree(self.path)

    @property
    def is_finished(self) -> bool:
        """It came to its own end: nothing is left to send."""
        return is_finished(self.path)

    def config_of(self, verb: str) -> dict[str, Any]:
        """The settings, as `create` was given them. ConfigError if the folder is another verb's."""
        config = self.read_json(CONFIG)
        if config is None:
            raise ConfigError(f"{self.path / CONFIG} cannot be read")
        if config.get("verb") != verb:
            other = config.get("verb")
            raise ConfigError(
                f"--resume {self.path}: that is a run of {other}, not of {verb}: "
                f"prefixlab {other} --resume {self.path}"
            )
        return config

    def segments(self) -> list[Segment]:
        """In the order they were begun."""
        return [
            Segment(int(about.stem), about.with_suffix(""), self.read_json(f"{SEGMENTS}/{about.name}") or {})
            for about in sorted((self.path / SEGMENTS).glob("*.json"))
        ]

    def begin_segment(self, about: Mapping[str, Any]) -> Segment:
        """A new stretch: an empty folder, and a note of what it is for."""
        number = len(self.segments())
        folder = self.path / SEGMENTS / f"{number:04}"
        folder.mkdir(parents=True, exist_ok=True)  # a crash may have come between this and the note
        self.write_json(f"{SEGMENTS}/{number:04}.json", about)
        return Segment(number, folder, about)

    def end_segment(self, segment: Segment, more: Mapping[str, Any]) -> None:
        """Add to the note what is known only now."""
        self.write_json(f"{SEGMENTS}/{segment.about_path.name}", {**segment.about, **more})

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        self.write_bytes(name, msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Whole or not at all, also if the machine stops."""
        temporary = self.path / f"{name}{_DRAFT}"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / name)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """None where the file is not there, or is no JSON object."""
        return object_in(self.path / name)


def part_of(folder: Path, number: int) -> Path:
    """An empty folder within a segment's, for one of several drivers."""
    part = folder / f"{_PART}{number:03}"
    part.mkdir()
    return part


def is_finished(path: Path) -> bool:
    """Whether the run in this folder came to its end. False where there is none."""
    return bool((object_in(path / SUMMARY) or {}).get("finished"))


def settled(tables: Sequence[RecordTable]) -> RecordTable:
    """One row per request, out of the stretches of one run in their order: how it ended last. What was ok or
    failed is not sent again, so a request's last row is the one that counts."""
    table = RecordTable.concat(tables)
    last = dict(zip(table.request_id, range(len(table)), strict=True))
    keep = np.zeros(len(table), dtype=np.bool_)
    keep[list(last.values())] = True
    return table.select(keep)


def done_ids(table: RecordTable) -> set[str]:
    """Requests that are not to be sent again. What the client lost is no answer of the server's."""
    done = np.isin(table.outcome, [CODE[Outcome.OK], CODE[Outcome.FAILED]]).tolist()
    rows = zip(table.request_id, done, table.failure.to_list(), strict=True)
    return {request_id for request_id, ended, failure in rows if ended and failure != Failure.CLIENT}


def in_vain(table: RecordTable) -> npt.NDArray[np.bool_]:
    """Which requests of one stretch a server that had gone away did not take: it answered before, then cut
    off every one that was due, and the last found no connection. They are not done."""
    none = np.zeros(len(table), np.bool_)
    ended = np.isin(table.outcome, [CODE[Outcome.OK], CODE[Outcome.FAILED]])
    if not table.ok.any():
        return none
    later = ended & (table.intended_s > table.intended_s[table.ok].max())
    kinds = table.failure.to_list()
    if not later.any() or not all(kinds[row] in CUT_OFF for row in np.flatnonzero(later)):
        return none
    last = max(np.flatnonzero(later), key=lambda row: table.intended_s[row])
    return later & np.array([kind in NOT_TAKEN for kind in kinds]) if kinds[last] == Failure.CONNECT else none


def free_name(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3` … that is not there."""
    names = [path, *(path.with_name(f"{path.name}-{number}") for number in range(2, MAX_TRIES))]
    return next((name for name in names if not name.exists()), path)


def object_in(path: Path) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return None


def _locked(path: Path) -> BinaryIO:
    """The kernel lets go of it when this process ends, however that happens."""
    lock = (path / LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ConfigError(f"{path} is being written by another process") from None
    return lock
