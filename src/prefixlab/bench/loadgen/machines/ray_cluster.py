"""The machines of an existing Ray cluster, for client processes to run on. The only file that knows Ray.

Owns the connection to the cluster and an actor (`node.py`) on each of its nodes, for as many runs as there
are. Ray starts no worker itself: an actor does that with the code that does it here.

Invariant: whatever would keep a node from doing its share is an error that names it, before anything is sent.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from prefixlab import __version__
from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.machines.node import Node
from prefixlab.bench.loadgen.machines.remote_fleet import ANSWER_S, RemoteFleet, why
from prefixlab.core.clock import Clock
from prefixlab.core.errors import ConfigError, EngineError

_CONNECT_S = 60.0
_KNOCK_S = 5.0
_TRIAL = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    sys.exit(" ".join(str(error).split()))
"""


class RayNode:
    """See `RemoteNode`: an actor on one node of the cluster.

    Attributes:
        hostname: the machine's own name for itself.
    """

    def __init__(self, ray: Any, name: str, hostname: str, actor: Any) -> None:
        self.lost: str | None = None
        self.hostname = hostname
        self._ray = ray
        self._name = name
        self._actor = actor

    @property
    def name(self) -> str:
        return self._name

    def call(self, method: str, *args: Any) -> Future[Any]:
        future: Future[Any]
        try:
            future = getattr(self._actor, method).remote(*args).future()
        except Exception as error:  # Ray itself is gone
            future = Future()
            future.set_exception(error)
        return future

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # it may be gone, and so may Ray
            self._ray.kill(self._actor)


class RayCluster:
    """See `Machines`: every node that is alive as it is opened. A context manager.

    Args:
        address: as `ray.init` takes it: "auto", "host:port", "ray://host:port".

    Raises:
        ConfigError: Ray is not installed, nobody answers there, or a node has not our version of prefixlab.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise ConfigError("--ray needs Ray on this machine too: pip install 'prefixlab[ray]'") from None
        self._ray: Any = ray
        self._nodes: list[RayNode] = []
        self._is_ours = not ray.is_initialized()  # else a program that uses Ray itself has called us
        if self._is_ours:
            _connect(ray, address)
        try:
            self._hire()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes:
            node.kill()
        if self._is_ours:
            self._ray.shutdown()

    @property
    def nodes(self) -> list[RayNode]:
        """Those that have not been lost."""
        return [node for node in self._nodes if node.lost is None]

    def default_num_workers(self, num_streams: int) -> int:
        """One on each node."""
        return len(self.nodes)

    def fleet(self, folder: Path, num_workers: int, clock: Clock) -> RemoteFleet:
        nodes = self.nodes[:num_workers]
        if not nodes:
            raise EngineError("every node of the Ray cluster has been lost")
        check_reaches(jobs.read_job(folder).host, {node.name: node.hostname for node in nodes})
        return RemoteFleet(nodes, folder, num_workers, clock)

    def _hire(self) -> None:
        found = {
            node["NodeID"]: f"Ray node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            for node in self._ray.nodes()
            if node["Alive"]
        }
        names = dict(sorted(found.items(), key=lambda item: (item[1], item[0])))
        look = self._ray.remote(look_around())
        looks = {node: look.options(**_only_on(node)).remote().future() for node in names}
        seen = {node: _first_answer(names[node], future) for node, future in looks.items()}
        check_versions({names[node]: version for node, (version, _) in seen.items()})
        actor = self._ray.remote(Node)
        for node, name in names.items():
            hired = actor.options(**_only_on(node)).remote()
            self._nodes.append(RayNode(self._ray, name, seen[node][1], hired))
        for name, future in [(node.name, node.call("clock_ns")) for node in self._nodes]:
            _first_answer(name, future)


def _first_answer(name: str, future: Future[Any]) -> Any:
    try:
        return future.result(ANSWER_S)
    except Exception as error:
        raise ConfigError(f"{name} cannot run processes of ours: {why(error)}") from None


def look_around() -> Callable[[], tuple[str | None, str]]:
    """A function that tells the version of prefixlab and the name of the machine it is called on.

    Made inside another, it travels as code: it can be called where prefixlab is not installed.
    """

    def look() -> tuple[str | None, str]:
        import socket

        try:
            import prefixlab
        except ImportError:
            return None, socket.gethostname()
        return prefixlab.__version__, socket.gethostname()

    return look


def check_versions(found: Mapping[str, str | None], ours: str = __version__) -> None:
    """Raises ConfigError naming the nodes (node → version, None without prefixlab) that differ from us."""
    wrong = [
        f"{node} has {'no prefixlab' if version is None else f'prefixlab {version}'}"
        for node, version in found.items()
        if version != ours
    ]
    if wrong:
        raise ConfigError(f"{'; '.join(wrong)}: every node needs prefixlab {ours}, as it is here")


def check_reaches(host: str, hostnames: Mapping[str, str]) -> None:
    """Raises ConfigError if `host` means another server on some node (node → hostname) than it does here."""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return
    elsewhere = [node for node, hostname in hostnames.items() if hostname != socket.gethostname()]
    if is_loopback and elsewhere:
        raise ConfigError(
            f"{host} is another machine on {elsewhere[0]} than here: give the server's address in the network"
        )


def _only_on(node_id: str) -> dict[str, Any]:
    """Options of a task or actor: on that node or nowhere, and however busy the node is."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def _connect(ray: Any, address: str) -> None:
    """Where nobody answers, `ray.init` waits for minutes and can then not be left. So a process of its own
    tries first, which can.

    Raises:
        ConfigError: there is no cluster at `address`, or not one for us.
    """
    found = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    try:
        if found:
            socket.create_connection((found[1].strip("[]"), int(found[2])), _KNOCK_S).close()
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL, address], capture_output=True, text=True, timeout=_CONNECT_S
        )
        if trial.returncode != 0:
            raise ConfigError(f"--ray {address}: {_last_line(trial.stderr)}")
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except subprocess.TimeoutExpired:
        raise ConfigError(f"--ray {address}: no Ray cluster answered within {_CONNECT_S:.0f} s") from None
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--ray {address}: {error}") from None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "the connection failed without a word"
