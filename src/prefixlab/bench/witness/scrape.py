"""The server's own metrics, fetched again and again while a run is under way.

Owns when `/metrics` is asked, and putting what it said on the time axis of the run's records. The form of
what is kept is `samples.py`'s.

The run's time 0 is its driver's start, which the driver notes on this machine's monotonic clock; so looking
begins before it, at times below 0, and the last beat is after the last answer: what a counter grew by between
the two is what the run did, and what others did meanwhile. A sample's time is the middle of its question.

Invariants: one question to a server at a time; a beat that is due while one is unanswered is left out, not
made up for; nothing a server does to `/metrics` fails a run or holds it up (by more than FIRST_WAIT_S before
it and LAST_WAIT_S after).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from prefixlab.bench.loadgen.job import read_start
from prefixlab.bench.records.run_dir import Segment
from prefixlab.bench.report.console import counted
from prefixlab.bench.targets.control import Control, InProcessControl
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.targets.several import SeveralEndpoints
from prefixlab.bench.witness.samples import CPU, DURATION, METRICS, UP, SampleLog, Samples, write_metrics
from prefixlab.core.clock import Clock, MonotonicClock, thread_cpu_s
from prefixlab.core.errors import ConfigError, TargetError

FIRST_WAIT_S = 1.0
"""For the first beat, so that it is from before the first request."""
LAST_WAIT_S = 5.0
MAX_BACK_OFF = 16
"""Beats between questions to a server that does not answer, at most."""


class MetricsScrape:
    """Implements `witness.Witness`.

    Args:
        servers: by their URLs; several in the order of their drivers.
        clock: the one drivers note their start on.
        interval_s: from beat to beat.
    """

    def __init__(self, servers: Mapping[str, Control], clock: Clock, interval_s: float) -> None:
        self._servers = dict(servers)
        self._clock = clock
        self._interval_s = interval_s
        self._silent: set[str] = set()
        self._watches: dict[str, _Watch] = {}
        self._folder: Path | None = None
        self._started_s = 0.0

    @classmethod
    def of(cls, endpoint: Endpoint, interval_s: float) -> MetricsScrape:
        """Of the server, or the servers, that a run asks; an engine in this process has none."""
        each = endpoint.each if isinstance(endpoint, SeveralEndpoints) else (endpoint,)
        servers = {one.url: one.control for one in each if not isinstance(one.control, InProcessControl)}
        return cls(servers, MonotonicClock(), interval_s)

    def start(self, folder: Path | None) -> None:
        """See Witness. Without a folder nothing is looked at, for nothing could be kept."""
        self._folder, self._watches = folder, {}
        self._started_s = self._clock.now()
        if folder is None:
            return
        for url, control in self._servers.items():
            if url not in self._silent:
                self._watches[url] = _Watch(control, self._clock, self._interval_s)
        for watch in self._watches.values():
            watch.start()
        for watch in self._watches.values():
            watch.first.wait(max(0.0, self._started_s + FIRST_WAIT_S - self._clock.now()))

    def stop(self) -> list[str]:
        """See Witness."""
        if self._folder is None:
            return []
        for watch in self._watches.values():
            watch.tell_to_end()
        last_s = self._clock.now() + LAST_WAIT_S
        notes: list[str] = []
        seen: dict[str, Samples] = {}
        starts_s = self._starts_s(self._folder)
        for url, watch in self._watches.items():
            samples = watch.end(max(0.0, last_s - self._clock.now()))
            notes += [f"{url}: {note}" if len(self._servers) > 1 else note for note in watch.notes()]
            if watch.is_silent:
                self._silent.add(url)
            else:
                seen[url] = replace(samples, times_s=samples.times_s - starts_s[url])
        if seen:
            try:
                write_metrics(self._folder / METRICS, seen)
            except ConfigError as error:
                notes.append(f"no {METRICS}: {error}")
        return notes

    def _starts_s(self, folder: Path) -> dict[str, float]:
        """When each server's driver began; where it did not get there, when we did."""
        folders = Segment(0, folder, {}).driver_folders()
        if len(folders) != len(self._servers):
            folders = [folder] * len(self._servers)
        starts_ns = [read_start(one) for one in folders]
        return {
            url: self._started_s if start_ns is None else start_ns / 1e9
            for url, start_ns in zip(self._servers, starts_ns, strict=True)
        }


class _Watch:
    """One server during one stretch, in a thread of its own.

    Attributes:
        first: set once the first beat is over, whatever came of it.
        is_silent: the server tells no metrics.
    """

    def __init__(self, control: Control, clock: Clock, interval_s: float) -> None:
        self._control = control
        self._clock = clock
        self._interval_s = interval_s
        self._log = SampleLog()
        self._lock = threading.Lock()
        self._told_to_end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._num_left_out = 0
        self._num_failed = 0
        self._last_error = ""
        self._is_over = False
        self.first = threading.Event()
        self.is_silent = False

    def start(self) -> None:
        self._thread.start()

    def tell_to_end(self) -> None:
        self._told_to_end.set()

    def end(self, wait_s: float) -> Samples:
        """What was seen, its last beat included if it comes within `wait_s`; later answers are not heard."""
        self._thread.join(wait_s)
        with self._lock:
            self._is_over = True
            return self._log.samples()

    def notes(self) -> list[str]:
        if self.is_silent:
            return [f"no {METRICS}: the server tells no metrics (of SGLang they need --enable-metrics)"]
        notes = []
        if self._num_failed:
            times = counted(self._num_failed, "time")
            notes.append(f"the server did not tell its metrics {times}: {self._last_error}")
        if self._thread.is_alive():
            notes.append(f"the last of the server's metrics did not come within {LAST_WAIT_S:g} s")
        if self._num_left_out:
            notes.append(
                f"the server took longer than --scrape-interval {self._interval_s:g} to tell its metrics: "
                f"{counted(self._num_left_out, 'beat')} left out"
            )
        if self._log.thinned > 1:
            notes.append(
                f"of {self._log.num_series:,} series of server metrics one beat in {self._log.thinned} is "
                "kept"
            )
        return notes

    def _run(self) -> None:
        due_s = self._clock.now()
        in_vain = 0
        while not self._told_to_end.is_set():
            in_vain = 0 if self._beat() else in_vain + 1
            self.first.set()
            if self.is_silent:
                return
            # Beats keep to a grid; one that is kept in every so many needs to be asked for no oftener.
            step_s = self._interval_s * self._log.thinned
            due_s += step_s * min(2**in_vain, MAX_BACK_OFF)
            late_s = self._clock.now() - due_s
            if late_s > 0:
                missed = int(late_s / step_s) + 1
                self._num_left_out += missed
                due_s += missed * step_s
            self._told_to_end.wait(max(0.0, due_s - self._clock.now()))
        self._beat()

    def _beat(self) -> bool:
        """Ask once; whether it answered."""
        asked_s = self._clock.now()
        text, error = None, ""
        try:
            text = self._control.metrics_text()
        except (TargetError, RuntimeError) as failure:  # the latter of a client closed after LAST_WAIT_S
            error = str(failure)
        told_s = self._clock.now()
        with self._lock:
            if self._is_over:
                return False
            if text is None and not error and not self.first.is_set():
                self.is_silent = True
                return False
            if text is None:
                self._num_failed += 1
                self._last_error = error or "the answer is no success"
            own = {UP: float(text is not None), DURATION: told_s - asked_s, CPU: thread_cpu_s()}
            self._log.add((asked_s + told_s) / 2, text, own)
        return text is not None
