from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefixlab import __version__
from prefixlab.bench.calibrate.compare import NO_ERRORS
from prefixlab.bench.calibrate.store import Calibration, save
from prefixlab.bench.report.environment import machine_name
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


@pytest.fixture
def calibrated_to_almost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that any run asks too much of."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save(
        Calibration(
            machine=machine_name(),
            version=__version__,
            num_workers=1,
            tokens_per_s=0.0,
            streams=1_000_000,
            at_least=False,
            ttft=NO_ERRORS,
            itl=NO_ERRORS,
            stamps="kernel",
            made="20260101-000000",
        )
    )
