"""The worker: as a process with its protocol, and inline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefixlab.bench.loadgen.capture import ClockSample, Ending, check_magic, read_frames
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.job import TOLD_TO_END, capture_path, progress_path
from prefixlab.bench.loadgen.progress import Counter, open_counters
from prefixlab.bench.loadgen.sockets.stamps import monotonic_ns
from prefixlab.bench.loadgen.sockets.worker import run_loop
from prefixlab.core.errors import ConfigError
from tests.bench.loadgen.sockets.rig import MS, Peer, each_request, lay_down, read_capture, serving

COMMAND = [sys.executable, "-m", "prefixlab.bench.loadgen.sockets.worker"]


class Process:
    """A worker process under test."""

    def __init__(self, folder: Path, worker: int = 0, prefix: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, str(folder), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def go(self, start_ns: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"go {start_ns}\n")
        self.process.stdin.flush()

    def wait_until_sent(self, count: int) -> None:
        counters = open_counters(progress_path(self.folder, 0))
        deadline_ns = monotonic_ns() + 20_000 * MS
        while counters[Counter.SENT] < count:
            assert monotonic_ns() < deadline_ns, "nothing was sent"
            time.sleep(0.01)

    def end(self) -> tuple[str, str]:
        return self.process.communicate(timeout=20)


@pytest.fixture
def started() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for worker in processes:
        worker.process.kill()
        worker.process.communicate()


def test_a_worker_says_ready_goes_and_reports_its_health(tmp_path: Path, started: list[Process]) -> None:
    with serving(each_request(lambda peer, _: peer.answer())) as server:
        worker = Process(lay_down(tmp_path, server.port, [b"x"] * 5, num_workers=2), worker=1)
        started.append(worker)
        assert worker.line() == "ready"
        start_ns = monotonic_ns() + 20 * MS
        worker.go(start_ns)
        out, err = worker.end()
    assert (worker.process.returncode, err) == (0, "")
    seen = read_capture(tmp_path, ClientHealth.from_json(out), worker=1)
    assert seen.endings == [Ending.COMPLETE] * 2
    assert seen.answers[0].intended_ns == start_ns
    assert (seen.health.num_connects, seen.health.num_reused, seen.health.num_workers) == (1, 1, 1)
    assert seen.health.wall_s > 0
    assert seen.health.cpu_s > 0


def test_told_to_end_it_cancels_what_is_in_flight_and_leaves_the_rest_unsent(
    tmp_path: Path, started: list[Process]
) -> None:
    def answers_one(peer: Peer, body: bytes) -> None:
        peer.answer() if body == b"quick" else peer.wait_for_close()

    with serving(each_request(answers_one)) as server:
        folder = lay_down(tmp_path, server.port, [b"quick", b"slow", b"slow", b"slow"], max_concurrency=2)
        worker = Process(folder)
        started.append(worker)
        assert worker.line() == "ready"
        worker.go(monotonic_ns())
        worker.wait_until_sent(3)
        worker.process.send_signal(signal.SIGINT)  # is the parent's to handle
        worker.process.terminate()
        out, err = worker.end()
    assert (worker.process.returncode, err) == (TOLD_TO_END, "")
    seen = read_capture(folder, ClientHealth.from_json(out))
    assert seen.endings == [Ending.COMPLETE, Ending.CANCELLED, Ending.CANCELLED, Ending.UNSENT]


def test_told_to_end_before_it_began_it_sends_nothing(tmp_path: Path, started: list[Process]) -> None:
    worker = Process(lay_down(tmp_path, 1, [b"x"] * 3))
    started.append(worker)
    assert worker.line() == "ready"
    worker.process.terminate()
    worker.process.wait(timeout=20)  # before its stdin is closed, which says that the parent has gone away
    out, _ = worker.end()
    assert worker.process.returncode == TOLD_TO_END
    assert read_capture(tmp_path, ClientHealth.from_json(out)).endings == [Ending.UNSENT] * 3


def test_a_worker_whose_parent_goes_away_before_the_start_ends(
    tmp_path: Path, started: list[Process]
) -> None:
    worker = Process(lay_down(tmp_path, 1))
    started.append(worker)
    assert worker.line() == "ready"
    out, _ = worker.end()  # closes its stdin
    assert (worker.process.returncode, out) == (3, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ties a child to its parent")
def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    lay_down(tmp_path, 1)
    script = (
        "import subprocess, sys, time\n"
        f"worker = subprocess.Popen({[*COMMAND, str(tmp_path), '0']!r}, stdout=subprocess.PIPE)\n"
        "worker.stdout.readline()\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    # The worker's stdin stays open here, so it does not end for want of a start.
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        worker_pid = int(parent.stdout.readline())
        parent.kill()
        deadline_ns = monotonic_ns() + 20_000 * MS
        while is_running(worker_pid):
            assert monotonic_ns() < deadline_ns, "the worker outlived its parent"
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_too_few_open_files_are_named_before_the_run(tmp_path: Path, started: list[Process]) -> None:
    folder = lay_down(tmp_path, 1, [b"x"] * 300, max_concurrency=300)
    worker = Process(folder, prefix=("sh", "-c", 'ulimit -n 128; exec "$@"', "sh"))
    started.append(worker)
    out, err = worker.end()
    assert (worker.process.returncode, out) == (2, "")
    assert "300 streams at once need 364 open files" in err
    assert "128 are allowed" in err


def test_what_is_no_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run"):
        run_loop(tmp_path)


def test_inline_an_interruption_leaves_a_capture_without_an_end(tmp_path: Path) -> None:
    def interrupt(peer: Peer, body: bytes) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        peer.wait_for_close()

    with serving(each_request(interrupt)) as server:
        folder = lay_down(tmp_path, server.port, [b"x"] * 3)
        with pytest.raises(KeyboardInterrupt):
            run_loop(folder)
    with capture_path(folder, 0).open("rb") as file:
        assert check_magic(file)
        assert {type(frame) for frame in read_frames(file)} == {ClockSample}, "what was lost is not told"
