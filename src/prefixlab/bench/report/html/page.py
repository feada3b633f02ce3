"""The report as one file: what stands on it in which order, its script, its style, and what they may do.

Owns the page and its policy. Each part is its own file's.

Invariants: the page asks nobody for anything (a Content-Security-Policy says so, and allows script and style
by their hashes alone); text from runs is never markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from prefixlab.bench.report.html.entries import Entry, entries_of, searches_of, sweep_of
from prefixlab.bench.report.html.markup import Markup, el, together
from prefixlab.bench.report.html.packing import json_text
from prefixlab.bench.report.html.parts import answers, curves, distributions, judgements, timeline
from prefixlab.bench.report.html.parts.headline import headline, title_of
from prefixlab.bench.report.html.parts.provenance import definitions, notes, provenance
from prefixlab.bench.report.html.parts.tables import failures, figures, sessions

SCRIPTS = ("uPlot.LICENSE.txt", "uPlot.iife.min.js", "base.js", "lines.js", "rasters.js", "main.js")
STYLES = ("uPlot.min.css", "page.css")
NAMES = {
    "answer": "Answer",
    "curves": "Curves",
    "figures": "Figures",
    "comparison": "Comparison",
    "ledger": "Cache",
    "doctor": "Trust",
    "distributions": "Distributions",
    "timeline": "Timeline",
    "sessions": "Sessions",
    "failures": "Failures",
    "notes": "Notes",
    "settings": "Settings",
    "definitions": "Definitions",
}
"""The sections in their order, by id, as the navigation calls them."""


def report(paths: Sequence[Path]) -> str:
    """The page about all runs in these folders.

    Raises:
        ConfigError: there is none in one of them, or its records cannot be read.
    """
    return page(entries_of(paths))


def page(entries: Sequence[Entry]) -> str:
    """Of one run or more."""
    sweep = sweep_of(entries)
    title = title_of(entries, sweep)
    of_sweep = [] if sweep is None else curves.charts_of(sweep)
    of_values = distributions.charts_of(entries)
    over_time = timeline.timelines_of(entries)
    sections = {
        "answer": answers.section(searches_of(entries)),
        "curves": curves.section(of_sweep, sweep, len(entries)) if of_sweep and sweep is not None else None,
        "figures": figures(entries),
        "comparison": judgements.comparison(entries),
        "ledger": judgements.ledger(entries),
        "doctor": judgements.doctor(entries),
        "distributions": distributions.section(of_values) if of_values else None,
        "timeline": timeline.section(over_time) if over_time else None,
        "sessions": sessions(entries),
        "failures": failures(entries),
        "notes": notes(entries),
        "settings": provenance(entries),
        "definitions": definitions(),
    }
    shown = {name: sections[name] for name in NAMES if sections[name] is not None}
    data = {
        "charts": {chart.name: chart.to_json() for chart in (*of_sweep, *of_values)},
        "timelines": [of.to_json() for of in over_time],
    }
    body = el(
        "body",
        el("a", "Skip to the figures", href="#figures", class_="skip"),
        headline(title, entries, sweep),
        _navigation(list(shown)),
        el("main", list(shown.values())),
        el(
            "footer",
            el("p", "Made by prefixlab report. This file holds all it shows and asks nobody for anything."),
        ),
        _data(data),
        el("script", _joined(SCRIPTS)),
    )
    return str(together([Markup("<!DOCTYPE html>\n"), el("html", _head(title), body, lang="en")]))


def _head(title: str) -> Markup:
    policy = (
        f"default-src 'none'; script-src '{_hash(SCRIPTS)}'; style-src '{_hash(STYLES)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", f"{title} · prefixlab"),
        el("style", _joined(STYLES)),
    )


def _navigation(ids: Sequence[str]) -> Markup:
    links = [el("li", el("a", NAMES[name], href=f"#{name}")) for name in ids]
    theme = el(
        "button", "Theme", type="button", id="theme", aria_label="Switch between light and dark", hidden=True
    )
    return el("nav", el("ul", links), theme, aria_label="Sections")


def _data(data: object) -> Markup:
    """In a block that no browser runs, and whose text cannot end it."""
    return el("script", Markup(json_text(data)), type="application/json", id="data")


@cache
def _joined(names: Sequence[str]) -> Markup:
    """Files of `assets/`, one after another; none holds an end tag (a test looks). A licence goes with what
    it is about, as a comment."""
    folder = resources.files(__package__) / "assets"
    texts = [(name, (folder / name).read_text(encoding="utf-8")) for name in names]
    return Markup("\n".join(f"/* {text} */" if name.endswith(".txt") else text for name, text in texts))


def _hash(names: tuple[str, ...]) -> str:
    digest = hashlib.sha256(_joined(names).encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
