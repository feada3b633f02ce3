from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.loadgen.driver import Progress
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.run_dir import RunDir
from prefixlab.bench.targets.cold_start import Coldness
from prefixlab.bench.targets.control import FlushAnswer
from prefixlab.bench.targets.several import SeveralDrivers, SeveralEndpoints
from prefixlab.bench.workloads.wording import Prompt
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.errors import ConfigError
from prefixlab.core.target import TargetRequest
from tests.bench.runs.test_serve_run import FakeControl, Server
from tests.bench.virtual_driver import VirtualDriver

PROBE = Prompt(as_token_ids(range(64)))


def plan(*servers: int) -> list[Planned]:
    return [
        Planned(TargetRequest(str(number), 4, prompt_token_ids=as_token_ids([number])), 1, server=server)
        for number, server in enumerate(servers)
    ]


def several(*servers: Server, **fields: Any) -> SeveralEndpoints:
    each = [server.endpoint(url=f"http://{number}") for number, server in enumerate(servers)]
    return SeveralEndpoints.of([*each[:-1], servers[-1].endpoint(url="http://last", **fields)])


@pytest.mark.parametrize(("slots", "share"), [(7, 3), (1, 1), (None, None)])
def test_each_server_is_sent_its_part_with_its_share_of_slots(slots: int | None, share: int | None) -> None:
    drivers = [VirtualDriver(), VirtualDriver(failing=frozenset({"3"}))]
    drive = SeveralDrivers(drivers).run(plan(0, 0, 1, 1, 0), Load(open_loop=False, max_concurrency=slots))
    sent = [[one.request.request_id for one in driver.runs[0][0]] for driver in drivers]
    assert sent == [["0", "1", "4"], ["2", "3"]]
    assert [driver.runs[0][1].max_concurrency for driver in drivers] == [share, share]
    assert sorted(drive.table.request_id) == ["0", "1", "2", "3", "4"]
    assert int(drive.table.ok.sum()) == 4 and not drive.interrupted
    assert drive.duration_s == max(record.last_s or 0 for record in drive.records)


def test_one_that_is_interrupted_interrupts_the_run() -> None:
    drivers = [VirtualDriver(), VirtualDriver(stop_after=0)]
    drive = SeveralDrivers(drivers).run(plan(0, 1, 1), Load(open_loop=False, max_concurrency=2))
    assert drive.interrupted
    outcomes = dict(zip(drive.table.request_id, [record.outcome for record in drive.records], strict=True))
    assert outcomes == {"0": Outcome.OK, "1": Outcome.UNSENT, "2": Outcome.UNSENT}


def test_records_of_each_lie_in_a_folder_of_its_own_and_are_read_as_one(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", {}) as run_dir:
        segment = run_dir.begin_segment({})
        drivers = SeveralDrivers([VirtualDriver(), VirtualDriver()])
        drivers.run(plan(0, 1, 1), Load(open_loop=False, max_concurrency=2), folder=segment.folder)
        assert [folder.name for folder in segment.driver_folders()] == ["server-000", "server-001"]
        assert sorted(segment.table().request_id) == ["0", "1", "2"]


def test_progress_is_that_of_all_together() -> None:
    def told(finished: int, ttft_s: float | None) -> Progress:
        return Progress(1.0, 9, 9, 9, 9, 9, finished, 0, 0, 0, 0, 0, ttft_s)

    class Telling(VirtualDriver):
        def run(self, plan: Any, load: Load, *, on_progress: Any = None, folder: Any = None) -> Any:
            on_progress(told(1, None) if not plan else told(3, 0.5))
            return super().run(plan, load, folder=folder)

    heard: list[Progress] = []
    drivers = SeveralDrivers([Telling(), Telling()])
    drivers.run(plan(0, 0), Load(open_loop=False, max_concurrency=2), on_progress=heard.append)
    assert (heard[-1].finished, heard[-1].planned, heard[-1].ttft_s) == (4, 18, 0.5)


def test_all_are_started_cold_and_the_least_sure_speaks_for_them() -> None:
    controls = [FakeControl(), FakeControl(can_flush=False)]
    servers = [Server(control=control) for control in controls]
    found = several(*servers).start_cold(PROBE)
    assert found.coldness is Coldness.SALTED
    assert "http://0: " in found.detail and "http://last: " in found.detail
    assert [control.flushes for control in controls] == [1, 1]
    assert several(*servers).control.flush() == FlushAnswer(False, "asked")


def test_what_one_refuses_all_refuse() -> None:
    fine, broken = Server(), Server(VirtualDriver(failing=frozenset({"0"})))
    (question,) = plan(0)
    assert several(fine, broken).send(question).outcome is Outcome.FAILED
    assert several(fine, fine).send(question).outcome is Outcome.OK


@pytest.mark.parametrize(
    "fields", [{"page_size": 1}, {"model": "other"}, {"backend": "openai"}, {"expects_miss": "off"}]
)
def test_servers_must_be_alike(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be alike"):
        several(Server(), Server(), **fields)
