"""The client's processes: a worker and a decoder for each share of a plan, started, watched and ended.

Owns spawning and reaping, the start barrier, and signals; and the seam between a driver and the machines its
processes run on: this one here, several in `machines/`. Knows the protocol of `job.py` and nothing of
requests; what is in the folder afterwards is the caller's to read.

A worker that dies takes nobody with it: its decoder is told, and the others go on. A decoder that dies leaves
a capture, from which `decoding/recover.py` makes what is missing.

Invariant: when the block of a fleet ends, none of its processes lives and none of its pipes is open.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, ClassVar, Protocol, Self

from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.decoding.recover import recover_worker
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.core.clock import Clock
from prefixlab.core.errors import ConfigError, EngineError

WORKER = "prefixlab.bench.loadgen.sockets.worker"
DECODER = "prefixlab.bench.loadgen.decoding.process"
REFUSED = 2
"""Exit code of a process that cannot do its job; its stderr says why."""
TICK_S = 0.2
_HEAD_START_S = 0.05
"""From saying `go` to the run's start: time for every worker to hear it."""
_KEPT_STDERR_BYTES = 16_384
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Or else numpy's libraries start one per core in every process, for matrices that nobody multiplies."""


class Interrupts:
    """Ctrl-C and SIGTERM while its block runs: the first asks for an end in order, the second raises.

    Outside the main thread, which alone may handle signals, there are those that one in the main thread is
    told of meanwhile.
    """

    _elsewhere: ClassVar[set[Interrupts]] = set()

    def __init__(self, on_first: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self._on_first = on_first
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        else:
            self._elsewhere.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._elsewhere.discard(self)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        self._on_first()
        for other in tuple(self._elsewhere):
            other.count += 1
            other._on_first()


class Child:
    """One process of ours, and what it has said so far."""

    def __init__(self, module: str, folder: Path, worker: int) -> None:
        self.worker = worker
        self.is_decoder = module == DECODER
        self.said: list[bytes] = []
        """Whole lines of its stdout."""
        self.complaints = b""
        """The end of its stderr."""
        self._partial = b""
        # In a group of its own: Ctrl-C in a terminal is the driver's alone to answer.
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            process_group=0,
            env=os.environ | _NO_THREADS,
        )
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        assert stdin is not None and stdout is not None and stderr is not None, "pipes, as asked for"
        self._stdin = stdin
        self.voices = (stdout, stderr)

    @property
    def name(self) -> str:
        return f"{'decoder' if self.is_decoder else 'client process'} {self.worker}"

    @property
    def is_ready(self) -> bool:
        return bool(self.said)

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None

    @property
    def health(self) -> ClientHealth | None:
        """What it said of itself at its end; None if it did not get there.

        It is the last thing a process does, so how the process ended afterwards changes nothing: Python drops
        its signal handlers some time before it is gone, and a decoder that sees the end of a capture for
        itself is told to end by its driver about then.
        """
        return ClientHealth.from_json(self.said[1]) if len(self.said) > 1 else None

    def describe_end(self) -> str:
        """How it ended, in a few words, for an error."""
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{self.name} {how}" + (f": {self.last_words}" if self.last_words else "")

    @property
    def last_words(self) -> str:
        lines = self.complaints.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""

    def go(self, start_ns: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died, which its other pipes tell
            self._stdin.write(b"go %d\n" % start_ns)

    def stop(self) -> None:
        """Ask it to come to its end."""
        if self.is_running:
            self.process.terminate()

    def hear(self, stream: IO[bytes]) -> bool:
        """Take in what `stream` has; False at its end."""
        data = os.read(stream.fileno(), 1 << 16)
        if stream is self.voices[0]:
            *lines, self._partial = (self._partial + data).split(b"\n")
            self.said += lines
        else:
            self.complaints = (self.complaints + data)[-_KEPT_STDERR_BYTES:]
        return bool(data)

    def close(self) -> None:
        """End it, however far it is, and reap it."""
        if self.is_running:
            self.process.kill()
            self.process.wait()
        for pipe in (self._stdin, *self.voices):
            pipe.close()


@dataclass(slots=True)
class FleetEnd:
    """What the processes of a job said of themselves.

    Attributes:
        deaths: worker → how it ended, of those that did not come to their end, or were told to by others.
    """

    health: ClientHealth = field(default_factory=lambda: ClientHealth(num_workers=0))
    deaths: dict[int, str] = field(default_factory=dict)


class Fleet(Protocol):
    """The processes of one job, wherever they run; a context manager. Called in the order given here."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def wait_until_ready(self) -> None:
        """Until all stand by.

        Raises:
            ConfigError: one refuses the job; it says why.
            EngineError: a process could not be started.
        """
        ...

    def start(self) -> int:
        """Say go to all; returns the run's start, nanoseconds of this machine's monotonic clock."""
        ...

    def watch(self, interrupts: Interrupts, on_tick: Callable[[], None]) -> None:
        """Until every process has ended. A first interrupt stops the workers, which then end in order."""
        ...

    def end(self) -> FleetEnd:
        """What came of it. Every line that can be had is in the job's folder then."""
        ...


class Machines(Protocol):
    """Where a client's processes run."""

    def default_num_workers(self, num_streams: int) -> int:
        """How many processes serve so many streams well."""
        ...

    def fleet(self, folder: Path, num_workers: int, clock: Clock) -> Fleet:
        """The processes of the job that lies in `folder`, where their counters are laid out too.

        Raises:
            ConfigError: the job cannot be done there.
        """
        ...


STREAMS_PER_WORKER = 1024


def default_num_workers(num_streams: int) -> int:
    """One per 1,024 streams, and one core left to the decoders and to whatever else there is."""
    try:
        num_cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        num_cores = os.cpu_count() or 1
    return max(1, min(-(-num_streams // STREAMS_PER_WORKER), num_cores - 1))


class ThisMachine:
    """All processes here."""

    def default_num_workers(self, num_streams: int) -> int:
        return default_num_workers(num_streams)

    def fleet(self, folder: Path, num_workers: int, clock: Clock) -> LocalFleet:
        return LocalFleet(folder, range(num_workers), clock)


class LocalFleet:
    """See `Fleet`: a process each for worker and decoder of these shares of the job in `folder`.

    Args:
        workers: their numbers; the others of the job run elsewhere.
    """

    def __init__(self, folder: Path, workers: Iterable[int], clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self.workers: list[Child] = []
        self.decoders: list[Child] = []
        self._stopped = False
        self._open_streams: dict[Child, int] = {}
        try:
            for worker in workers:
                self.workers.append(self._spawn(WORKER, worker))
                self.decoders.append(self._spawn(DECODER, worker))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._open_streams:
            child.close()
        self._selector.close()

    def wait_until_ready(self) -> None:
        while not all(child.is_ready for child in self._open_streams):
            self._listen()
            for child in self._open_streams:
                if child.process.returncode == REFUSED:
                    raise ConfigError(child.last_words)
                if not child.is_running:
                    raise EngineError(f"could not start: {child.describe_end()}")

    def start(self, start_ns: int | None = None) -> int:
        """See `Fleet`; `start_ns` is the run's start where that has been agreed on."""
        if start_ns is None:
            start_ns = round((self._clock.now() + _HEAD_START_S) * 1e9)
        jobs.write_start(self._folder, start_ns)  # first: a worker that has heard it may write at once
        for worker in self.workers:
            worker.go(start_ns)
        return start_ns

    def watch(self, interrupts: Interrupts, on_tick: Callable[[], None]) -> None:
        next_tick_s = self._clock.now() + TICK_S
        while any(child.is_running for child in self._open_streams):
            self._listen()
            if interrupts.count and not self._stopped:
                self._stopped = True
                for worker in self.workers:
                    worker.stop()
            if self._clock.now() >= next_tick_s:
                next_tick_s = self._clock.now() + TICK_S
                on_tick()
        self._stopped |= interrupts.count > 0  # all may have been told at once

    def end(self) -> FleetEnd:
        end = FleetEnd()
        for worker, decoder in zip(self.workers, self.decoders, strict=True):
            if worker.health is None:
                end.deaths[worker.worker] = worker.describe_end()
            else:
                end.health.merge(worker.health)
                if worker.process.returncode == jobs.TOLD_TO_END and not self._stopped:
                    end.deaths[worker.worker] = f"{worker.name} was told to end (SIGTERM), not by its driver"
            if decoder.health is None:
                _, recovered = recover_worker(self._folder, decoder.worker, jobs.read_job(self._folder))
                end.health.merge(recovered)
            else:
                end.health.merge(decoder.health)
        return end

    def _spawn(self, module: str, worker: int) -> Child:
        child = Child(module, self._folder, worker)
        self._open_streams[child] = len(child.voices)
        for stream in child.voices:
            self._selector.register(stream, selectors.EVENT_READ, (child, stream))
        return child

    def _listen(self) -> None:
        """Wait for something to be said, a tick at most, and take it in."""
        for key, _ in self._selector.select(TICK_S):
            child, stream = key.data
            if child.hear(stream):
                continue
            self._selector.unregister(stream)
            self._open_streams[child] -= 1
            if not self._open_streams[child]:
                child.process.wait()
                self._on_end(child)

    def _on_end(self, child: Child) -> None:
        if child.process.returncode not in (0, REFUSED, jobs.TOLD_TO_END):
            sys.stderr.write(child.complaints.decode("utf-8", "replace"))
        if not child.is_decoder:
            self.decoders[self.workers.index(child)].stop()
