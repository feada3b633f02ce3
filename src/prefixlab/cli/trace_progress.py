"""How far a long file has come, on stderr: a bar where somebody watches, nothing where nobody does.

Owns what the verbs of traces show while they read, write and download.

Invariant: the bar is gone before anything else is printed.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn


class Counter:
    """One bar. Use as a context manager; `update` is an `on_read`, and an `on_bytes` of downloads."""

    def __init__(self, what: str, unit: str, *, console: Console | None = None) -> None:
        """`unit`: `bytes`, or what else is counted."""
        self._console = console or Console(stderr=True)
        amount = (DownloadColumn(),) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), *amount, console=self._console, transient=True
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Counter:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def update(self, done: int, total: int | None) -> None:
        self._bar.update(self._task, completed=done, total=total)
