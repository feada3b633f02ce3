"""The ground truth as benchmarks use it: builds the server with `cc`, runs it, reads what it logged.

Owns the reading of the log (its format is `truth/server.c`'s) and what of it is compared with a client:

    true ITL    gap between a stream's writes, pooled over all tokens but the first of each stream
    true TTFT   first write − arrival of the request at the server (the kernel's stamp of its last bytes).
                What lies between the client's send and that stamp, a few µs on loopback, is the client's.

Invariant: every figure comes with how well the server kept its own schedule and whether its log is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).parent / "truth" / "server.c"
MAGIC = b"prefixlab-truth-1\n"
REQUEST = np.dtype(
    [
        ("id", "S64"),
        ("kernel_ns", "<i8"),
        ("arrived_ns", "<i8"),
        ("read_ns", "<i8"),
        ("num_tokens", "<u4"),
        ("num_written", "<u4"),
        ("state", "<u4"),
        ("connection", "<u4"),
    ]
)
ENTRY = np.dtype(
    [
        ("request", "<u4"),
        ("token", "<u4"),
        ("due_ns", "<i8"),
        ("mono_ns", "<i8"),
        ("real_ns", "<i8"),
        ("send_ns", "<u4"),
        ("flags", "<u4"),
    ]
)
DONE = 1


@dataclass(frozen=True)
class Truth:
    """What the server did. `requests` and `entries` as in the log; entries sorted by request and token."""

    requests: np.ndarray
    entries: np.ndarray
    facts: dict[str, Any]
    """What the server says of itself: lateness, blocked writes, CPU."""

    def last(self, num_requests: int) -> Truth:
        """Of the last `num_requests` to arrive: without a client's own look whether anybody is there."""
        cut = max(0, len(self.requests) - num_requests)
        return Truth(self.requests, self.entries[self.entries["request"] >= cut], self.facts)

    @property
    def itl_ms(self) -> np.ndarray:
        gaps = np.diff(self.entries["mono_ns"])
        return gaps[np.diff(self.entries["request"].astype(np.int64)) == 0] / 1e6

    @property
    def ttft_ms(self) -> np.ndarray:
        first = self.entries[self.entries["token"] == 0]
        return (first["mono_ns"] - self.requests["arrived_ns"][first["request"]]) / 1e6

    @property
    def duration_s(self) -> float:
        """From the first write to the last."""
        stamps = self.entries["mono_ns"]
        return float(stamps.max() - stamps.min()) / 1e9 if len(stamps) else 0.0

    @property
    def peak_tokens_per_s(self) -> float:
        """Tokens written in the busiest tenth of a second, as a rate."""
        stamps = self.entries["mono_ns"]
        if not len(stamps):
            return 0.0
        return float(np.bincount((stamps - stamps.min()) // 100_000_000).max() * 10)

    @property
    def late_ms(self) -> np.ndarray:
        return (self.entries["mono_ns"] - self.entries["due_ns"]) / 1e6

    @property
    def peak_streams(self) -> int:
        """Most requests that had arrived and not been written to the end, at once."""
        finished = self.requests[self.requests["state"] == DONE]
        last = np.zeros(len(self.requests), dtype=np.int64)
        np.maximum.at(last, self.entries["request"], self.entries["mono_ns"])
        ended = last[self.requests["state"] == DONE]
        times = np.concatenate([finished["arrived_ns"], ended])
        steps = np.concatenate([np.ones(len(finished)), -np.ones(len(finished))])
        order = np.lexsort((steps, times))
        return int(np.cumsum(steps[order]).max(initial=0))


def read_log(path: Path, facts: dict[str, Any]) -> Truth:
    data = path.read_bytes()
    assert data.startswith(MAGIC), f"{path} is not a log of the truth server"
    num_requests, num_entries, num_lost = np.frombuffer(data, "<u8", 3, offset=32).tolist()
    assert num_lost == 0, f"the log missed {num_lost} writes: raise --log-capacity"
    at = 56
    requests = np.frombuffer(data, REQUEST, num_requests, offset=at)
    entries = np.frombuffer(data, ENTRY, num_entries, offset=at + num_requests * REQUEST.itemsize)
    order = np.lexsort((entries["token"], entries["request"]))
    return Truth(requests, entries[order], facts)


def build(folder: Path) -> Path:
    """Compile the server into `folder`. Exits with a word where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("this benchmark compiles its server: a C compiler named cc is needed")
    binary = folder / "truth"
    subprocess.run([compiler, "-O2", "-o", str(binary), str(SOURCE)], check=True)
    return binary


class Server:
    """A running server. `stop` ends it and returns what it did."""

    def __init__(self, binary: Path, folder: Path, *words: object) -> None:
        self._log = folder / "truth.log"
        command = [str(binary), "--log", str(self._log), *map(str, words)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline().split()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> Truth:
        self._process.terminate()
        said, _ = self._process.communicate(timeout=60)
        truth = read_log(self._log, json.loads(said.splitlines()[-1]))
        self._log.unlink()
        return truth

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def serving(binary: Path, folder: Path, **options: object) -> Iterator[Server]:
    """A server for a `with` block: `serving(binary, folder, ttft_ms=100, core=1, lockstep=True)`."""
    words: list[object] = []
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    server = Server(binary, folder, *words)
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def workplace() -> Iterator[tuple[Path, Path]]:
    """A folder that is gone afterwards, and the server built in it."""
    with tempfile.TemporaryDirectory() as name:
        yield build(Path(name)), Path(name)


def two_cores() -> tuple[int | None, int | None]:
    """A core for the client and one for the server; None where there are not two to choose from."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[-1]) if len(cores) > 1 else (None, None)


def pinned(core: int | None) -> list[str]:
    """The words that keep a command, and all it starts, on one core."""
    taskset = shutil.which("taskset")
    return [taskset, "-c", str(core)] if core is not None and taskset else []


@dataclass(frozen=True)
class Ran:
    """A client's run: its exit code, what it said, and the CPU it and all its children took."""

    code: int
    stdout: str
    stderr: str
    cpu_s: float


def run_client(command: list[str], *, core: int | None, folder: Path, timeout_s: float = 280.0) -> Ran:
    """Run a client on `core`, in `folder`, to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*pinned(core), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        cwd=folder,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(done.returncode, done.stdout, done.stderr, cpu_s)
