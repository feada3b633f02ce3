"""Runs on a Ray cluster: three nodes of it, all on this machine. What any spread fleet does is in
`test_remote_fleet.py`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.loadgen.driver import Progress
from prefixlab.bench.loadgen.fleet import DECODER, WORKER
from prefixlab.bench.loadgen.machines.ray_cluster import (
    RayCluster,
    check_reaches,
    check_versions,
    look_around,
)
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.records.record import Failure, Outcome, check_complete
from prefixlab.bench.targets.dialects import CompletionsDialect
from prefixlab.bench.targets.endpoint import open_endpoint
from prefixlab.core.clock import sleep
from prefixlab.core.errors import ConfigError
from prefixlab.core.target import TargetRequest
from tests.bench.fake_server import FakeServer

pytestmark = [
    # Ray leaves log files and sockets to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


def a_plan(num_requests: int, *, apart_s: float = 0.0) -> list[Planned]:
    requests = (TargetRequest(f"r{i}", 4, prompt_text="hello") for i in range(num_requests))
    return [Planned(request, 5, offset_s=apart_s * i) for i, request in enumerate(requests)]


def test_nodes_of_our_version_are_fine() -> None:
    check_versions({"a": "1.2", "b": "1.2"}, "1.2")


def test_nodes_of_another_version_or_without_are_named() -> None:
    with pytest.raises(ConfigError) as raised:
        check_versions({"node a": "1.2", "node b": None, "node c": "1.1"}, "1.2")
    assert str(raised.value) == (
        "node b has no prefixlab; node c has prefixlab 1.1: every node needs prefixlab 1.2, as it is here"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_an_address_that_is_another_machine_on_each_node_is_refused(host: str) -> None:
    check_reaches(host, {"node a": socket.gethostname()})
    with pytest.raises(ConfigError, match=f"^{re.escape(host)} is another machine on node b"):
        check_reaches(host, {"node a": socket.gethostname(), "node b": "elsewhere.invalid"})


@pytest.mark.parametrize("host", ["10.1.2.3", "example.org", "2001:db8::1"])
def test_an_address_in_the_network_is_fine(host: str) -> None:
    check_reaches(host, {"node b": "elsewhere.invalid"})


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"prefixlab\[ray\]"):
        RayCluster("auto")


@pytest.mark.service
def test_an_address_where_nobody_listens_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ConfigError, match=f"^--ray {address}: .*refused"):
            RayCluster(address)


@pytest.mark.service
def test_a_server_is_measured_from_the_cluster_that_is_named(fake_server: FakeServer) -> None:
    config = TargetConfig(base_url=fake_server.url, ray="nonsense")
    with (
        pytest.raises(ConfigError, match=r"^--ray nonsense: "),
        open_endpoint(config, config.url, lambda facts: None),
    ):
        raise AssertionError("nothing is sent")
    assert not fake_server.bodies


@pytest.mark.service
def test_an_address_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"^--ray nonsense: "):
        RayCluster("nonsense")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Ray's own way to have several nodes on one machine."""
    from ray.cluster_utils import Cluster

    # A short path, as Ray has sockets there; and all that it and dead nodes leave goes with it.
    with (
        TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("TMPDIR", folder)
        small = {"num_cpus": 1, "object_store_memory": 80 << 20}
        cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        try:
            cluster.add_node(**small)
            cluster.add_node(**small)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def machines(ray_cluster: Any) -> Iterator[RayCluster]:
    with RayCluster(ray_cluster.address) as machines:
        yield machines


@pytest.fixture
def nothing_left(ray_cluster: Any) -> Iterator[None]:
    """Of the processes that nodes start for us."""
    raylets = {str(node.all_processes["raylet"][0].process.pid) for node in ray_cluster.list_all_nodes()}
    yield
    for _ in range(300):
        if not (left := processes_of(raylets)):
            return
        sleep(0.1)
    raise AssertionError(f"still there: {left}")


def processes_of(raylets: set[str]) -> list[int]:
    """Workers and decoders whose node is one of these."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environment = dict(
                pair.partition("=")[::2] for pair in (path / "environ").read_text().split("\0")
            )
        except (OSError, UnicodeDecodeError):
            continue
        if {WORKER.encode(), DECODER.encode()} & set(words) and environment.get("RAY_RAYLET_PID") in raylets:
            found.append(int(path.name))
    return found


def driver(server: FakeServer, machines: RayCluster) -> SocketDriver:
    return SocketDriver(server.url, CompletionsDialect(), model="fake", machines=machines)


@pytest.mark.service
@pytest.mark.usefixtures("nothing_left")
def test_there_is_one_process_on_each_node_unless_more_are_asked_for(
    fake_server: FakeServer, machines: RayCluster, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    load = Load(open_loop=True)
    done = driver(fake_server, machines).run(
        a_plan(60, apart_s=0.02), load, on_progress=seen.append, folder=tmp_path
    )
    check_complete(done.records, 60)
    assert {record.outcome for record in done.records} == {Outcome.OK}
    assert len({node.node for node in done.health.nodes}) == 3
    assert [node.num_workers for node in done.health.nodes] == [1, 1, 1]
    for node in done.health.nodes:  # the same machine, so the same clock
        assert abs(node.offset_s) <= node.uncertainty_s
        assert node.drift_s is not None and abs(node.drift_s) <= node.drift_uncertainty_s
    assert Counter(record.client for record in done.records) == {0: 20, 1: 20, 2: 20}
    assert (seen[-1].finished, seen[-1].tokens) == (60, 240)
    assert {path.name for path in tmp_path.glob("records-*")} == {f"records-{w}.jsonl" for w in range(3)}


@pytest.mark.service
@pytest.mark.usefixtures("nothing_left")
def test_more_processes_than_nodes_in_closed_loop(fake_server: FakeServer, machines: RayCluster) -> None:
    load = Load(open_loop=False, max_concurrency=7, num_workers=4)
    done = driver(fake_server, machines).run(a_plan(80), load)
    check_complete(done.records, 80)
    assert {record.outcome for record in done.records} == {Outcome.OK}
    assert [node.num_workers for node in done.health.nodes] == [2, 1, 1]
    assert fake_server.peak_in_flight <= 7


@pytest.mark.service
@pytest.mark.usefixtures("nothing_left")
def test_an_interrupt_ends_it_in_order(fake_server: FakeServer, machines: RayCluster) -> None:
    fake_server.behaviour.first_event_s = 0.02

    def interrupt(progress: Progress) -> None:
        if progress.finished and not interrupted:
            interrupted.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    interrupted: list[Progress] = []
    load = Load(open_loop=False, max_concurrency=3)
    done = driver(fake_server, machines).run(a_plan(5000), load, on_progress=interrupt)
    check_complete(done.records, 5000)
    assert done.interrupted
    counts = Counter(record.outcome for record in done.records)
    assert set(counts) <= {Outcome.OK, Outcome.CANCELLED, Outcome.UNSENT}
    assert counts[Outcome.OK] and counts[Outcome.UNSENT]


@pytest.mark.service
@pytest.mark.usefixtures("nothing_left")
def test_a_node_that_dies_is_named_and_the_others_go_on(
    fake_server: FakeServer, machines: RayCluster, ray_cluster: Any
) -> None:
    fake_server.behaviour.first_event_s = 0.02
    victim = ray_cluster.list_all_nodes()[-1]

    def pull_the_plug(progress: Progress) -> None:
        if progress.tokens and not pulled:
            pulled.append(progress)
            ray_cluster.remove_node(victim, allow_graceful=False)

    pulled: list[Progress] = []
    load = Load(open_loop=False, max_concurrency=3)
    done = driver(fake_server, machines).run(a_plan(600), load, on_progress=pull_the_plug)
    check_complete(done.records, 600)
    (lost,) = [node for node in done.health.nodes if node.lost is not None]
    failed = [record for record in done.records if record.outcome is Outcome.FAILED]
    assert failed and len({record.client for record in failed}) == 1
    for record in failed:
        assert record.failure is Failure.CLIENT
        assert record.error is not None and record.error.startswith(f"{lost.node} was lost: ")
    ok = Counter(record.client for record in done.records if record.outcome is Outcome.OK)
    assert sorted(ok.values())[-2:] == [200, 200]
    assert len(machines.nodes) == machines.default_num_workers(100) == 2


@pytest.mark.service
def test_what_looks_around_on_a_node_needs_no_prefixlab_there(tmp_path: Path) -> None:
    from ray import cloudpickle

    path = tmp_path / "look"
    path.write_bytes(cloudpickle.dumps(look_around()))
    script = (
        "import pickle, sys; sys.modules['prefixlab'] = None; import ray.cloudpickle;"
        "print(pickle.load(open(sys.argv[1], 'rb'))()[0])"
    )
    said = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert said.stdout == "None\n"
