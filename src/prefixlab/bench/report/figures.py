"""How a figure is written. Owns digits and units on the screen; what was not measured is n/a, never 0."""

from __future__ import annotations


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def number(value: float | None, digits: int = 0) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"
