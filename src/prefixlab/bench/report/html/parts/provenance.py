"""What anyone needs to believe the report or do it again: notes, settings, environment, commands, words.

Owns how settings are laid out: what differs between runs first. Invariant: no setting is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefixlab import __version__
from prefixlab.bench.report.html.entries import Entry
from prefixlab.bench.report.html.markup import Child, Markup, el, folded, table
from prefixlab.bench.report.html.words import DEFINITIONS, plain

MAX_COLUMNS = 8
"""Of runs beside each other in a table of settings."""
_NOT_SETTINGS = frozenset({"command", "verb", "points"})


def notes(entries: Sequence[Entry]) -> Markup | None:
    """Each once, with the runs it is about unless it is about all."""
    about: dict[str, list[str]] = {}
    for entry in entries:
        for note in entry.summary.get("notes") or ():
            about.setdefault(str(note), []).append(entry.name)
    if not about:
        return None
    items = [
        el(
            "li",
            note,
            None if len(names) == len(entries) else el("span", f" ({'; '.join(names)})", class_="of"),
        )
        for note, names in about.items()
    ]
    return el("section", el("h2", "Notes"), el("ul", items), id="notes")


def provenance(entries: Sequence[Entry]) -> Markup:
    return el(
        "section",
        el("h2", "Settings, and how to do it again"),
        _commands(entries),
        _laid_out("Settings", [(entry.name, entry.run.config) for entry in entries], skip=_NOT_SETTINGS),
        _laid_out("Environment", [(entry.name, entry.run.environment) for entry in entries]),
        el(
            "p",
            "Folders: ",
            [[", " if n else "", el("code", str(e.run.path))] for n, e in enumerate(entries)],
        ),
        id="settings",
    )


def definitions() -> Markup:
    words = [[el("dt", word), el("dd", text)] for word, text in DEFINITIONS.items()]
    return el(
        "section",
        el("h2", "What the figures mean"),
        el("dl", words),
        el("p", "Formulas in full: docs/measuring.md of prefixlab ", __version__, "."),
        id="definitions",
    )


def _commands(entries: Sequence[Entry]) -> list[Markup]:
    commands = dict.fromkeys(entry.command for entry in entries if entry.command)
    return [el("pre", el("code", command), tabindex=0, aria_label="command") for command in commands]


def _laid_out(
    title: str, of_each: Sequence[tuple[str, Mapping[str, Any]]], skip: frozenset[str] = frozenset()
) -> list[Markup]:
    flat = [(name, dict(_flattened(values, skip))) for name, values in of_each]
    keys = list(dict.fromkeys(key for _, values in flat for key in values))
    same = [key for key in keys if len({plain(values.get(key)) for _, values in flat}) == 1]
    apart = [key for key in keys if key not in set(same)]
    written: list[Markup] = []
    for start in range(0, len(flat), MAX_COLUMNS) if apart else ():
        some = flat[start : start + MAX_COLUMNS]
        rows: list[list[Child]] = [[key, *(plain(values.get(key)) for _, values in some)] for key in apart]
        caption = f"{title} that differ"
        written.append(
            folded(caption, table(caption, ("name", *(name for name, _ in some)), rows), opened=True)
        )
    if same:
        caption = f"{title}, the same in all runs" if len(flat) > 1 else title
        both: list[list[Child]] = [[key, plain(flat[0][1].get(key))] for key in same]
        written.append(folded(caption, table(caption, ("name", "value"), both)))
    return written


def _flattened(values: Mapping[str, Any], skip: frozenset[str], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if not above and key in skip:
            continue
        if isinstance(value, Mapping):
            yield from _flattened(value, skip, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
