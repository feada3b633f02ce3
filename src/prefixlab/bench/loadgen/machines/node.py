"""One machine's part in a run: a share of a job in a folder of its own, and a fleet that works on it.

Owns the folder and the thread that the fleet lives in. Knows no network: it is called from elsewhere (as an
actor of `ray_cluster.py`), and says what is new whenever it is asked.

The fleet has a thread of its own because its processes die with the thread that started them, and the threads
that calls come on are not ours.

Invariant: a line is handed out whole, and as often as it is asked for; when `close` has returned, no process
and no file of ours is left.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen import progress
from prefixlab.bench.loadgen.fleet import FleetEnd, Interrupts, LocalFleet
from prefixlab.bench.loadgen.sockets.stamps import monotonic_ns
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.errors import ConfigError

MAX_NEWS_BYTES = 16 << 20
"""Of one worker's lines in one answer; the rest comes with the next."""
_CLOSING_S = 10.0


@dataclass(frozen=True, slots=True)
class News:
    """How it stands.

    Attributes:
        ready: all processes stand by.
        refused: why the job cannot be done here.
        broken: what else went wrong; nothing more comes.
        lines: worker → whole lines of its records, from where the asker had got to.
        counters: worker → its counters, as `progress.py` lays them out.
        ended: every process has ended, and every line there will be is written.
        health: with `ended`: of all processes here, as JSON.
        deaths: with `ended`: worker → how it ended, if not in order.
    """

    ready: bool
    refused: str | None = None
    broken: str | None = None
    lines: dict[int, bytes] = field(default_factory=dict)
    counters: dict[int, bytes] = field(default_factory=dict)
    ended: bool = False
    health: str | None = None
    deaths: dict[int, str] = field(default_factory=dict)


class Node:
    """See the module. One run at a time: `open`, `write`…, `prepare`, `go`, `close`. No method waits for the
    run; only `close` waits, for its processes to go.
    """

    def __init__(self) -> None:
        self._run: _Run | None = None

    def clock_ns(self) -> int:
        """This machine's monotonic clock, on which `go` counts."""
        return monotonic_ns()

    def open(self) -> None:
        """An empty folder, for nobody else's eyes."""
        self.close()
        self._run = _Run(Path(mkdtemp(prefix="prefixlab-")))

    def write(self, name: str, data: bytes) -> None:
        """Append to a file of the folder."""
        with (self._current.folder / name).open("ab") as file:
            file.write(data)

    def prepare(self, workers: Sequence[int]) -> None:
        """Start the processes of these workers."""
        self._current.begin(workers)

    def go(self, start_ns: int) -> None:
        self._current.starts.put(start_ns)

    def stop(self) -> None:
        """Have the run end in order."""
        self._current.interrupts.count += 1

    def news(self, have: Mapping[int, int]) -> News:
        """What is new.

        Args:
            have: worker → bytes of lines the asker has.
        """
        return self._current.news(have)

    def close(self) -> None:
        """Give up whatever is under way."""
        if self._run is not None:
            self._run.close()
            self._run = None

    @property
    def _current(self) -> _Run:
        assert self._run is not None, "a run is opened first"
        return self._run


class _Abandoned(Exception):  # noqa: N818 - not an error: how the thread is told to leave
    pass


class _Run:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.interrupts = Interrupts()  # not entered: signals are not for this process to answer
        self._closing = False
        self._ready = False
        self._refused: str | None = None
        self._broken: str | None = None
        self._end: FleetEnd | None = None
        self._thread: threading.Thread | None = None

    def begin(self, workers: Sequence[int]) -> None:
        for worker in workers:
            progress.create(jobs.progress_path(self.folder, worker))
        self._thread = threading.Thread(target=self._work, args=(workers,), name="fleet", daemon=True)
        self._thread.start()

    def news(self, have: Mapping[int, int]) -> News:
        end = self._end  # looked at first: what follows is complete then
        lines = {worker: self._lines(worker, at) for worker, at in have.items()}
        return News(
            ready=self._ready,
            refused=self._refused,
            broken=self._broken,
            lines={worker: data for worker, data in lines.items() if data},
            counters={worker: jobs.progress_path(self.folder, worker).read_bytes() for worker in have},
            ended=end is not None,
            health=None if end is None else end.health.to_json(),
            deaths={} if end is None else end.deaths,
        )

    def close(self) -> None:
        self._closing = True
        self.starts.put(None)
        if self._thread is not None:
            self._thread.join(_CLOSING_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _work(self, workers: Sequence[int]) -> None:
        with contextlib.suppress(OSError):
            # Ray gives its processes a low priority, which a loop that has to be on time should not inherit.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 0)
        try:
            with LocalFleet(self.folder, workers, MonotonicClock()) as fleet:
                fleet.wait_until_ready()
                # All workers have the plan in memory now, and it may hold a key.
                for path in self.folder.glob("plan.*"):
                    path.unlink()
                self._ready = True
                start_ns = self.starts.get()
                if start_ns is None:
                    return
                fleet.start(start_ns)
                fleet.watch(self.interrupts, self._look_up)
                self._end = fleet.end()
        except _Abandoned:
            pass
        except ConfigError as error:
            self._refused = str(error)
        except Exception as error:  # it has no other way to be heard
            self._broken = f"{type(error).__name__}: {error}"

    def _look_up(self) -> None:
        if self._closing:
            raise _Abandoned

    def _lines(self, worker: int, at: int) -> bytes:
        path = jobs.records_path(self.folder, worker)
        if not path.exists():
            return b""
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(MAX_NEWS_BYTES)
            while data and b"\n" not in data and (more := file.read(MAX_NEWS_BYTES)):
                data += more  # a line longer than that
        return data[: data.rfind(b"\n") + 1]
