"""What a report is about: saved runs with names that tell them apart, and what a sweep varied among them.

Owns names and the choice of the axis. Reads settings and summaries, no records.

Invariant: names are unique; every entry that has the swept option is on exactly one line of the sweep. Arms
of an A/B are no points of a sweep: what lies between them is no axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefixlab.bench.records.run_dir import CONFIG, SUMMARY, object_in
from prefixlab.bench.report.html.words import plain
from prefixlab.bench.saved.saved_run import SavedRun, find_runs

AB, SATURATE = "bench ab", "bench saturate"


@dataclass(frozen=True)
class Search:
    """An A/B, or a search for saturation: runs that answer something together.

    Attributes:
        summary: with the answer, by the keys of `bench/ab/report.py` or `bench/saturate/report.py`.
    """

    verb: str
    path: Path
    summary: Mapping[str, Any]


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

    @cached_property
    def search(self) -> Search | None:
        """Whose arm or probe it is, unless it is shown for itself."""
        above = self.run.path.parent
        verb = (object_in(above / CONFIG) or {}).get("verb")
        if verb not in (AB, SATURATE) or self.source == self.run.path.resolve():
            return None
        return Search(verb, above, object_in(above / SUMMARY) or {})


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
    """All runs in these folders, each once; what a search began with only where there is nothing else.

    Raises:
        ConfigError: there is none in one of them.
    """
    found: dict[Path, tuple[Path, SavedRun]] = {}
    for path in paths:
        runs = find_runs(path)
        for run in [run for run in runs if not run.is_scout] or runs:
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
    points = [entry for entry in entries if entry.search is None or entry.search.verb != AB]
    options = dict.fromkeys(option for entry in points for option in entry.run.swept)
    best: tuple[tuple[bool, int], str] | None = None
    for option in options:
        told = [entry.run.swept[option] for entry in points if option in entry.run.swept]
        rank = (all(map(_is_number, told)), len(set(map(plain, told))))
        if rank[1] > 1 and (best is None or rank > best[0]):
            best = (rank, option)
    if best is None:
        return None
    (is_number, _), option = best
    swept = [entry for entry in points if option in entry.run.swept]

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


def searches_of(entries: Sequence[Entry]) -> list[Search]:
    """Each once."""
    return list({of.path: of for entry in entries if (of := entry.search) is not None}.values())


def only_search_of(entries: Sequence[Entry]) -> Search | None:
    """Whose arms or probes all of them are."""
    found = {None if entry.search is None else entry.search.path for entry in entries}
    return entries[0].search if len(found) == 1 else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
