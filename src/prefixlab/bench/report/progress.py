"""Progress on stderr: a bar where somebody watches, lines that stay where nobody does. Stdout is for data."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from prefixlab.bench.loadgen.driver import Progress as RunProgress


class ProgressBar:
    """One bar over all requests of a run. Use as a context manager."""

    def __init__(self, total_requests: int) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("requests"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task: TaskID = self._bar.add_task("", total=total_requests, state="")
        self._before = self._finished = 0

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away, before something else is printed. May be called twice."""
        self._bar.stop()

    def describe(self, what: str) -> None:
        """What is being measured now: the next run, whose progress counts from 0 again."""
        self._before += self._finished
        self._finished = 0
        self._bar.update(self._task, description=what)

    def update(self, progress: RunProgress) -> None:
        self._finished = progress.finished
        state = "" if progress.ttft_s is None else f"TTFT {progress.ttft_s * 1e3:,.0f} ms"
        if progress.failed:
            state += f", {progress.failed} failed"
        self._bar.update(self._task, completed=self._before + self._finished, state=state)

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
