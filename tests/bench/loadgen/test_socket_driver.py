"""Runs in a fleet of processes; what any driver does is in `tests/contracts/test_driver.py`."""

from __future__ import annotations

import os
import random
import resource
import signal
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.driver import Drive, Progress
from prefixlab.bench.loadgen.fleet import ThisMachine, default_num_workers
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.progress import Counter as Count
from prefixlab.bench.loadgen.socket_driver import SocketDriver, pace, sum_up
from prefixlab.bench.records.record import Failure, Outcome, check_complete
from prefixlab.bench.targets.dialects import CompletionsDialect
from prefixlab.core.clock import sleep
from prefixlab.core.target import TargetRequest
from tests.bench.fake_server import FakeServer


def a_plan(num_requests: int, *, max_new_tokens: int = 4) -> list[Planned]:
    requests = (TargetRequest(f"r{i}", max_new_tokens, prompt_text="hello") for i in range(num_requests))
    return [Planned(request, 5) for request in requests]


def drive(server: FakeServer, num_requests: int, load: Load, **run: Any) -> Drive:
    return SocketDriver(server.url, CompletionsDialect(), model="fake").run(a_plan(num_requests), load, **run)


def closed(max_concurrency: int, num_workers: int | None = None) -> Load:
    return Load(open_loop=False, max_concurrency=max_concurrency, num_workers=num_workers)


def children() -> list[int]:
    """Processes started by this one that live, or wait to be reaped."""
    me = os.getpid()
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == me:
            found.append(int(path.parent.name))
    return found


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_fleet_shares_a_plan_and_leaves_records_and_no_process_behind(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    fake_server.behaviour.first_event_s = 0.02
    before = children(), open_files()
    done = drive(fake_server, 21, closed(3, num_workers=2), folder=tmp_path)
    check_complete(done.records, 21)
    assert {record.outcome for record in done.records} == {Outcome.OK}
    assert Counter(record.client for record in done.records) == {0: 14, 1: 7}, "as its slots are"
    assert {record.request_id for record in done.records if record.client} == {
        f"r{i}" for i in range(1, 21, 3)
    }
    assert done.health.num_workers == 2
    assert done.health.num_reads >= 21
    assert fake_server.peak_in_flight <= 3
    assert children() == before[0]
    # The server, which is in this process too, takes a moment to close its ends.
    assert any(open_files() <= before[1] or sleep(0.05) for _ in range(200))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"records-0.jsonl", "records-1.jsonl", "job.json", "start.json"}


@pytest.mark.parametrize(
    ("cap", "num_workers", "shares"),
    [(5, 2, (3, 2)), (2, 4, (1, 1)), (None, 2, None), (100, 3, (4, 3, 3)), (1, 1, (1,)), (7, 20, (1,) * 7)],
)
def test_concurrency_is_shared_out_exactly(
    cap: int | None, num_workers: int, shares: tuple[int, ...] | None
) -> None:
    load = Load(open_loop=False, max_concurrency=cap, num_workers=num_workers)
    job = pace(Job(host="h", port=1, dialect="chat", path="/"), load, 10, ThisMachine(), num_sessions=10)
    assert job.max_concurrency == shares
    assert job.num_workers == (num_workers if shares is None else len(shares))


def test_there_is_a_worker_for_a_thousand_streams_and_a_core_for_the_decoders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [default_num_workers(n) for n in (1, 1024, 1025, 7000, 10**6)] == [1, 1, 2, 7, 7]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert default_num_workers(10**6) == 1


def test_progress_sums_over_workers_and_guesses_what_decoders_have_not_come_to() -> None:
    one, two = (np.zeros(len(Count), np.int64) for _ in range(2))
    assert sum_up([one, two], 9, 1.0).ttft_s is None
    one[[Count.ENDED, Count.DECODED, Count.TOKENS, Count.PIECES]] = 5, 2, 200, 7
    two[[Count.ENDED, Count.DECODED, Count.TTFT_SUM_NS, Count.TTFT_COUNT]] = 2, 2, 30_000_000, 2
    seen = sum_up([one, two], 9, 1.0)
    assert (seen.planned, seen.finished, seen.tokens) == (9, 7, 200 + 7 + 3 * 50)
    assert seen.ttft_s == pytest.approx(0.015)


