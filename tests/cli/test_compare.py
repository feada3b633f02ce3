from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from prefixlab.cli.main import main
from tests.bench.compare.made import a_table, save

N = 3000


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """A baseline, the same again, and one that is 5 % slower."""
    made = {"base": (1, 1.0), "again": (2, 1.0), "slower": (3, 1.05)}
    return {
        name: str(save(tmp_path / name, a_table(N, seed=seed, slower=slower)))
        for name, (seed, slower) in made.items()
    }


def test_compare_says_its_verdict_first(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", folders["base"], folders["slower"]]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("B is worse: mean TTFT")
    assert "What was compared:" in shown and "From:" in shown
    assert main(["compare", folders["base"], folders["again"]]) == 0
    assert capsys.readouterr().out.startswith("no difference")


def test_compare_in_json_is_nothing_else(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", folders["base"], folders["slower"], "--json", "--figures", "ttft", "tpot"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["finding"] == "worse" and len(data["points"][0]["differences"]) == 6


def test_the_seed_decides_the_draws(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for seed in ("0", "0", "1"):
        assert main(["compare", folders["base"], folders["again"], "--json", "--seed", seed]) == 0
        told.append(json.loads(capsys.readouterr().out)["points"])
    assert told[0] == told[1] != told[2]


def test_a_wider_margin_calls_the_same_change_none(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", folders["base"], folders["slower"], "--margin", "10%"]) == 0
    assert capsys.readouterr().out.startswith("no difference beyond ±10%")


def test_gate_lets_the_same_through(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", folders["base"], folders["again"], "--max-regression", "3%"]) == 0
    assert capsys.readouterr().out.startswith("gate passed: ")


def test_gate_stops_a_regression_and_says_which_by_how_much_and_how_sure(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", folders["base"], folders["slower"], "--max-regression", "3%"]) == 3
    said = capsys.readouterr()
    assert said.out.startswith("gate failed: mean TTFT is ") and "allowed" in said.out
    assert "gate failed: mean TTFT" in said.err


def test_what_got_better_passes(folders: dict[str, str]) -> None:
    assert main(["gate", folders["slower"], folders["base"], "--max-regression", "3%"]) == 0


def test_a_figure_may_have_a_limit_of_its_own(folders: dict[str, str]) -> None:
    words = ["gate", folders["base"], folders["slower"], "--figures", "ttft_mean"]
    assert main([*words, "--max-regression", "3%"]) == 3
    assert main([*words, "--max-regression", "3%", "--metric", "ttft_mean=10%"]) == 0
    assert main([*words, "--metric", "tpot_mean=1%"]) == 3


def test_undecided_fails_a_strict_gate_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (str(save(tmp_path / str(seed), a_table(30, seed=seed, spread=0.5))) for seed in (1, 2))
    words = ["gate", a, b, "--max-regression", "30%", "--metric", "itl_mean=200%"]
    assert main(words) == 0
    assert "undecided: " in capsys.readouterr().out
    assert main([*words, "--strict"]) == 3
    assert "being strict" in capsys.readouterr().err


def test_a_gate_that_can_decide_nothing_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (str(save(tmp_path / str(seed), a_table(30, seed=seed))) for seed in (1, 2))
    assert main(["gate", a, b, "--figures", "p99_ttft"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("nothing can be judged: not one of 1 figures") and "too few" in said.err
    assert main(["gate", a, b, "--figures", "p99_ttft", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["passes"] is False


def test_gate_takes_no_margin_for_no_ruling_uses_it(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", folders["base"], folders["again"], "--margin", "50%"]) == 2
    assert "unknown option '--margin'" in capsys.readouterr().err


def test_gate_refuses_to_judge_another_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = str(save(tmp_path / "a", a_table(N, seed=1)))
    b = str(save(tmp_path / "b", a_table(N, seed=2), config={"load": {"request_rate": 60.0}}))
    assert main(["gate", a, b]) == 2
    assert "request-rate: A 50.0, B 60.0" in capsys.readouterr().err
    assert main(["gate", a, b, "--any-question"]) == 0


def test_gate_in_json_holds_the_ruling(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", folders["base"], folders["slower"], "--max-regression", "3%", "--json"]) == 3
    data = json.loads(capsys.readouterr().out)
    assert data["passes"] is False and data["ruling"].startswith("gate failed")
    assert {row["ruling"] for row in data["figures"]} >= {"failed"}


def test_a_result_comes_through_a_pipe(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = (Path(folders["base"]) / "summary.json").read_bytes()
    result = json.loads(summary) | {"endpoint_type": "vllm", "prefixlab_version": "1"}

    class Piped:
        buffer = io.BytesIO(json.dumps(result).encode())

    monkeypatch.setattr(sys, "stdin", Piped())
    assert main(["compare", "-", folders["slower"]]) == 0
    shown = capsys.readouterr().out
    assert "A: standard input" in shown and "save the requests too" in shown


def test_two_sides_cannot_both_be_standard_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "-", "-"]) == 2
    assert "cannot both be standard input" in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "there is no run in it" in capsys.readouterr().err
