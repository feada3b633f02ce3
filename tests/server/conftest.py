"""One server for the tests that leave it as they found it; its cache is flushed before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.harness import Served, serving


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def served(shared_server: Served) -> Served:
    assert shared_server.get("/flush_cache?timeout=10")["success"]
    return shared_server