def test_a_fleet_that_is_interrupted_ends_in_order(fake_server: FakeServer) -> None:
    fake_server.behaviour.first_event_s = 25.0
    raised = []

    def interrupt(progress: Progress) -> None:
        if progress.in_flight == 4 and not raised:
            raised.append(progress)
            signal.raise_signal(signal.SIGINT)

    done = drive(fake_server, 9, closed(4, num_workers=2), on_progress=interrupt)
    assert done.interrupted
    outcomes = Counter(record.outcome for record in done.records)
    assert outcomes == {Outcome.CANCELLED: 4, Outcome.UNSENT: 5}


def test_a_second_interrupt_ends_it_at_once(fake_server: FakeServer) -> None:
    fake_server.behaviour.first_event_s = 25.0
    before = children()

    def interrupt(progress: Progress) -> None:
        if progress.in_flight == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        drive(fake_server, 9, closed(4, num_workers=2), on_progress=interrupt)
    assert children() == before


def test_a_worker_that_dies_takes_only_its_own_requests_with_it(fake_server: FakeServer) -> None:
    fake_server.behaviour.first_event_s = 0.1
    mine = set(children())
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.finished >= 4 and not killed:
            killed.append(pid_of("sockets.worker", 1, set(children()) - mine))
            os.kill(killed[0], signal.SIGKILL)
            fake_server.behaviour.first_event_s = 0.0  # what was to be seen was seen

    done = drive(fake_server, 200, closed(4, num_workers=2), on_progress=kill)
    check_complete(done.records, 200)
    assert {r.outcome for r in done.records if r.client == 0} == {Outcome.OK}
    lost = [record for record in done.records if record.outcome is not Outcome.OK]
    assert {record.failure for record in lost} == {Failure.CLIENT}
    assert {record.client for record in lost} == {1}
    assert "client process 1 was killed by SIGKILL" in (lost[0].error or "")
    assert done.deaths == ("client process 1 was killed by SIGKILL",)
    assert not done.interrupted


def test_a_worker_that_somebody_else_tells_to_end_has_not_finished(fake_server: FakeServer) -> None:
    fake_server.behaviour.first_event_s = 0.1
    mine = set(children())
    told: list[int] = []

    def tell(progress: Progress) -> None:
        if progress.finished >= 4 and not told:
            told.append(pid_of("sockets.worker", 1, set(children()) - mine))
            os.kill(told[0], signal.SIGTERM)
            fake_server.behaviour.first_event_s = 0.0

    done = drive(fake_server, 200, closed(4, num_workers=2), on_progress=tell)
    check_complete(done.records, 200)
    assert {r.outcome for r in done.records if r.client == 0} == {Outcome.OK}
    assert done.deaths == ("client process 1 was told to end (SIGTERM), not by its driver",)
    assert not done.interrupted


