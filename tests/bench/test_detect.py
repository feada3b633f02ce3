from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.targets.detect import find_port
from prefixlab.core.errors import TargetError
from tests.bench.fake_server import FakeServer

HOST = TargetConfig(host="127.0.0.1")


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:  # and never listening
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def test_a_host_without_a_port_is_asked_on_the_usual_ports(fake_server: FakeServer, closed_port: int) -> None:
    port = urlsplit(fake_server.url).port
    assert port is not None
    assert find_port(HOST, {port: "A", closed_port: "B"}) == port
    assert find_port(HOST, {closed_port: "A", port: "B"}) == port
    assert not fake_server.bodies, "it is sent no prompt"


def test_where_nothing_answers_the_ports_tried_are_told(closed_port: int) -> None:
    words = rf"nothing answers on 127.0.0.1, port {closed_port} \(A\) or 1 \(B\): give --port"
    with pytest.raises(TargetError, match=words):
        find_port(HOST, {closed_port: "A", 1: "B"})


@pytest.mark.parametrize(("backend", "port"), [("vllm", 8000), ("openai", 8000), ("sglang", 30000)])
def test_a_host_of_a_named_kind_is_asked_on_the_port_of_that_kind(backend: str, port: int) -> None:
    assert TargetConfig(host="far", backend=backend).url == f"http://far:{port}"
