"""The processes of a client: refusals, and what a kill at any moment leaves behind."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from prefixlab.bench.loadgen import capture
from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.capture import Answer
from prefixlab.bench.loadgen.decoding.recover import recover, recover_worker
from prefixlab.bench.loadgen.fleet import Child, Interrupts, LocalFleet
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.loadgen.outgoing import WriterState
from prefixlab.bench.loadgen.plan import Planned
from prefixlab.bench.records.line import decode
from prefixlab.bench.records.record import Outcome
from prefixlab.core.clock import MonotonicClock, sleep
from prefixlab.core.errors import ConfigError
from prefixlab.core.target import TargetRequest
from tests.bench.fake_server import FakeServer

DRIVER = """
import sys
from pathlib import Path
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.targets.dialects import CompletionsDialect
from prefixlab.core.target import TargetRequest

url, folder = sys.argv[1:3]
turns = int(sys.argv[3])  # of a session; each but the first goes on from the one before
plan = []
for i in range(4000):
    later = {"after": i - 1, "continues": True} if i % turns else {}
    session = {"session_id": str(i // turns), "turn": i % turns} if turns > 1 else {}
    plan.append(Planned(TargetRequest(f"r{i}", 4, prompt_text="hello"), 5, **later, **session))
SocketDriver(url, CompletionsDialect()).run(
    plan,
    Load(open_loop=False, max_concurrency=4, num_workers=2),
    on_progress=lambda progress: print(progress.finished, flush=True),
    folder=Path(folder),
)
"""


def test_a_job_that_a_process_refuses_is_an_error_in_its_words(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="is not the folder of a run"),
        LocalFleet(tmp_path, [0], MonotonicClock()) as fleet,
    ):
        fleet.wait_until_ready()
    assert not any(child.is_running for child in (*fleet.workers, *fleet.decoders))


KILLED_AT_ITS_END = """
import os, signal, sys
print("ready")
print(%r, flush=True)
os.kill(os.getpid(), signal.SIGTERM)  # as from a driver, once Python has dropped its handlers
"""


def test_what_a_process_said_of_itself_counts_though_it_was_told_to_end_while_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ClientHealth(num_reads=7, num_workers=0)
    (tmp_path / "killed_at_its_end.py").write_text(KILLED_AT_ITS_END % said.to_json())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Child("killed_at_its_end", tmp_path, 0)
    try:
        while child.hear(child.voices[0]):
            pass
        assert child.process.wait() == -signal.SIGTERM
        assert child.health is not None
        assert child.health.to_json() == said.to_json()
    finally:
        child.close()


def test_the_first_interrupt_asks_and_the_second_insists() -> None:
    asked = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Interrupts(lambda: asked.append(1)) as interrupts:
        signal.raise_signal(signal.SIGTERM)
        assert (asked, interrupts.count) == ([1], 1)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def wait_for(what: str, condition: object) -> None:
    for _ in range(3000):
        if callable(condition) and condition():
            return
        sleep(0.01)
    raise AssertionError(f"{what}: not within 30 s")


def family(pid: int) -> list[int]:
    """The processes that `pid` has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def answers_in(folder: Path) -> set[str]:
    """The ids of the whole answers that the captures hold."""
    templates = jobs.read_templates(folder)
    ids = set()
    for path in folder.glob("capture-*.bin"):
        with path.open("rb") as file:
            if capture.check_magic(file):
                frames = capture.read_frames(file)
                ids |= {templates[frame.index].request_id for frame in frames if isinstance(frame, Answer)}
    return ids


def lines_in(folder: Path) -> list[bytes]:
    return [
        line
        for path in folder.glob("records-*.jsonl")
        for line in path.read_bytes().splitlines(keepends=True)
    ]


def kill_in_mid_run(server: FakeServer, folder: Path, *, after_s: float, num_turns: int = 1) -> None:
    """Start a run in a process of its own, and kill that, and so its children, while it is on."""
    server.behaviour.first_event_s = 0.005
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, server.url, str(folder), str(num_turns)],
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline(), "a first report"
        sleep(after_s)
        children = family(driver.pid)
        assert len(children) == 4
        driver.kill()
    wait_for("the end of its children", lambda: not any(map(is_running, children)))


def check_recovery(folder: Path) -> None:
    before = [decode(line).request_id for line in lines_in(folder) if line.endswith(b"\n")]
    answered = answers_in(folder)
    assert set(before) <= answered
    assert recover(folder) == len(answered) - len(before)
    records = [decode(line) for line in lines_in(folder)]
    assert Counter(record.request_id for record in records) == Counter(answered)
    assert {record.outcome for record in records} <= {Outcome.OK}
    assert recover(folder) == 0, "a second time finds nothing to do"
    left = {path.name.partition("-")[0] for path in folder.iterdir()}
    assert left == {"records", "job.json", "start.json"}


def test_an_interrupt_reaches_runs_in_other_threads() -> None:
    entered, over = threading.Event(), threading.Event()
    found: list[int] = []

    def run_elsewhere() -> None:
        with Interrupts(lambda: found.append(-1)) as interrupts:
            entered.set()
            over.wait(10)
            found.append(interrupts.count)

    thread = threading.Thread(target=run_elsewhere)
    with Interrupts() as interrupts:
        thread.start()
        entered.wait(10)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.count == 1
        over.set()
        thread.join()
    assert found == [-1, 1]


def test_a_driver_that_is_killed_takes_its_children_along_and_loses_no_finished_request(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    kill_in_mid_run(fake_server, tmp_path, after_s=0.3)
    assert answers_in(tmp_path)

    # Wherever the kill had torn the files, the lines come out the same.
    job = jobs.read_job(tmp_path)
    with jobs.capture_path(tmp_path, 0).open("ab") as file:
        file.write(b"\x02\xff\xff\x00\x00 torn")
    recover_worker(tmp_path, 0, job)
    path = jobs.records_path(tmp_path, 0)
    data = path.read_bytes()
    for kept in random.Random(1).sample(range(len(data)), 20):
        path.write_bytes(data[:kept])
        recover_worker(tmp_path, 0, job)
        assert path.read_bytes() == data

    check_recovery(tmp_path)


def test_a_driver_killed_amid_sessions_loses_no_finished_turn_and_leaves_no_key(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    kill_in_mid_run(fake_server, tmp_path, after_s=0.3, num_turns=4)
    assert (tmp_path / "plan.writer").exists(), "killed before it could tidy up"
    assert answers_in(tmp_path)
    check_recovery(tmp_path)
    records = {record.request_id: record for record in map(decode, lines_in(tmp_path))}
    assert any(record.turn for record in records.values())
    for record in records.values():
        before = f"r{int(record.request_id[1:]) - 1}"
        assert not record.turn or before in records, "a turn is recorded behind the one it went on from"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_whenever_a_driver_is_killed_every_finished_request_is_recovered(
    fake_server: FakeServer, tmp_path: Path, seed: int
) -> None:
    kill_in_mid_run(fake_server, tmp_path, after_s=random.Random(seed).uniform(0.0, 1.5))
    check_recovery(tmp_path)


class WritesAKey:
    state = WriterState(b"a key", None, b"", names_requests=False)

    def __call__(self, request: TargetRequest, *, names_tokens: bool = False) -> bytes:
        return b"a key"


@pytest.mark.parametrize("laid_down", [False, True])
def test_a_folder_where_nothing_began_has_nothing_to_recover_and_is_tidied(
    tmp_path: Path, laid_down: bool
) -> None:
    jobs.write_plan(tmp_path, [Planned(TargetRequest("a", 1), 1)], WritesAKey())
    (tmp_path / "start.tmp").write_bytes(b"12")
    if laid_down:
        jobs.write_job(tmp_path, Job(host="h", port=1, dialect="chat", path="/", num_workers=2))
        jobs.progress_path(tmp_path, 0).touch()
    assert recover(tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == ({"job.json"} if laid_down else set())


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    jobs.write_job(tmp_path, Job(host="h", port=1, dialect="chat", path="/"))
    jobs.records_path(tmp_path, 0).write_bytes(b'{"id": "a"}\nnonsense\n')
    with pytest.raises(ConfigError, match=r"records-0\.jsonl, line 2"):
        recover(tmp_path)