def test_a_loop_that_fails_is_a_death_with_the_last_words_of_its_process(
    fake_server: FakeServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.first_event_s = 0.1
    mine = set(children())
    full: list[int] = []

    def fill_the_disk(progress: Progress) -> None:
        if progress.finished >= 4 and not full:
            full.append(pid_of("sockets.worker", 0, set(children()) - mine))
            size = jobs.capture_path(tmp_path, 0).stat().st_size
            resource.prlimit(full[0], resource.RLIMIT_FSIZE, (size, size))

    done = drive(fake_server, 40, closed(2, num_workers=1), on_progress=fill_the_disk, folder=tmp_path)
    check_complete(done.records, 40)
    lost = [record for record in done.records if record.outcome is not Outcome.OK]
    assert 0 < len(lost) <= 36
    assert {record.failure for record in lost} == {Failure.CLIENT}
    (death,) = done.deaths
    assert "client process 0 ended with exit code 1: " in death and "File too large" in death
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(("cap", "expected"), [(3, 1), (2047, 1), (2048, 2), (None, 7)])
def test_no_more_processes_share_a_cap_on_an_open_loop_than_must(
    monkeypatch: pytest.MonkeyPatch, cap: int | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    job = Job(host="h", port=1, dialect="chat", path="/")
    load = Load(open_loop=True, max_concurrency=cap)
    job = pace(job, load, 10_000, ThisMachine(), num_sessions=10_000)
    assert job.num_workers == expected


def test_a_start_that_is_given_up_leaves_no_plan_with_its_key(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Planned]:
        yield from a_plan(1)
        assert (tmp_path / jobs.PLAN_BYTES).exists()
        raise KeyboardInterrupt

    driver = SocketDriver("http://127.0.0.1:9", CompletionsDialect(), api_key="sesame")
    with pytest.raises(KeyboardInterrupt):
        driver.run(interrupted(), closed(1), folder=tmp_path)
    assert not list(tmp_path.glob("plan.*"))


def test_a_decoder_that_dies_costs_no_record(fake_server: FakeServer, tmp_path: Path) -> None:
    fake_server.behaviour.first_event_s = 0.1
    mine = set(children())
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.finished >= 4 and not killed:
            killed.append(pid_of("decoding.process", 0, set(children()) - mine))
            os.kill(killed[0], signal.SIGKILL)
            fake_server.behaviour.first_event_s = 0.0

    done = drive(fake_server, 100, closed(4, num_workers=1), on_progress=kill, folder=tmp_path)
    assert killed
    check_complete(done.records, 100)
    assert {record.outcome for record in done.records} == {Outcome.OK}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("victim", ["sockets.worker", "decoding.process"])
def test_whenever_a_process_is_killed_every_request_is_accounted_for(
    fake_server: FakeServer, victim: str, seed: int
) -> None:
    fake_server.behaviour.first_event_s = 0.01
    mine = set(children())
    chance = random.Random(seed)
    tick = chance.randrange(5)
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        nonlocal tick
        tick -= 1
        if tick < 0 and not killed:
            sleep(chance.uniform(0.0, 0.2))
            killed.append(pid_of(victim, chance.randrange(2), set(children()) - mine))
            os.kill(killed[0], signal.SIGKILL)

    done = drive(fake_server, 800, closed(4, num_workers=2), on_progress=kill)
    check_complete(done.records, 800)
    kinds = {(record.outcome, record.failure) for record in done.records}
    lost = {(Outcome.FAILED, Failure.CLIENT)} if victim == "sockets.worker" else set()
    assert kinds <= {(Outcome.OK, None), *lost}


def pid_of(module: str, worker: int, among: set[int]) -> int:
    for pid in among:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if any(word.endswith(module.encode()) for word in words) and words[-2] == b"%d" % worker:
            return pid
    raise AssertionError(f"no {module} {worker} among {among}")


def test_what_holds_the_key_is_for_no_other_users_eyes(fake_server: FakeServer, tmp_path: Path) -> None:
    modes = []

    def look(progress: Progress) -> None:
        modes.extend(path.stat().st_mode for path in tmp_path.glob("plan.bin"))

    driver = SocketDriver(fake_server.url, CompletionsDialect(), api_key="sesame")
    driver.run(a_plan(1), closed(1), on_progress=look, folder=tmp_path)
    assert [stat.S_IMODE(mode) for mode in modes] == [0o600] * len(modes) != []
    assert fake_server.keys == ["Bearer sesame"]
    assert not any(b"sesame" in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(("load", "expected"), [(closed(2, 2), False), (Load(True, 2, 2), True)])
def test_a_cap_that_processes_share_is_told(fake_server: FakeServer, load: Load, expected: bool) -> None:
    assert drive(fake_server, 4, load).health.cap_is_shared is expected
