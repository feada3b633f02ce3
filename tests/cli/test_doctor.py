"""`prefixlab doctor` on folders of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefixlab.cli.main import main
from tests.bench.fake_server import FakeServer

Shown = pytest.CaptureFixture[str]


@pytest.fixture
def run(fake_server: FakeServer, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    words = ["--base-url", fake_server.url, "--backend", "prefixlab", "--num-prompts", "4"]
    words += [
        "--random-input-len",
        "16",
        "--random-output-len",
        "2",
        "--run-dir",
        str(folder),
        "--no-progress",
    ]
    assert main(["bench", "serve", *words]) == 0
    return folder


def told(shown: Shown, *words: str) -> list[dict[str, Any]]:
    shown.readouterr()
    assert main(["doctor", "--json", *words]) == 0
    found: list[dict[str, Any]] = json.loads(shown.readouterr().out)
    return found


def test_a_page_says_the_grade_first(run: Path, capsys: Shown) -> None:
    capsys.readouterr()
    assert main(["doctor", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"trust in {run}: ")


def test_it_says_of_a_folder_what_the_run_said_itself(run: Path, capsys: Shown) -> None:
    (found,) = told(capsys, str(run))
    own = json.loads((run / "doctor.json").read_text())
    assert found == {"path": str(run), "name": "run", **own}


def test_a_grade_below_the_least_is_exit_code_3(run: Path, capsys: Shown) -> None:
    capsys.readouterr()
    assert main(["doctor", str(run), "--min-grade", "A"]) == 3  # four requests are few
    assert f"{run}: B, below A" in capsys.readouterr().err
    assert main(["doctor", str(run), "--min-grade", "C"]) == 0


def test_every_run_below_a_folder_is_looked_at(run: Path, capsys: Shown) -> None:
    assert [found["path"] for found in told(capsys, str(run.parent))] == [str(run)]


def test_a_folder_that_holds_none_is_told(tmp_path: Path, capsys: Shown) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert "there is no run in it" in capsys.readouterr().err


def test_a_run_that_did_not_end_is_told(run: Path, capsys: Shown) -> None:
    (run / "summary.json").unlink()
    assert main(["doctor", str(run)]) == 2
    assert "there is no summary.json to go by" in capsys.readouterr().err


def test_a_client_whose_word_is_lost_is_told(run: Path, capsys: Shown) -> None:
    (run / "health.json").unlink()
    (found,) = told(capsys, str(run))
    assert ("client health", "unknown") in [(check["name"], check["status"]) for check in found["checks"]]
