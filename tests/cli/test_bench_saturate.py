from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefixlab.cli.main import main
from tests.bench.fake_server import FakeServer

SMALL = [
    "--random-input-len",
    "40",
    "--random-output-len",
    "2",
    "--probe-requests",
    "40",
    "--probe-duration",
    "0.2",
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saturate(server: FakeServer, *words: str) -> int:
    return main(["bench", "saturate", "--base-url", server.url, *SMALL, "--no-progress", *words])


def test_a_server_that_holds_everything_is_said_to_hold_at_least_the_largest_load(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--find", "concurrency", "--max-probes", "2", "--goodput", "ttft:60000")
    assert saturate(fake_server, *words) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1].startswith("holds at least ")
    assert "probe 2 of at most 2" in shown.err
    (folder,) = Path("runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] is True and len(summary["probes"]) == 2 and summary["high"] is None
    points = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    assert [json.loads((path / "summary.json").read_text())["finished"] for path in points] == [True, True]


def test_where_no_load_meets_the_exit_code_is_3(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--find", "concurrency", "--max-probes", "2", "--goodput", "ttft:0.000001", "--no-run-dir")
    assert saturate(fake_server, *words) == 3
    shown = capsys.readouterr()
    assert "no probe met them" in shown.out
    assert "no load that was tried meets --goodput" in shown.err


def test_the_answer_is_one_json_object_where_that_is_asked_for(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--from",
        "200",
        "--max-probes",
        "2",
        "--goodput",
        "ttft:60000",
        "--style",
        "json",
        "--no-run-dir",
    )
    assert saturate(fake_server, *words) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["find"] == "rate" and data["confidence"] == 0.95
    assert [probe["verdict"] for probe in data["probes"]] == ["meets", "meets"]


def test_a_finished_search_is_not_resumed_and_another_verbs_folder_is_refused(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--find", "concurrency", "--max-probes", "2", "--goodput", "ttft:60000", "--run-dir", "mine")
    assert saturate(fake_server, *words) == 0
    assert main(["bench", "saturate", "--resume", "mine"]) == 2
    assert "that run is finished" in capsys.readouterr().err
    assert main(["bench", "sweep", "--resume", "mine"]) == 2


def test_a_search_goes_on_from_its_folder(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--find", "concurrency", "--max-probes", "3", "--goodput", "ttft:60000", "--run-dir", "mine")
    assert saturate(fake_server, *words) == 0
    whole = json.loads(Path("mine/summary.json").read_text())
    Path("mine/summary.json").unlink()
    kept = json.loads(Path("mine/probes.json").read_text())
    last = kept["probes"].pop()
    Path("mine/probes.json").write_text(json.dumps(kept))
    (folder,) = Path("mine").glob(f"003-max-concurrency={last['load']:g}")
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    num_before = len(fake_server.bodies)
    assert main(["bench", "saturate", "--resume", "mine", "--no-progress"]) == 0
    again = json.loads(Path("mine/summary.json").read_text())
    assert [probe["load"] for probe in again["probes"]] == [probe["load"] for probe in whole["probes"]]
    assert len(fake_server.bodies) > num_before, "the third probe was made anew"


def test_what_would_be_done_is_told_without_asking_the_server(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert saturate(fake_server, "--goodput", "ttft:500", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "at most 10 probes of 0.2 s" in shown and "closed loop, 64 in flight" in shown
    assert not fake_server.bodies


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--from", "5"), "give --goodput"),
        (("--goodput", "ttft:5", "--share", "95"), "--share must lie above 0 and below 1"),
        (("--goodput", "ttft:5", "--find", "concurrency", "--max-concurrency", "3"), "--max-concurrency is"),
        (("--goodput", "ttft:5", "--request-rate", "3"), "unknown option '--request-rate'"),
    ],
)
def test_settings_that_leave_nothing_to_find_are_refused(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], complaint: str
) -> None:
    assert saturate(fake_server, *words) == 2
    assert complaint in capsys.readouterr().err
