"""`prefixlab runs`: what goes where, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefixlab.cli.main import main
from tests.bench.fake_server import FakeServer
from tests.bench.saved.saved_runs import save_run, save_sweep

SMALL = ["--num-prompts", "12", "--random-input-len", "40", "--random-output-len", "4", "--no-progress"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_run(tmp_path / "one", date="20260101-000000", median_ttft_ms=10.0)
    save_run(tmp_path / "two", date="20260102-000000", median_ttft_ms=20.0, finished=False)
    save_sweep(tmp_path / "sweep", {"000": {"date": "20250101-000000"}, "001": {"date": "20250101-000001"}})
    return tmp_path


def test_runs_are_listed_the_newest_last_a_sweep_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(folder)]) == 0

    out, err = capsys.readouterr()
    places = [out.index(name) for name in ("sweep: 2 points", "one", "two")]
    assert places == sorted(places) and "sweep/000" not in out
    assert f"to go on: prefixlab bench serve --resume {folder}/two" in err


def test_a_table_fits_the_terminal_and_says_what_it_has_no_room_for(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefixlab.cli.runs.table_width", lambda: 100)
    assert main(["runs", str(folder)]) == 0

    out, err = capsys.readouterr()
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100
    assert "no room for " in err and "ttft_p99_ms: --columns chooses" in err and "--columns all" in err


def test_dates_in_csv_are_those_of_the_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ([], ["--csv"]):
        assert main(["runs", str(folder), "--columns", "name,date", *form]) == 0
        assert "2026-01-02 00:00" in capsys.readouterr().out


def test_points_are_listed_where_they_are_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder), "--points", "--columns", "name,duration"]) == 0

    out = capsys.readouterr().out
    assert "sweep/000" in out and "duration" in out and "verdict" not in out


def test_json_is_all_there_is_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--filter", "ttft_p50<15", "--filter", "name=one", "--columns", "+p99_itl_ms", "--json"]
    assert main(["runs", str(folder), *words]) == 0

    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["name"] == "one" and entry["ttft_p50_ms"] == 10.0 and entry["p99_itl_ms"] > 0


def test_sorted_the_other_way_round(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--sort", "ttft_p50", "--reverse", "--filter", "sweep!=x", "--columns", "name", "--csv"]
    assert main(["runs", str(folder), *words]) == 0

    out = capsys.readouterr().out.splitlines()
    assert out[0] == "name" and out.index("two") < out.index("one")


def test_a_query_is_answered_in_any_form(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT count(*) AS n FROM runs"
    for form, expected in (([], "n"), (["--json"], '"n": 4'), (["--csv"], "n\n4\n")):
        assert main(["runs", str(folder), "--sql", query, *form]) == 0
        assert expected in capsys.readouterr().out


def test_sql_without_a_query_tells_the_views_and_examples(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(folder), "--sql"]) == 0

    out = capsys.readouterr().out
    assert all(f"{view}\n" in out for view in ("runs", "requests", "metrics", "timeline"))
    assert 'prefixlab runs --sql "SELECT' in out and "ttft_p50_ms DOUBLE" in out


def test_a_broken_folder_is_named_beside_the_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "one/config.json").write_text("[]")
    assert main(["runs", str(folder)]) == 0

    out, err = capsys.readouterr()
    assert "one/config.json" in err and "two" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sql", "SELECT 1", "--points"], "--points is for the list"),
        (["--sql", "SELEC 1"], "--sql: "),
        (["--filter", "nothing"], "--filter takes key=value"),
        (["--columns", "verdit"], "did you mean 'verdict'"),
        (["--sort", "nowhere"], "--sort nowhere"),
        (["--json", "--csv"], "not allowed with"),
    ],
)
def test_what_cannot_be_done_is_refused(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(folder), *words]) == 2
    assert said in capsys.readouterr().err


def test_an_empty_list_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder), "--filter", "name=nobody", "--json"]) == 0

    out, err = capsys.readouterr()
    assert json.loads(out) == [] and "none of 4 runs passes" in err


# From a run to its metrics. -------------------------------------------------------------------------------


def measured(server: FakeServer, path: Path, *words: str) -> int:
    return main(["bench", "serve", "--base-url", server.url, *SMALL, "--run-dir", str(path), *words])


def test_a_run_keeps_what_its_server_said_of_itself_from_before_to_after_it(
    fake_server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(fake_server, tmp_path / "r", "--repeats", "2", "--scrape-interval", "0.05") == 0
    capsys.readouterr()
    query = (
        "SELECT segment, min(m.time_s) < min(sent_s) AND max(m.time_s) > max(last_s) AS all_of_it"
        " FROM metrics m JOIN requests USING (run, segment) WHERE m.name = 'sglang:x' GROUP BY 1 ORDER BY 1"
    )
    assert main(["runs", str(tmp_path), "--sql", query, "--json"]) == 0

    seen = json.loads(capsys.readouterr().out)
    assert seen == [{"segment": 0, "all_of_it": True}, {"segment": 1, "all_of_it": True}]


def test_nobody_looks_where_nobody_shall(fake_server: FakeServer, tmp_path: Path) -> None:
    assert measured(fake_server, tmp_path / "r", "--scrape-interval", "0") == 0

    assert not list(tmp_path.rglob("metrics.parquet"))


def test_a_server_that_tells_no_metrics_is_noted_once(fake_server: FakeServer, tmp_path: Path) -> None:
    fake_server.behaviour.known_endpoints = frozenset({"server_info", "models"})
    assert measured(fake_server, tmp_path / "r", "--repeats", "2") == 0

    notes = json.loads((tmp_path / "r/summary.json").read_text())["notes"]
    assert sum("tells no metrics" in note for note in notes) == 1


@pytest.mark.parametrize("interval", ["-1", "0.001", "nan", "inf"])
def test_an_interval_that_is_none_is_refused(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "serve", "--base-url", "http://127.0.0.1:9", f"--scrape-interval={interval}"]
    assert main(words) == 2
    assert "--scrape-interval is 0 (off) or at least 0.05" in capsys.readouterr().err
