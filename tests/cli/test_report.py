from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefixlab.cli.main import main
from tests.bench.report.html.runs import a_run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_becomes_one_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(here / "one")
    assert main(["report", "one", "-o", "page.html"]) == 0
    assert (here / "page.html").read_text().startswith("<!DOCTYPE html>")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("one: page.html (") and err.endswith("kB); open it in a browser\n")


def test_without_a_name_it_is_the_run_that_was_begun_last(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("second", "first")):
        a_run(here / "runs" / name)
        os.utime(here / "runs" / name / "config.json", (1000 - number, 1000 - number))
    assert main(["report"]) == 0
    assert capsys.readouterr().err.startswith("runs/second: report.html")


def test_standard_output_holds_the_page_and_nothing_else(
    here: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    a_run(here / "one")
    assert main(["report", "one", "-o", "-"]) == 0
    out, err = capfdbinary.readouterr()
    assert out.startswith(b"<!DOCTYPE html>") and out.endswith(b"</html>")
    assert err == b""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is no run in runs/: name the folder of one, or measure first"),
        (["nowhere"], "nowhere: there is no such folder"),
        (["one/config.json"], "config.json: it is a file, and a run is a folder; result files of benchmarks"),
        (["one", "-o", "no/where.html"], "--output no/where.html: there is no folder no"),
        (["one", "-o", "."], "--output . cannot be written"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    a_run(here / "one")
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err
