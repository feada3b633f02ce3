"""Progress on stderr: bars that move where somebody watches, lines that stay where nobody does.

Owns what is shown while a run goes on. Reads no clock of its own: time comes with each Progress. Stdout is
for data, so nothing is written there.

Invariant: whatever is shown is taken away or ended with a newline before anything else is printed.
"""

from __future__ import annotations

import re
from collections import deque
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from prefixlab.bench.loadgen.driver import Progress as RunProgress

LINE_EVERY_S = 5.0
"""Between lines where nobody watches."""
SPAN_S = 1.0
"""Stretch over which rates are taken, so that they neither flicker nor lag."""
LONGEST_SPAN_S = 30.0
"""Where a count stood still for SPAN_S, its rate is taken over as much more as it takes to see it grow."""

_BARS = (("sent", "sent"), ("first", "first tokens"), ("tokens", "tokens"), ("finished", "finished"))


class ProgressBar:
    """Bars over all requests of one or more runs. Use as a context manager; give each run a `describe`."""

    def __init__(
        self, total_requests: int, total_tokens: int | None = None, *, console: Console | None = None
    ) -> None:
        """`total_tokens`: output tokens planned over all runs; None where nobody knows."""
        self._console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}", justify="right"),
            BarColumn(bar_width=40),
            TextColumn("{task.fields[shown]}"),
            console=self._console,
        )
        totals = {name: total_requests for name, _ in _BARS} | {"tokens": total_tokens}
        self._tasks: dict[str, TaskID] = {
            name: self._bars.add_task(label, total=totals[name], shown="") for name, label in _BARS
        }
        self._live = Live(console=self._console, transient=True, refresh_per_second=8)
        self._what = ""
        self._before = dict.fromkeys(self._tasks, 0)
        self._now: RunProgress | None = None
        self._rates = Rates()
        self._line_at_s = LINE_EVERY_S

    def __enter__(self) -> ProgressBar:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bars away, before something else is printed. May be called twice."""
        self._live.stop()

    def describe(self, what: str) -> None:
        """What is being measured now: the next run, whose progress counts from 0 again."""
        if self._now is not None:
            for name in self._before:
                self._before[name] += getattr(self._now, name)
        self._what, self._now, self._rates, self._line_at_s = what, None, Rates(), LINE_EVERY_S

    def update(self, progress: RunProgress) -> None:
        """A driver's `on_progress`."""
        self._now = progress
        self._rates.add(progress)
        if self._console.is_terminal:
            for name, task in self._tasks.items():
                done = self._before[name] + getattr(progress, name)
                total = self._bars.tasks[task].total
                shown = f"{done:,}" + ("" if total is None else f" / {total:,.0f}") + self._rates.of(name)
                self._bars.update(task, completed=done, shown=shown)
            words = Text(f"{self._doing}  " if self._doing else "", style="bold")
            self._live.update(Group(self._bars, words + Text(state(progress), style="not bold")))
        elif progress.elapsed_s >= self._line_at_s:
            self._line_at_s = progress.elapsed_s + LINE_EVERY_S
            self.say(f"{f'{self._doing}: ' if self._doing else ''}{line(progress, self._rates)}")

    @property
    def _doing(self) -> str:
        """What is being measured; no longer "sending" once nothing is left to send."""
        now = self._now
        is_over = now is not None and not now.queued and now.finished + now.in_flight >= now.planned
        return re.sub(r"\bsending$", "all sent", self._what) if is_over else self._what

    def say(self, text: str) -> None:
        """A line that stays, above the bars."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class Rates:
    """How fast each count grows, over about the last SPAN_S seconds, or more where it grows more slowly."""

    def __init__(self) -> None:
        self._seen: deque[RunProgress] = deque()

    def add(self, progress: RunProgress) -> None:
        self._seen.append(progress)
        while len(self._seen) > 2 and progress.elapsed_s - self._seen[1].elapsed_s >= LONGEST_SPAN_S:
            self._seen.popleft()

    def of(self, name: str) -> str:
        """` · 12.5/s`; nothing before there is a stretch to take it over."""
        if len(self._seen) < 2 or self._seen[-1].elapsed_s <= self._seen[0].elapsed_s:
            return ""
        last, rate = self._seen[-1], 0.0
        for first in reversed(self._seen):
            grown, span_s = getattr(last, name) - getattr(first, name), last.elapsed_s - first.elapsed_s
            if span_s >= SPAN_S or first is self._seen[0]:
                rate = max(0.0, grown / span_s)
                if grown > 0:
                    break
        digits = 0 if rate >= 100 else 1 if rate >= 1 or not rate else 2
        return f" · {rate:,.{digits}f}/s"


def state(progress: RunProgress) -> str:
    """Latencies so far, what is under way, what went wrong."""
    parts = [f"{progress.elapsed_s:,.0f} s"]
    if progress.failed:
        parts.append(f"{progress.failed:,} FAILED")
    if progress.ttft_s is not None:
        parts.append(f"TTFT {progress.ttft_s * 1e3:,.1f} ms")
    if progress.itl_s is not None:
        parts.append(f"ITL {progress.itl_s * 1e3:,.2f} ms")
    parts.append(f"{progress.in_flight:,} in flight (peak {progress.peak_in_flight:,})")
    if progress.queued:
        parts.append(f"{progress.queued:,} queued (peak {progress.peak_queued:,})")
    return ", ".join(parts)


def line(progress: RunProgress, rates: Rates) -> str:
    """All of it in one line."""
    return (
        f"{progress.sent:,} of {progress.planned:,} sent{rates.of('sent')}, {progress.first:,} first tokens"
        f"{rates.of('first')}, {progress.tokens:,} tokens{rates.of('tokens')}, {progress.finished:,} finished"
        f"{rates.of('finished')}; {state(progress)}"
    )
