"""Requests over time: how many were where, which was where in its lane, every token as it came, and what the
server said of itself meanwhile, on one axis that is zoomed as one.

Owns the columns the page's script draws them from, and the tables for those who do not see them.

Invariant: what is not drawn for its number is said; the curves above are of all requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.table import CODE, OUTCOMES, RecordTable
from prefixlab.bench.report.html.chart import Chart, Line
from prefixlab.bench.report.html.entries import Entry
from prefixlab.bench.report.html.lanes import (
    Lanes,
    Slices,
    Spans,
    in_ticks,
    lanes_of,
    num_token_slices,
    slices_of,
    spans_of,
    tick_for,
)
from prefixlab.bench.report.html.markup import Child, Markup, el, folded, table
from prefixlab.bench.report.html.packing import packed
from prefixlab.bench.report.html.parts.server_metrics import names as server_names
from prefixlab.bench.report.html.parts.server_metrics import server_charts
from prefixlab.bench.report.html.words import short

MAX_REQUESTS = 100_000
MAX_TOKENS = 300_000
MAX_NAMED = 20_000
"""In the whole page: requests drawn, arrivals drawn, requests that keep their id."""
TABLE_SLICES = 12
UNKNOWN = 2**32 - 1
"""A count nobody told."""


@dataclass(frozen=True)
class Timeline:
    """Of one run.

    Attributes:
        words: what is drawn, and what is not.
        columns: what the script draws lanes from.
        charts: over the same axis.
        rows: for the table.
    """

    name: str
    words: str
    columns: dict[str, Any]
    charts: Sequence[Chart]
    rows: list[list[Child]] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        charts = [{"name": chart.name, **chart.to_json()} for chart in self.charts]
        return {"name": self.name, "words": self.words, "charts": charts, **self.columns}


def timelines_of(entries: Sequence[Entry]) -> list[Timeline]:
    """One per run in which anything was sent; the room in the page is shared out evenly."""
    sent = [entry for entry in entries if not np.isnan(entry.run.table.sent_s).all()]
    share = max(1, len(sent))
    return [_timeline(entry, share) for entry in sent]


def _timeline(entry: Entry, share: int) -> Timeline:
    records = entry.run.table
    spans = spans_of(records)
    lanes = lanes_of(records, spans, MAX_REQUESTS // share, MAX_TOKENS // share)
    slices = slices_of(records, spans)
    return Timeline(
        name=entry.name,
        words=_words(spans, lanes),
        columns=_columns(records, spans, lanes, named=len(lanes.index) <= MAX_NAMED // share),
        charts=[
            _in_flight(slices),
            _tokens(slices_of(records, spans, num_token_slices(records, spans))),
            *server_charts(entry.run, spans),
        ],
        rows=_rows(records, spans),
    )


def _words(spans: Spans, lanes: Lanes) -> str:
    words = f"{len(lanes.index):,} requests in {lanes.num_lanes:,} lanes."
    if lanes.num_left_out:
        how = f"one lane of {lanes.every}" if lanes.every > 1 else "the first"
        words = (
            f"{len(lanes.index):,} of {len(spans.row):,} requests are drawn ({how}), to keep the file small."
        )
    if not len(lanes.token_s):
        return f"{words} There are too many tokens to draw each of them."
    if lanes.tokens_every > 1:
        return f"{words} Tokens are drawn of one lane of {lanes.tokens_every}."
    return f"{words} Every token is drawn."


def _columns(records: RecordTable, spans: Spans, lanes: Lanes, *, named: bool) -> dict[str, Any]:
    index = lanes.index
    rows = spans.row[index]
    tick_s = tick_for(spans.duration_s)
    start, sent, first, end = (
        in_ticks(column[index], tick_s)
        for column in (spans.start_s, spans.sent_s, spans.first_s, spans.end_s)
    )
    cached = records.num_cached_tokens[rows]
    return {
        "tickS": tick_s,
        "spanS": spans.duration_s,
        "numLanes": lanes.num_lanes,
        "tokensEvery": lanes.tokens_every,
        "lane": packed(lanes.lane.astype(np.uint16 if lanes.num_lanes < 2**16 else np.uint32)),
        "start": packed(start),
        "queued": packed(sent - start),
        "prefill": packed(first - sent),
        "decode": packed(end - first),
        "outcome": packed(records.outcome[rows]),
        "prompt": packed(records.prompt_tokens[rows].clip(0).astype(np.uint32)),
        "cached": packed(np.where(cached < 0, UNKNOWN, cached).astype(np.uint32)),
        "output": packed(records.num_output_tokens[rows].astype(np.uint32)),
        "tokenStart": packed(lanes.token_start.astype(np.uint32)),
        "tokenAt": packed(in_ticks(lanes.token_s, tick_s)),
        "ids": [records.request_id[row] for row in rows.tolist()] if named else None,
        "outcomes": [outcome.value for outcome in OUTCOMES],
        "ok": CODE[Outcome.OK],
    }


def _in_flight(slices: Slices) -> Chart:
    lines = [
        Line(name="prefill (sent, no token yet)", y=slices.prefill, colour=0),
        Line(name="decode", y=slices.decode, colour=2, dashes=1),
    ]
    if slices.queued.max(initial=0.0) > 0.01:
        lines.append(Line(name="queued", y=slices.queued, colour=1, dashes=2))
    caption = "How many requests were where, on average over each slice of time."
    return Chart(
        name="time-flight",
        title="Requests in flight",
        caption=caption,
        x_label="s",
        y_label="requests",
        x=slices.middle_s,
        lines=lines,
        timeline=0,
    )


def _tokens(slices: Slices) -> Chart:
    return Chart(
        name="time-tokens",
        title="Output tokens per second",
        caption="As they arrived at the client, over stretches of several steps.",
        x_label="s",
        y_label="tokens/s",
        x=slices.middle_s,
        lines=[Line(name="tokens/s", y=slices.tokens_per_s, colour=3)],
        timeline=0,
    )


def _rows(records: RecordTable, spans: Spans) -> list[list[Child]]:
    slices = slices_of(records, spans, TABLE_SLICES)
    columns = (slices.middle_s, slices.queued, slices.prefill, slices.decode, slices.tokens_per_s)
    return [[short(float(value), 3) for value in row] for row in zip(*columns, strict=True)]


def section(timelines: Sequence[Timeline]) -> Markup:
    """The places the script draws in, and the tables."""
    heads = ("middle, s", "queued", "prefill", "decode", "tokens/s")
    chosen = el(
        "label",
        "Run ",
        el(
            "select",
            [el("option", of.name, value=number) for number, of in enumerate(timelines)],
            id="time-run",
        ),
        hidden=len(timelines) == 1,
    )
    there = {chart.name for timeline in timelines for chart in timeline.charts}
    return el(
        "section",
        el("h2", "Requests over time"),
        el("div", chosen, _buttons(), class_="controls"),
        [_chart_place(name) for name in ("time-flight", "time-tokens")],
        _canvas(
            "lanes",
            "Each request",
            "A lane holds one request at a time: thin while queued, full height in prefill (until its first "
            "token), half height in decode; a failed one is crossed. ",
        ),
        _canvas(
            "tokens",
            "Token arrivals",
            "A tick for every arrival, in the lane of its request. A gap across all lanes is a stall. ",
        ),
        [_chart_place(name) for name in server_names() if name in there],
        folded(
            "The figures as a table",
            [
                table(f"{of.name}: means over {TABLE_SLICES} slices of time", heads, of.rows)
                for of in timelines
            ],
        ),
        id="timeline",
    )


def _buttons() -> Markup:
    words = (
        ("in", "+", "Zoom in"),
        ("out", "-", "Zoom out"),
        ("left", "←", "Earlier"),
        ("right", "→", "Later"),
        ("all", "All", "Show all of the run"),
    )
    return el(
        "div",
        [
            el("button", sign, type="button", data_zoom=act, aria_label=of, title=of)
            for act, sign, of in words
        ],
        el("output", id="time-range", aria_live="polite"),
        role="group",
        aria_label="Zoom of the time axis",
        class_="zoom",
    )


def _chart_place(name: str) -> Markup:
    return el(
        "figure",
        el("h3", id=f"{name}-title"),
        el("div", class_="legend"),
        el("div", class_="plot low", tabindex=0, role="img", aria_labelledby=f"{name}-title"),
        el("p", class_="readout", aria_live="polite"),
        class_="chart wide",
        data_time_chart=name,
    )


def _canvas(name: str, title: str, caption: str) -> Markup:
    keys = "Drag to move, Ctrl and wheel or + and - to zoom, arrows to move, 0 for all."
    return el(
        "figure",
        el("h3", title, id=f"raster-{name}-title"),
        el(
            "canvas",
            id=f"raster-{name}",
            tabindex=0,
            role="img",
            aria_labelledby=f"raster-{name}-title",
            aria_describedby=f"raster-{name}-about",
        ),
        el("p", class_="readout", id=f"raster-{name}-readout", aria_live="polite"),
        el(
            "figcaption",
            caption,
            el("span", class_="raster-words"),
            el("span", f" {keys}", class_="hint"),
            id=f"raster-{name}-about",
        ),
        class_="chart wide",
    )
