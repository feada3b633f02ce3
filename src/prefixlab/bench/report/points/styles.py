"""The forms in which a point is shown, by the names `--style` takes.

Owns the table of styles. Writes to the console it is given, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from rich.console import Console

from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.report.points.block import point_block
from prefixlab.bench.report.points.keys import result_keys
from prefixlab.bench.report.points.table import point_table


def show_point(console: Console, result: PointResult, style: str) -> None:
    """KeyError for a style that is none of STYLES."""
    STYLES[style](console, result)


def _vllm(console: Console, result: PointResult) -> None:
    console.print(point_block(result), markup=False, highlight=False, soft_wrap=True)


def _table(console: Console, result: PointResult) -> None:
    console.print(point_table(result))
    if result.diagnosis is not None:
        console.print(str(result.diagnosis), markup=False, highlight=False, soft_wrap=True)


def _json(console: Console, result: PointResult) -> None:
    text = msgspec.json.format(msgspec.json.encode(result_keys(result)), indent=1).decode()
    console.print(text, markup=False, highlight=False, soft_wrap=True)


STYLES: Mapping[str, Callable[[Console, PointResult], None]] = {
    "vllm": _vllm,
    "table": _table,
    "json": _json,
}
