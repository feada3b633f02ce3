"""How a figure is written. Owns digits and units on the screen; what was not measured is n/a, never 0."""

from __future__ import annotations


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def number(value: float | None, digits: int = 0) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def brief(value: float | None) -> str:
    """One decimal below a thousand, none from there on: for tables with many columns."""
    return number(value, 0 if value is not None and abs(value) >= 999.95 else 1)
