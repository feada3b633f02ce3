"""The doctor on runs over HTTP: what the simulated server does wrong is named, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.doctor.page import DATA, PAGE
from prefixlab.cli.embedded import embedded_server
from prefixlab.cli.main import main

pytestmark = pytest.mark.service

SIM = ["--model", "sim", "--page-size", "16", "--sim-step-ms", "5", "--sim-speedup", "1"]
OF_THIS_MACHINE = {"client lag", "merged reads", "bundled chunks", "steady state", "calibration"}
"""What other work on the machine may cause."""


def measured(tmp_path: Path, *words: str, num_prompts: int = 40) -> dict[str, Any]:
    """The doctor's word on a run; its folder is `tmp_path / "run"`."""
    folder = tmp_path / "run"
    command = ["bench", "serve", "--backend", "prefixlab", "--num-prompts", str(num_prompts)]
    command += ["--random-input-len", "64", "--random-output-len", "12", "--max-concurrency", "8"]
    command += ["--metric-percentiles", "50", "--run-dir", str(folder), *words]
    assert main(command) == 0
    said: dict[str, Any] = json.loads((folder / DATA).read_text())
    return said


def not_fine(said: dict[str, Any]) -> dict[str, str]:
    """Check → status, without what is not known and without what the machine may have caused."""
    found = {check["name"]: check["status"] for check in said["checks"]}
    fine = ("fine", "unknown")
    return {
        name: status for name, status in found.items() if status not in fine and name not in OF_THIS_MACHINE
    }


def status(said: dict[str, Any], name: str) -> str:
    (found,) = [check["status"] for check in said["checks"] if check["name"] == name]
    return str(found)


def test_a_clean_run_is_clean_and_its_folder_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = measured(tmp_path, *SIM, "--flush-cache")
    assert not_fine(said) == {}
    assert "trust: " in capsys.readouterr().out
    run = tmp_path / "run"
    assert (run / PAGE).read_text().startswith(f"trust: {said['grade']}, ")
    assert f"trust: {said['grade']} — " in (run / "report.txt").read_text()
    assert json.loads((run / "summary.json").read_text())["doctor"] == said
    assert main(["doctor", str(run), "--json"]) == 0
    (again,) = json.loads(capsys.readouterr().out)
    assert {name: again[name] for name in said} == said


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("lie-cached=+16", {"ledger": "bad"}),
        ("stall=1.2@0.2", {"stalls": "caution"}),
        ("ignore-eos-off=0.2", {"ignore_eos": "bad"}),
        ("drop=0.3", {"failures": "bad"}),
        ("miscount=1", {"prompt lengths": "caution"}),
        ("miscount=20", {"prompt lengths": "bad"}),
        ("slow-connect=0.02", {"connect waits": "bad"}),
    ],
)
def test_a_fault_is_named_and_nothing_else(tmp_path: Path, fault: str, found: dict[str, str]) -> None:
    said = measured(tmp_path, *SIM, "--sim-fault", fault, "--flush-cache")
    assert not_fine(said) == found
    assert f"faults on purpose: {fault}" in (tmp_path / "run" / "report.txt").read_text()


def test_several_tokens_to_an_event_are_named(tmp_path: Path) -> None:
    said = measured(tmp_path, *SIM, "--sim-fault", "bundle=4")
    assert status(said, "bundled chunks") == "caution"


@pytest.mark.parametrize("backend", ["prefixlab", "openai"])
def test_hits_that_are_not_reported_are_not_known(tmp_path: Path, backend: str) -> None:
    with embedded_server([*SIM, "--sim-fault", "null-cached"]) as url:
        said = measured(tmp_path, "--base-url", url, "--backend", backend, "--ignore-eos")
    assert not_fine(said) == {}
    assert status(said, "warm contamination") == "unknown"


def test_a_flush_that_keeps_everything_is_found_out(tmp_path: Path) -> None:
    measured(tmp_path, *SIM, "--sim-fault", "keep-on-flush", "--flush-cache")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["cold_start"] == "salted"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with embedded_server(SIM) as url:
        yield url


def test_a_cache_that_is_warm_is_named(tmp_path: Path, server: str) -> None:
    words = ["--base-url", server, "--seed", "5"]
    assert not_fine(measured(tmp_path / "first", *words)) == {}
    assert not_fine(measured(tmp_path / "again", *words)) == {"warm contamination": "bad"}


def test_a_server_that_does_not_keep_up_is_named(tmp_path: Path, server: str) -> None:
    words = ["--base-url", server, "--request-rate", "400", "--burstiness", "inf"]
    said = measured(tmp_path, *words, "--random-output-len", "2", num_prompts=600)
    assert not_fine(said) == {"saturation": "bad", "schedule lag": "caution"}


def test_too_few_requests_are_named(tmp_path: Path, server: str) -> None:
    said = measured(tmp_path, "--base-url", server, "--metric-percentiles", "99")
    assert not_fine(said) == {"sample size": "caution"}


def test_prompts_faster_under_load_than_alone_are_named_although_no_hit_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_prompts = ["--sim-prefill-tokens-per-s", "20000", "--sim-fault", "null-cached"]
    with embedded_server([*SIM, *long_prompts]) as url:
        sent = str(tmp_path / "prompts.jsonl")
        alone = [
            "--base-url",
            url,
            "--random-input-len",
            "1024",
            "--random-output-len",
            "2",
            "--max-concurrency",
            "1",
            "--save-workload",
            sent,
        ]
        measured(tmp_path / "alone", *alone, num_prompts=20)
        again = ["bench", "serve", "--base-url", url, "--backend", "prefixlab", "--dataset-name", "saved"]
        again += ["--dataset-path", sent, "--max-concurrency", "8", "--run-dir", str(tmp_path / "again")]
        assert main(again) == 0
        capsys.readouterr()
    assert main(["doctor", "--json", str(tmp_path)]) == 0
    by_name = {
        said["path"].removeprefix(f"{tmp_path}/"): said for said in json.loads(capsys.readouterr().out)
    }
    assert status(by_name["alone/run"], "faster under load") == "fine"
    assert status(by_name["again"], "faster under load") == "caution"


def test_a_target_in_this_process_is_named(tmp_path: Path) -> None:
    said = measured(tmp_path, *SIM, "--backend", "in-process")
    assert not_fine(said) == {"in-process target": "caution"}
