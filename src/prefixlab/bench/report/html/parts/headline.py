"""The head of the report: what was asked of which server, what its cache did, and the figures that matter.

Owns the first screen. Judges nothing: verdicts and grades are read.

Invariant: a run that did not come to its end, or in which requests failed, says so here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prefixlab.bench.doctor.diagnosis import grade_of_keys
from prefixlab.bench.records.run_dir import object_in
from prefixlab.bench.report.html.entries import SATURATE, Entry, Search, Sweep, only_search_of
from prefixlab.bench.report.html.markup import Child, Markup, el
from prefixlab.bench.report.html.words import (
    NOTHING,
    interval_at,
    number_at,
    percent,
    plain,
    short,
)

FIGURES = (
    ("Output throughput", "output_throughput", "tokens/s", ("steady", "steady_output_throughput")),
    ("Time to first token, median", "p50_ttft_ms", "ms", ("p99", "p99_ttft_ms")),
    ("Time per output token, median", "p50_tpot_ms", "ms", ("p99", "p99_tpot_ms")),
)
"""Title, key, unit, and what stands beside it."""
_MOST_SERVERS = 3
DOCTOR_FILE = "doctor.json"


def headline(title: str, entries: Sequence[Entry], sweep: Sweep | None) -> Markup:
    """The header of the page."""
    shown = el("div", _verdicts(entries), _alarms(entries), class_="badges")
    return el(
        "header",
        el("p", "prefixlab report", class_="kicker"),
        el("h1", title),
        _answers(entries),
        el("p", _asked(entries), class_="lede"),
        shown,
        el("div", _cards(entries, sweep), class_="cards"),
        class_="hero",
    )


def title_of(entries: Sequence[Entry], sweep: Sweep | None) -> str:
    """In a line: of the browser's tab, too."""
    models = _distinct(entry.summary.get("model_id") for entry in entries)
    of = f" on {', '.join(models)}" if models else ""
    if (search := only_search_of(entries)) is not None:
        arms = ", ".join(str(arm["name"]) for arm in search.summary.get("arms") or ())
        return f"Saturation{of}" if search.verb == SATURATE else f"A/B{f': {arms}' if arms else ''}{of}"
    if sweep is not None and _num_on(sweep) == len(entries):
        return f"Sweep of {sweep.option}{of}"
    if len(entries) == 1:
        return f"{entries[0].name}{of}"
    return f"{entries[0].name} and {entries[1].name}{of}" if len(entries) == 2 else f"{len(entries)} runs{of}"


def _num_on(sweep: Sweep) -> int:
    return sum(entry is not None for line in sweep.lines.values() for entry in line)


def _answers(entries: Sequence[Entry]) -> list[Markup]:
    """What an A/B or a search found, where the page is about one."""
    search = only_search_of(entries)
    return [] if search is None else [el("p", words, class_="answer") for words in answers_of(search)]


def answers_of(search: Search) -> list[str]:
    """In its own sentences."""
    told = search.summary.get("verdicts") or [search.summary.get("answer")]
    return [str(words) for words in told if words] or ["not finished: there is no answer yet"]


def _asked(entries: Sequence[Entry]) -> list[Child]:
    """What, of which server, when."""
    requests = sum(int(number_at(entry.summary, "planned") or 0) for entry in entries)
    loads = _distinct(_load(entry) for entry in entries)
    words: list[Child] = [el("strong", f"{requests:,}"), " requests"]
    datasets = _distinct(entry.summary.get("dataset_name") for entry in entries)
    if datasets:
        words.append(f" of {', '.join(datasets)}")
    if len(loads) == 1:
        words.append(f", {loads[0]}")
    servers = _distinct(_server(entry) for entry in entries)
    if servers:
        more = f"; and {len(servers) - _MOST_SERVERS} more" if len(servers) > _MOST_SERVERS else ""
        words += [" to ", "; ".join(servers[:_MOST_SERVERS]), more]
    dates = sorted(_distinct(entry.run.environment.get("started") for entry in entries))
    if dates:
        words += [". Measured ", el("time", _day(dates[0]))]
        if _day(dates[-1]) != _day(dates[0]):
            words += [" to ", el("time", _day(dates[-1]))]
    return [*words, "."]


def _load(entry: Entry) -> str | None:
    summary = entry.summary
    if summary.get("arrivals"):
        return str(summary["arrivals"])
    cap = summary.get("max_concurrency")
    return None if cap is None else f"{cap} at once"


def _server(entry: Entry) -> str | None:
    environment = entry.run.environment
    facts: dict[str, Any] = environment.get("server") or {}
    if not environment:
        return None
    version = f" {facts['version']}" if facts.get("version") else ""
    simulated = f", simulating {facts['simulated']}" if facts.get("simulated") else ""
    return f"{environment.get('backend')}{version} at {environment.get('url')}{simulated}"


def _day(label: str) -> str:
    """20261121-063410 as people write it."""
    if len(label) != 15 or not label.replace("-", "").isdigit():
        return label
    return f"{label[:4]}-{label[4:6]}-{label[6:8]} {label[9:11]}:{label[11:13]}"


def _verdicts(entries: Sequence[Entry]) -> list[Markup]:
    """Of the cache, and how far the figures can be trusted: how many runs say each."""
    badges = []
    for prefix, values in (
        ("Cache", [verdict_of(entry) for entry in entries]),
        ("Trust", [grade_of(entry) for entry in entries]),
    ):
        told = [str(value) for value in values if value is not None]
        for value in dict.fromkeys(told):
            count = told.count(value)
            of = f" ({count} of {len(entries)} runs)" if count < len(entries) else ""
            badges.append(badge(f"{prefix}: {value}{of}", _mood(value)))
    return badges


