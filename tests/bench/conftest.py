from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.fake_server import FakeServer, running


@pytest.fixture(scope="session")
def one_fake_server() -> Iterator[FakeServer]:
    with running(FakeServer()) as server:
        yield server


@pytest.fixture
def fake_server(one_fake_server: FakeServer) -> FakeServer:
    """A server to measure, with an empty cache and its usual behaviour."""
    one_fake_server.reset()
    return one_fake_server
