"""A chart as data: what the page's script draws, and the table that says the same in figures.

Owns the form `assets/lines.js` reads, and the text alternative. Draws nothing.

Invariant: whatever a chart shows by colour it also says by name, and every line is in the table below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from prefixlab.bench.report.html.markup import Markup, el, folded, table
from prefixlab.bench.report.html.packing import packed
from prefixlab.bench.report.html.words import short

Column = npt.NDArray[np.float64]
MAX_TABLE_ROWS = 24


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        y: shape (n,), NaN where there is none.
        low, high: its band, shapes (n,).
        colour: lines of one subject have the same.
        dashes: pattern, 0 for none: no two lines of a chart that could be mixed up have the same.
    """

    name: str
    y: Column
    low: Column | None = None
    high: Column | None = None
    colour: int = 0
    dashes: int = 0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over one axis.

    Attributes:
        name: unique in the page.
        x: shape (n,), ascending.
        ticks: words for the places of `x`, where they are the only ones worth a tick.
        x_scale: "linear", "log2" or "log10".
        y_max: the top of the axis, where it is known.
        timeline: number of the timeline whose zoom it shares.
        stepped: lines are levels, which hold until the next x.
    """

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    x: Column
    lines: Sequence[Line]
    x_scale: str = "linear"
    y_max: float | None = None
    ticks: Sequence[str] | None = None
    timeline: int | None = None
    stepped: bool = False
    markers: bool = field(default=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "xScale": self.x_scale,
            "yMax": self.y_max,
            "x": packed(self.x),
            "ticks": None if self.ticks is None else list(self.ticks),
            "timeline": self.timeline,
            "stepped": self.stepped,
            "markers": self.markers,
            "lines": [
                {
                    "name": line.name,
                    "y": packed(line.y),
                    "low": None if line.low is None else packed(line.low),
                    "high": None if line.high is None else packed(line.high),
                    "colour": line.colour,
                    "dashes": line.dashes,
                }
                for line in self.lines
            ],
        }

    def figure(self) -> Markup:
        """Where the script draws it, with its words and its table."""
        return el(
            "figure",
            el("h3", self.title, id=f"{self.name}-title"),
            el("div", class_="legend", data_legend_of=self.name),
            el(
                "div",
                class_="plot",
                data_chart=self.name,
                tabindex=0,
                role="img",
                aria_labelledby=f"{self.name}-title",
                aria_describedby=f"{self.name}-about",
            ),
            el("p", class_="readout", aria_live="polite", data_readout_of=self.name),
            el("figcaption", self.caption, id=f"{self.name}-about"),
            folded("The figures as a table", self._table()),
            class_="chart",
        )

    def _table(self) -> Markup:
        rows = np.arange(len(self.x))
        caption = f"{self.title}; {self.y_label} by {self.x_label}"
        if len(rows) > MAX_TABLE_ROWS:
            rows = np.linspace(0, len(self.x) - 1, MAX_TABLE_ROWS).round().astype(np.int64)
            caption += f" ({MAX_TABLE_ROWS} of {len(self.x):,} places)"

        def cell(line: Line, row: int) -> str:
            text = short(float(line.y[row]))
            if line.low is None or line.high is None or np.isnan(line.low[row]):
                return text
            return f"{text} ({short(float(line.low[row]))} … {short(float(line.high[row]))})"

        written = [
            [
                self.ticks[row] if self.ticks is not None else short(float(self.x[row])),
                *(cell(line, row) for line in self.lines),
            ]
            for row in rows.tolist()
        ]
        return table(caption, [self.x_label, *(line.name for line in self.lines)], written)
