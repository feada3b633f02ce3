"""A fleet spread over machines, which here are threads of this one: each with a folder and a clock of its
own, called in order and from afar, as actors are."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from prefixlab.bench.loadgen.driver import Drive, Progress
from prefixlab.bench.loadgen.machines import node as nodes
from prefixlab.bench.loadgen.machines import remote_fleet
from prefixlab.bench.loadgen.machines.node import News, Node
from prefixlab.bench.loadgen.machines.remote_fleet import RemoteFleet
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.records.record import Failure, Outcome, Record, check_complete
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.targets.dialects import CompletionsDialect
from prefixlab.core.clock import Clock
from prefixlab.core.errors import ConfigError, EngineError
from prefixlab.core.target import TargetRequest
from tests.bench.fake_server import FakeServer


class ElsewhereNode(Node):
    """Its clock is far from ours, and is put forward by `drift_ns` as it goes."""

    def __init__(self, offset_ns: int = 0, drift_ns: int = 0) -> None:
        super().__init__()
        self.offset_ns = offset_ns
        self.drift_ns = drift_ns
        self.num_lines = 0

    def clock_ns(self) -> int:
        return super().clock_ns() + self.offset_ns

    def go(self, start_ns: int) -> None:
        super().go(start_ns - self.offset_ns)
        self.offset_ns += self.drift_ns

    def news(self, have: Any) -> News:
        news = super().news(have)
        self.num_lines += sum(data.count(b"\n") for data in news.lines.values())
        return news

    @property
    def folder(self) -> Path:
        return self._current.folder


class ThreadNode:
    """A RemoteNode whose other end is a thread."""

    def __init__(self, name: str, node: ElsewhereNode) -> None:
        self.lost: str | None = None
        self.name = name
        self.node = node
        self.calls: list[str] = []
        self.killed = False
        self.dies_at: str | None = None
        self.is_silent = False
        self._executor = ThreadPoolExecutor(1)

    def call(self, method: str, *args: Any) -> Future[Any]:
        assert self.lost is None, "a lost node is not called"
        self.calls.append(method)
        if self.is_silent:
            return Future()
        if method == self.dies_at and (method != "news" or self.node.num_lines):
            self.dies_at = None
            self.node.close()
            failed: Future[Any] = Future()
            failed.set_exception(RuntimeError("the power went\nand more"))
            return failed
        return self._executor.submit(getattr(self.node, method), *args)

    def kill(self) -> None:
        self.killed = True

    def close(self) -> None:
        self._executor.submit(self.node.close).result()
        self._executor.shutdown()


class Threads:
    """Machines of threads."""

    def __init__(self, *nodes: ElsewhereNode) -> None:
        self.nodes = [ThreadNode(f"node {number}", node) for number, node in enumerate(nodes)]

    def default_num_workers(self, num_streams: int) -> int:
        return len(self.nodes)

    def fleet(self, folder: Path, num_workers: int, clock: Clock) -> RemoteFleet:
        return RemoteFleet(self.nodes[:num_workers], folder, num_workers, clock)


@contextmanager
def threads(*nodes: ElsewhereNode) -> Iterator[Threads]:
    machines = Threads(*nodes)
    try:
        yield machines
    finally:
        for node in machines.nodes:
            node.close()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where nodes have their folders; empty after every test."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr(nodes, "mkdtemp", lambda prefix: mkdtemp(prefix=prefix, dir=folder))
    monkeypatch.setattr(remote_fleet, "POLL_S", 0.05)
    monkeypatch.setattr(remote_fleet, "_HEAD_START_S", 0.1)
    yield folder
    assert not list(folder.iterdir())


def a_plan(num_requests: int, *, max_new_tokens: int = 4, apart_s: float = 0.0) -> list[Planned]:
    requests = (TargetRequest(f"r{i}", max_new_tokens, prompt_text="hello") for i in range(num_requests))
    return [Planned(request, 5, offset_s=apart_s * i) for i, request in enumerate(requests)]


def drive(server: FakeServer, machines: Threads, load: Load, plan: Sequence[Planned], **run: Any) -> Drive:
    driver = SocketDriver(server.url, CompletionsDialect(), model="fake", machines=machines)
    done = driver.run(plan, load, **run)
    check_complete(done.records, len(plan))
    for record in done.records:
        record.check()
    return done


def closed(max_concurrency: int, num_workers: int | None = None) -> Load:
    return Load(open_loop=False, max_concurrency=max_concurrency, num_workers=num_workers)


def by_client(records: Sequence[Record]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for record in records:
        found.setdefault(record.client, set()).add(record.request_id)
    return found


def test_requests_are_shared_out_as_in_one_place_and_records_come_home(
    fake_server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "MAX_NEWS_BYTES", 100)  # lines come whole however small the pieces

    def look(progress: Progress) -> None:
        if not seen:
            names = {path.name for node in machines.nodes for path in node.node.folder.iterdir()}
            assert "templates.bin" in names
            assert not {"plan.bin", "plan.npy"} & names, "they may hold a key"
        seen.append(progress)

    seen: list[Progress] = []
    with threads(ElsewhereNode(), ElsewhereNode(10**15), ElsewhereNode(-(10**14))) as machines:
        done = drive(fake_server, machines, closed(6, 5), a_plan(60), on_progress=look, folder=tmp_path)
    assert {record.outcome for record in done.records} == {Outcome.OK}
    assert by_client(done.records) == {w: {f"r{i}" for i in range(60) if i % 6 % 5 == w} for w in range(5)}, (
        "as slots are: two of the first"
    )
    assert [(node.node, node.num_workers) for node in done.health.nodes] == [
        ("node 0", 2),
        ("node 1", 2),
        ("node 2", 1),
    ]
    assert done.health.num_workers == 5
    assert (seen[-1].finished, seen[-1].tokens, seen[-1].planned) == (60, 240, 60)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"job.json", "start.json", *(f"records-{w}.jsonl" for w in range(5))}
    assert len(RecordTable.read(sorted(tmp_path.glob("records-*")))) == 60


def test_a_schedule_is_kept_on_clocks_that_are_days_apart_and_a_jump_is_seen(fake_server: FakeServer) -> None:
    with threads(ElsewhereNode(), ElsewhereNode(10**15, drift_ns=10**9)) as machines:
        done = drive(fake_server, machines, Load(open_loop=True), a_plan(20, apart_s=0.02))
    assert sorted(record.intended_s for record in done.records) == pytest.approx(
        [0.02 * i for i in range(20)]
    )
    for record in done.records:
        assert record.sent_s is not None
        assert record.sent_s - record.intended_s < 10, "not 11 days"
    here, there = done.health.nodes
    assert abs(here.offset_s) <= here.uncertainty_s
    assert abs(there.offset_s - 1e6) <= there.uncertainty_s + 1e-6
    assert here.drift_s is not None and abs(here.drift_s) <= here.drift_uncertainty_s
    assert there.drift_s is not None and abs(there.drift_s - 1) <= there.drift_uncertainty_s + 1e-6


def test_a_node_that_is_lost_takes_only_its_own_requests_with_it(fake_server: FakeServer) -> None:
    fake_server.behaviour.first_event_s = 0.01
    with threads(ElsewhereNode(), ElsewhereNode()) as machines:
        lost = machines.nodes[1]
        lost.dies_at = "news"
        done = drive(fake_server, machines, closed(2), a_plan(400))
        assert lost.killed
        failed = [record for record in done.records if record.outcome is Outcome.FAILED]
        assert failed and {record.client for record in failed} == {1}
        assert {record.failure for record in failed} == {Failure.CLIENT}
        said = {record.error for record in failed}
        assert said == {"node 1 was lost: the power went; whether this request had been sent is not known"}
        finished = Counter(record.client for record in done.records if record.outcome is Outcome.OK)
        assert finished[0] == 200
        assert finished[1] >= lost.node.num_lines > 0, "what had come home is kept"
        assert [node.lost for node in done.health.nodes] == [None, "node 1 was lost: the power went"]


def test_a_node_that_falls_silent_is_given_up(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_fleet, "ANSWER_S", 2.0)
    fake_server.behaviour.first_event_s = 0.01

    def fall_silent(progress: Progress) -> None:
        machines.nodes[0].is_silent = True

    with threads(ElsewhereNode(), ElsewhereNode()) as machines:
        done = drive(fake_server, machines, closed(2), a_plan(200), on_progress=fall_silent)
    assert {record.client for record in done.records if record.failure is Failure.CLIENT} == {0}
    assert done.health.nodes[0].lost == "node 0 was lost: silent for 2 s"
    assert machines.nodes[0].killed


def test_an_interrupt_ends_all_nodes_in_order_and_they_serve_the_next_run(fake_server: FakeServer) -> None:
    fake_server.behaviour.first_event_s = 0.02

    def interrupt(progress: Progress) -> None:
        if progress.finished and not interrupted:
            interrupted.append(progress.finished)
            signal.raise_signal(signal.SIGINT)

    interrupted: list[int] = []
    with threads(ElsewhereNode(), ElsewhereNode()) as machines:
        done = drive(fake_server, machines, closed(2), a_plan(4000), on_progress=interrupt)
        again = drive(fake_server, machines, closed(2), a_plan(9))
    assert {record.outcome for record in again.records} == {Outcome.OK}
    assert done.interrupted
    counts = Counter(record.outcome for record in done.records)
    assert set(counts) <= {Outcome.OK, Outcome.CANCELLED, Outcome.UNSENT}
    assert counts[Outcome.OK] and counts[Outcome.UNSENT]


def test_a_second_interrupt_leaves_nothing_running(fake_server: FakeServer) -> None:
    fake_server.behaviour.first_event_s = 0.02

    def interrupt(progress: Progress) -> None:
        if progress.finished:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with threads(ElsewhereNode(), ElsewhereNode()) as machines, pytest.raises(KeyboardInterrupt):
        drive(fake_server, machines, closed(2), a_plan(4000), on_progress=interrupt)
    assert all(node.calls[-1] == "close" for node in machines.nodes)


def test_a_job_that_a_node_refuses_is_an_error_that_names_it(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(ElsewhereNode):
        def write(self, name: str, data: bytes) -> None:
            if name != "job.json":
                super().write(name, data)

    with (
        threads(ElsewhereNode(), Forgetful()) as machines,
        pytest.raises(ConfigError, match=r"node 1: .* is not the folder of a run"),
    ):
        drive(fake_server, machines, closed(2), a_plan(10))


@pytest.mark.parametrize("method", ["open", "write", "prepare", "clock_ns"])
def test_a_node_that_is_lost_before_the_run_stops_it(fake_server: FakeServer, method: str) -> None:
    with threads(ElsewhereNode(), ElsewhereNode()) as machines:
        machines.nodes[1].dies_at = method
        with pytest.raises(EngineError, match=r"^node 1 was lost: the power went$"):
            drive(fake_server, machines, closed(2), a_plan(10))
    assert machines.nodes[0].calls[-1] == "close"
    assert machines.nodes[1].killed
