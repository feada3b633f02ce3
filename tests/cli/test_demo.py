from __future__ import annotations

from pathlib import Path

import pytest

from prefixlab.cli import demo
from prefixlab.cli.main import main


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The command lines the demo runs, instead of running them; the demo starts in an empty folder."""
    ran: list[list[str]] = []

    def record(*words: str) -> int:
        ran.append(list(words))
        return 0

    monkeypatch.setattr(demo, "_do", record)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFIXLAB_TRACES", raising=False)
    return ran


def test_the_demo_is_a_strict_sweep_and_says_where_its_picture_is(
    commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo"]) == 0
    [sweep] = commands
    assert sweep[:3] == ["bench", "warm-cache", "--strict"]
    assert sweep[-2:] == ["--plot", "demo-results/warm-cache.png"]
    shown = capsys.readouterr().out
    assert "The picture: demo-results/warm-cache.png" in shown
    assert "skipped the trace: ../shared/traces/sharegpt300_qwen3_b16.jsonl.gz is not there" in shown


def test_the_demo_replays_fifty_requests_of_the_trace_where_there_is_one(
    commands: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trace = tmp_path / "traces" / "sharegpt300_qwen3_b16.jsonl.gz"
    trace.parent.mkdir()
    trace.touch()
    monkeypatch.setenv("PREFIXLAB_TRACES", str(trace.parent))
    assert main(["demo", "--results", "elsewhere"]) == 0
    assert commands[1] == ["bench", "trace", str(trace), "--num-prompts", "50", "--no-run-dir"]
    assert "skipped" not in capsys.readouterr().out
    assert Path("elsewhere").is_dir()


def test_rows_of_an_earlier_demo_are_not_mixed_with_new_ones(commands: list[list[str]]) -> None:
    rows = Path("demo-results/warm-cache.jsonl")
    rows.parent.mkdir()
    rows.write_text("old\n")
    assert main(["demo"]) == 0
    assert not rows.exists()


def test_a_sweep_whose_cache_did_not_hit_fails_the_demo(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_do", lambda *words: 3)
    assert main(["demo"]) == 3
    assert "The picture" not in capsys.readouterr().out


def test_a_results_folder_that_cannot_be_made_is_named(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    assert main(["demo", "--results", "taken"]) == 2
    assert "--results taken: File exists" in capsys.readouterr().err
    assert not commands
