"""How every picture looks: fonts, colours, grid, size of print, header, footer, and the file it goes to.

Owns what pictures have in common. What is drawn, and what it means, is each picture's own file's.

Invariants: text that users wrote is drawn as they wrote it; what colour tells apart, markers and dashes tell
apart too, so that a picture says the same in black and white.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from prefixlab.core.errors import ConfigError

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
BLUE, ORANGE = "#1f6feb", "#d9480f"
DPI = 150
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}

LEFT_IN = 0.13
TITLE_PT, SUBTITLE_PT, NOTE_PT, PROVENANCE_PT = 14.0, 9.5, 9.0, 7.5
MOST_PROVENANCE_LINES = 2
_LINE = 1.5
"""Height of a line of text, in its size."""
_CHARACTER = 0.56
"""Width of a character, on average, in the size of the text."""


@dataclass(frozen=True, slots=True)
class Look:
    """Of one line among several."""

    colour: str
    marker: str
    dash: str
    hollow: bool


# Six colours that people with any colour vision tell apart (Okabe and Ito 2008), then the same with dashes.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", INK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
LOOKS: Sequence[Look] = tuple(
    Look(
        _COLOURS[number % len(_COLOURS)],
        marker,
        "--" if number >= len(_COLOURS) else "-",
        number >= len(_COLOURS),
    )
    for number, marker in enumerate(_MARKERS)
)


def draw(build: Callable[[], Figure]) -> Figure:
    """A figure made in our style, whatever the settings of this machine."""
    with _our_settings():
        return build()


@contextmanager
def _our_settings() -> Iterator[None]:
    """Ticks are made as late as when the file is written: then too."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def sheet(
    width_in: float,
    height_in: float,
    *,
    title: str,
    subtitle: str = "",
    remark: str = "",
    notes: str = "",
    alarming: bool = False,
    provenance: str = "",
) -> Figure:
    """An empty picture with its header and its footer. Axes find the room between them.

    Args:
        remark: what must not be overlooked, in bold below the subtitle.
        notes: what the reader must know, below the axes; `alarming`, in another colour.
        provenance: where all this comes from, in small print; what is too long ends in an ellipsis.
    """
    figure = Figure(figsize=(width_in, height_in))

    def wrapped(text: str, size_pt: float) -> list[str]:
        width = int((width_in - 2 * LEFT_IN) * 72 / (size_pt * _CHARACTER))
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def put(lines: Iterable[str], top_in: float, size_pt: float, **style: Any) -> float:
        """The lines below each other. Returns where they end."""
        for line in lines:
            figure.text(
                LEFT_IN / width_in,
                1 - top_in / height_in,
                line,
                ha="left",
                va="top",
                fontsize=size_pt,
                parse_math=False,
                **style,
            )
            top_in += size_pt * _LINE / 72
        return top_in

    top_in = put([title], 0.12, TITLE_PT, fontweight="bold")
    top_in = put(wrapped(subtitle, SUBTITLE_PT), top_in + 0.06, SUBTITLE_PT, color=MUTED)
    top_in = put(wrapped(remark, SUBTITLE_PT), top_in, SUBTITLE_PT, fontweight="bold", color=ORANGE)
    told, source = wrapped(notes, NOTE_PT), wrapped(provenance, PROVENANCE_PT)
    if len(source) > MOST_PROVENANCE_LINES:
        source = [*source[: MOST_PROVENANCE_LINES - 1], source[MOST_PROVENANCE_LINES - 1][:-1] + "…"]
    bottom_in = (len(told) * NOTE_PT + len(source) * PROVENANCE_PT) * _LINE / 72 + 0.08
    end_in = put(told, height_in - bottom_in, NOTE_PT, color=ORANGE if alarming else MUTED)
    put(source, end_in, PROVENANCE_PT, color=MUTED)
    room = (0.0, (bottom_in + 0.03) / height_in, 1.0, 1 - (top_in + 0.06) / height_in)
    figure.set_layout_engine("tight", rect=room, w_pad=3, h_pad=2)
    return figure


def dress(axes: Axes, title: str, across: str, up: str) -> None:
    """Title, labels with their units, grid."""
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(lambda number, _: f"{number:,.10g}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def from_zero(axes: Axes, highest: float) -> None:
    """Room above the highest mark: autoscaling leaves none where all values are nearly the same."""
    axes.set_ylim(0, 1.1 * highest or 1.0)


def say(axes: Axes, text: str) -> None:
    """In place of figures that are not there."""
    axes.text(
        0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=axes.transAxes, parse_math=False
    )


def name_lines(axes: Axes, handles: Sequence[Artist], names: Sequence[str], **where: Any) -> Legend:
    """A legend that shows names as they are: a leading underscore, dollars and all."""
    legend = axes.legend(list(handles), [f"{number}" for number in range(len(names))], **where)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return legend


def save(figure: Figure, path: Path, flag: str = "") -> None:
    """The file's ending says how (PNG, SVG, PDF).

    Raises:
        ConfigError: it cannot be written, or matplotlib does not know its ending; names `flag`.
    """
    try:
        with _our_settings():
            figure.savefig(path, dpi=DPI)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag} {path} cannot be written: {error}".lstrip()) from None