def verdict_of(entry: Entry) -> str | None:
    """Of the cache: the ledger's, which has heard all sides; else that of the answers alone."""
    ledger = entry.summary.get("ledger")
    found = ledger.get("verdict") if isinstance(ledger, dict) else entry.summary.get("verdict")
    return None if found is None else str(found)


def grade_of(entry: Entry) -> str | None:
    """Of the doctor."""
    return grade_of_keys(entry.summary) or grade_of_keys({"doctor": object_in(entry.run.path / DOCTOR_FILE)})


def _alarms(entries: Sequence[Entry]) -> list[Markup]:
    badges = []
    failed = sum(int(number_at(entry.summary, "failed") or 0) for entry in entries)
    if failed:
        planned = sum(int(number_at(entry.summary, "planned") or 0) for entry in entries)
        badges.append(badge(f"{failed:,} of {planned:,} requests failed", "bad"))
    unfinished = sum(not entry.run.finished for entry in entries)
    if unfinished:
        what = "not finished" if len(entries) == 1 else f"{unfinished} of {len(entries)} runs not finished"
        badges.append(badge(what, "bad"))
    saturated = sum(bool(entry.summary.get("saturated")) for entry in entries)
    if saturated:
        badges.append(badge("saturated" if len(entries) == 1 else f"{saturated} runs saturated", "warn"))
    return badges


def badge(text: str, mood: str) -> Markup:
    """A word with a sign before it: colour alone says nothing."""
    sign = {"good": "✓", "bad": "✕", "warn": "!", "calm": "·"}[mood]
    return el("span", el("span", sign, class_="sign", aria_hidden="true"), " ", text, class_=f"badge {mood}")


def _mood(value: str) -> str:
    if value.lower() in ("consistent", "a", "b"):
        return "good"
    return "warn" if value.lower() in ("not checked", "not reported", "c") else "bad"


def _cards(entries: Sequence[Entry], sweep: Sweep | None) -> list[Markup]:
    search = only_search_of(entries)
    cards = [] if search is None else _saturation(search)
    for title, key, unit, (beside, other) in FIGURES:
        told = [entry for entry in entries if number_at(entry.summary, key) is not None]
        if not told:
            continue
        if len(entries) == 1:
            cards.append(_card(title, *_single(told[0], key, unit, beside, other)))
        else:
            cards.append(_card(title, *_range(told, key, unit)))
    rates = [
        (entry, rate)
        for entry in entries
        if (rate := number_at(entry.summary, "measured_hit_rate")) is not None
    ]
    if rates and any(rate > 0 for _, rate in rates):
        low, high = min(rates, key=lambda at: at[1]), max(rates, key=lambda at: at[1])
        text = percent(high[1]) if low[1] == high[1] else f"{percent(low[1])} … {percent(high[1])}"
        cards.append(
            _card(
                "Cache hit rate, measured", text, "", _caption([verdict_of(at) or NOTHING for at, _ in rates])
            )
        )
    return cards


def _saturation(search: Search) -> list[Markup]:
    """The load that a search found."""
    keys = search.summary
    load, low, high = (number_at(keys, name) for name in ("load", "low", "high"))
    if search.verb != SATURATE or load is None:
        return []
    sure = percent(number_at(keys, "confidence"), 0)
    span = "" if high is None else f"{sure} sure: {f'{short(low)} … ' if low else 'below '}{short(high)}"
    asked = f"{keys.get('objectives')}, {percent(number_at(keys, 'share'))} of requests"
    return [_card("Holds", short(load), str(keys.get("unit")), [line for line in (span, asked) if line])]


def _caption(verdicts: Sequence[str]) -> list[Child]:
    """The verdict, or how many runs have each."""
    kinds = dict.fromkeys(verdicts)
    return [
        kind if len(kinds) == 1 else f"{kind}: {verdicts.count(kind)} of {len(verdicts)}" for kind in kinds
    ]


def _single(entry: Entry, key: str, unit: str, beside: str, other: str) -> tuple[str, str, list[Child]]:
    summary = entry.summary
    interval = interval_at(summary, key)
    below: list[Child] = []
    if interval is not None:
        below.append(f"95 %: {short(interval[0], 3)} … {short(interval[1], 3)}")
    second = number_at(summary, other)
    if second is not None:
        there = interval_at(summary, other)
        spread = "" if there is None else f" ({short(there[0], 3)} … {short(there[1], 3)})"
        below.append(f"{beside} {short(second, 3)}{spread}")
    return short(number_at(summary, key), 4), unit, below


def _range(told: Sequence[Entry], key: str, unit: str) -> tuple[str, str, list[Child]]:
    ordered = sorted(told, key=lambda entry: number_at(entry.summary, key) or 0.0)
    low, high = ordered[0], ordered[-1]
    text = f"{short(number_at(low.summary, key), 3)} … {short(number_at(high.summary, key), 3)}"
    return text, unit, [f"least: {low.name}", f"most: {high.name}"]


def _card(title: str, value: str, unit: str, below: Sequence[Child]) -> Markup:
    return el(
        "section",
        el("h2", title),
        el("p", el("span", value, class_="value"), " ", el("span", unit, class_="unit"), class_="figure"),
        [el("p", line, class_="beside") for line in below],
        class_="card",
    )


def _distinct(values: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(plain(value) for value in values if value is not None))
