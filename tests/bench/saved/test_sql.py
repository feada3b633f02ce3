"""SQL over all runs below a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefixlab.bench.saved.catalogue import read_catalogue
from prefixlab.bench.saved.sql import EXAMPLES, VIEWS, RunsDatabase
from prefixlab.core.errors import ConfigError
from tests.bench.saved.saved_runs import save_metrics, save_run, save_sweep


@pytest.fixture
def database(tmp_path: Path) -> RunsDatabase:
    run = save_run(tmp_path / "it's one", median_ttft_ms=10.0, request_rate=4.0, loop="open")
    save_metrics(run, {0.0: 'c{tier="host"} 1\n', 9.0: 'c{tier="host"} 3\n'})
    save_run(tmp_path / "killed", finished=None)
    save_metrics(tmp_path / "killed", {0.0: "c 7\n"}, segment=3)
    (tmp_path / "killed/metrics.parquet").unlink()
    save_sweep(tmp_path / "s", {"000": {"median_ttft_ms": 20.0}, "001": {"median_ttft_ms": 30}})
    return RunsDatabase(read_catalogue(tmp_path))


def test_runs_has_a_row_per_run_points_of_sweeps_included(database: RunsDatabase) -> None:
    names, rows = database.ask("SELECT name, ttft_p50_ms FROM runs ORDER BY name")

    assert names == ["name", "ttft_p50_ms"]
    assert rows == [("it's one", 10.0), ("killed", None), ("s/000", 20.0), ("s/001", 30.0)]


def test_numbers_are_numbers_also_where_infinity_is_a_word_among_them(database: RunsDatabase) -> None:
    kinds = dict(database.columns("runs"))

    assert (kinds["request_rate"], kinds["ok"], kinds["finished"]) == ("DOUBLE", "BIGINT", "BOOLEAN")
    assert kinds["hit_rate"] == "DOUBLE", "also where no run tells any"
    _, rows = database.ask("SELECT count(*) FROM runs WHERE request_rate = 'inf'")
    assert rows == [(2,)]


def test_requests_of_all_runs_are_joined_with_their_runs_by_the_folder(database: RunsDatabase) -> None:
    _, rows = database.ask(
        "SELECT name, count(*) FROM requests JOIN runs USING (run) WHERE outcome = 'ok' GROUP BY 1 ORDER BY 1"
    )

    assert rows == [("it's one", 200), ("s/000", 200), ("s/001", 200)]


def test_metrics_are_those_of_runs_and_of_stretches_of_runs_that_are_not_finished(
    database: RunsDatabase,
) -> None:
    _, rows = database.ask(
        "SELECT runs.name, segment, labels->>'tier', max(value) FROM metrics m JOIN runs USING (run)"
        " WHERE m.name = 'c' GROUP BY ALL ORDER BY 1"
    )

    assert rows == [("it's one", 0, "host", 3.0), ("killed", 3, None, 7.0)]


def test_the_timeline_is_a_view_of_its_own_with_nothing_for_what_was_not_told(database: RunsDatabase) -> None:
    _, rows = database.ask("SELECT count(*), count(client_in_flight), count(server_running) FROM timeline")

    assert rows[0][0] == rows[0][1] > 0
    assert rows[0][2] == 0


def test_a_wrong_query_is_told_in_one_line_with_what_is_near(database: RunsDatabase) -> None:
    with pytest.raises(ConfigError, match=r"--sql: .*nam.*name") as told:
        database.ask("SELECT nam FROM runs")
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match="--sql: "):
        database.ask("not SQL")
    with pytest.raises(ConfigError, match="--sql: "):
        database.ask("-- nothing")


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO '{}'",
        "SELECT 1; COPY (SELECT 1) TO '{}'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{}'",
        "ATTACH '{}'",
        "DROP TABLE runs",
        "",
    ],
)
def test_what_is_no_question_is_refused_and_nothing_is_written(
    query: str, database: RunsDatabase, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--sql: one question"):
        database.ask(query.format(tmp_path / "written"))
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "query",
    [
        "WITH a AS (FROM runs) SELECT name FROM a;",
        "DESCRIBE runs",
        "SUMMARIZE SELECT ok FROM runs",
        "SHOW TABLES",
        "FROM runs",
    ],
)
def test_every_form_of_a_question_is_answered(query: str, database: RunsDatabase) -> None:
    names, _ = database.ask(query)
    assert names


def test_the_examples_are_queries(database: RunsDatabase) -> None:
    for query in EXAMPLES:
        names, _ = database.ask(query)
        assert names


def test_every_view_has_its_columns_also_where_no_run_has_any_rows(tmp_path: Path) -> None:
    save_run(tmp_path / "killed", finished=None)
    with RunsDatabase(read_catalogue(tmp_path)) as database:
        assert all(("run", "VARCHAR") in database.columns(view) for view in VIEWS)
        _, rows = database.ask("SELECT count(*) FROM metrics, requests")
    assert rows == [(0,)]


def test_hundreds_of_runs_are_read_at_once(tmp_path: Path) -> None:
    for number in range(300):
        folder = tmp_path / f"run-{number:03}"
        folder.mkdir()
        for name in ("config.json", "summary.json"):
            (folder / name).write_text('{"median_ttft_ms": 5}')
        if number == 0:
            save_run(tmp_path / "real")
        (folder / "requests.parquet").write_bytes((tmp_path / "real/requests.parquet").read_bytes())
    with RunsDatabase(read_catalogue(tmp_path)) as database:
        _, rows = database.ask("SELECT count(*), count(DISTINCT run) FROM requests")
    assert rows == [(301 * 200, 301)]
