"""What a report is about: saved runs with names that tell them apart, and what a sweep varied among them.

Owns names and the choice of the axis. Reads settings and summaries, no records.

Invariant: names are unique; every entry is on exactly one line of a sweep, or there is no sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefixlab.bench.records.run_dir import CONFIG, object_in
from prefixlab.bench.report.html.words import plain
from prefixlab.bench.saved.saved_run import SavedRun, find_runs


@dataclass(frozen=True)
class Entry:
    """One run, or one point of a sweep.

    Attributes:
        name: unique in this report.
        source: the folder it was found through; several points share it.
    """

    name: str
    source: Path
    run: SavedRun

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.run.summary

    @cached_property
    def command(self) -> str | None:
        """As it was typed; of a point, its sweep's."""
        own = self.run.config.get("command")
        return own or (object_in(self.run.path.parent / CONFIG) or {}).get("command")


@dataclass(frozen=True)
class Sweep:
    """The entries along one axis.

    Attributes:
        option: what varies along it.
        values: of the axis, ascending if they are numbers; shape (n,).
        is_number: they have distances.
        lines: name of each line → its entry per value, None where there is none.
    """

    option: str
    values: tuple[Any, ...]
    is_number: bool
    lines: Mapping[str, tuple[Entry | None, ...]]


def entries_of(paths: Sequence[Path]) -> list[Entry]:
    """All runs in these folders, each once.

    Raises:
        ConfigError: there is none in one of them.
    """
    found: dict[Path, tuple[Path, SavedRun]] = {}
    for path in paths:
        for run in find_runs(path):
            found.setdefault(run.path.resolve(), (path.resolve(), run))
    several = len({source for source, _ in found.values()}) > 1
    entries: list[Entry] = []
    taken: dict[str, int] = {}
    for source, run in found.values():
        name = _name(source, run, several=several)
        taken[name] = taken.get(name, 0) + 1
        entries.append(Entry(name if taken[name] == 1 else f"{name} #{taken[name]}", source, run))
    return entries


def _name(source: Path, run: SavedRun, *, several: bool) -> str:
    if not run.swept:
        return run.name
    point = ", ".join(f"{option} {plain(value)}" for option, value in run.swept.items())
    owner = run.summary.get("label") or source.name
    return f"{owner}: {point}" if several else point


def sweep_of(entries: Sequence[Entry]) -> Sweep | None:
    """Along the option with the most values, numbers before words; None where nothing was swept."""
    swept = [entry for entry in entries if entry.run.swept]
    options = dict.fromkeys(option for entry in swept for option in entry.run.swept)
    best: tuple[tuple[bool, int], str] | None = None
    for option in options:
        distinct = {plain(entry.run.swept.get(option)) for entry in swept}
        rank = (all(_is_number(entry.run.swept.get(option)) for entry in swept), len(distinct))
        if len(distinct) > 1 and (best is None or rank > best[0]):
            best = (rank, option)
    if best is None:
        return None
    (is_number, _), option = best

    def value_of(entry: Entry) -> Any:
        value = entry.run.swept.get(option)
        return value if is_number else plain(value)

    of_each = [value_of(entry) for entry in swept]
    values = tuple(sorted(set(of_each))) if is_number else tuple(dict.fromkeys(of_each))
    lines: dict[str, dict[Any, Entry]] = {}
    several = len({entry.source for entry in swept}) > 1
    for entry in swept:
        rest = [f"{name} {plain(of)}" for name, of in entry.run.swept.items() if name != option]
        owner = [str(entry.summary.get("label") or entry.source.name)] if several else []
        name, number = ", ".join([*owner, *rest]), 1
        while value_of(entry) in lines.get(line := name if number == 1 else f"{name} #{number}", {}):
            number += 1  # measured again: a line of its own
        lines.setdefault(line, {})[value_of(entry)] = entry
    ordered = {name: tuple(of.get(value) for value in values) for name, of in lines.items()}
    return Sweep(option, values, is_number, ordered)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
