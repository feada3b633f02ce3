from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.fake_server import FakeServer, running


@pytest.fixture(scope="module")
def one_fake_server() -> Iterator[FakeServer]:
    with running(FakeServer()) as server:
        yield server


@pytest.fixture
def fake_server(one_fake_server: FakeServer) -> FakeServer:
    one_fake_server.reset()
    return one_fake_server
