from __future__ import annotations

from pathlib import Path

import pytest

from prefixlab.bench.report.pictures.benchmarks.figures import FILES
from prefixlab.cli.main import main
from tests.bench.fake_server import FakeServer
from tests.bench.report.pictures.benchmarks.folders import save_point, save_sweep


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_becomes_five_pictures_and_a_summary(
    here: Path, fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = [
        "bench",
        "sweep",
        "--base-url",
        fake_server.url,
        "--max-concurrency",
        "1,2",
        "--num-prompts",
        "4",
    ]
    sweep += ["--random-input-len", "16", "--random-output-len", "4", "--label", "vLLM-FP8", "--no-progress"]
    assert main(sweep) == 0
    capsys.readouterr()
    assert main(["plot", "runs", "--num-devices", "2"]) == 0
    plots = Path("runs/plots")
    assert capsys.readouterr().out.splitlines() == [str(plots / name) for name in (*FILES, "SUMMARY.txt")]
    assert all((plots / name).read_bytes().startswith(b"\x89PNG") for name in FILES)
    lines = (plots / "SUMMARY.txt").read_text().splitlines()
    assert lines[3:8] == [
        "Results directory: runs",
        "Plots generated: runs/plots",
        "",
        "Deployment Types Found:",
        "  vLLM-FP8: 2 concurrency levels (1-2)",
    ]


def test_pictures_go_where_they_are_wanted_and_show_what_is_named(here: Path) -> None:
    for name in ("a", "b", "c"):
        save_sweep(here / "data" / name, (4,))
    words = ["--benchmark-name", "c", "--benchmark-name", "a"]
    assert main(["plot", "data", "--output-dir", "there/deep", *words]) == 0
    text = Path("there/deep/SUMMARY.txt").read_text()
    assert [name for name in "abc" if f"  {name}: 1 concurrency levels (4-4)\n" in text] == ["a", "c"]
    assert sorted(path.name for path in Path("there/deep").iterdir()) == sorted([*FILES, "SUMMARY.txt"])


def test_what_is_left_out_is_one_line_and_all_of_it_in_the_summary(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_sweep(here / "data" / "a", (4,))
    for name in ("one", "two", "three"):
        save_point(here / "data" / name, 4, loop="open")
    assert main(["plot", "data"]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert "it was asked at a rate" in said and said.endswith("(and 2 more, see data/plots/SUMMARY.txt)")
    assert (here / "data/plots/SUMMARY.txt").read_text().count("it was asked at a rate") == 3


def test_an_empty_folder_is_an_error_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "data").mkdir()
    assert main(["plot", "data"]) == 2
    assert "data: there is nothing to plot" in capsys.readouterr().err
    assert list((here / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["data", "--benchmark-name", "b"], "--benchmark-name b: there is a"),
        (["data", "--num-devices", "many"], "--num-devices takes N or NAME=N"),
        (["data", "--output-dir", "data/a/config.json"], "--output-dir data/a/config.json cannot be written"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    save_sweep(here / "data" / "a", (4,))
    assert main(["plot", *words]) == 2
    assert said in capsys.readouterr().err
