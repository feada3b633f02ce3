"""All runs below a folder as rows: which, in which order, folded by sweeps."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.records.run_dir import RunDir
from prefixlab.bench.saved.catalogue import COLUMNS, Row, read_catalogue
from prefixlab.bench.saved.filters import filtered, ordered
from prefixlab.bench.saved.listing import SHOWN, as_csv, as_json, as_table, picked, sweeps_folded
from prefixlab.core.errors import ConfigError
from tests.bench.saved.saved_runs import save_run, save_sweep


def test_a_row_tells_what_one_looks_for_under_short_names(tmp_path: Path) -> None:
    save_run(
        tmp_path / "one",
        median_ttft_ms=12.5,
        measured_hit_rate=0.5,
        doctor={"grade": "B"},
        loop="open",
        request_rate=4.0,
    )
    (row,) = read_catalogue(tmp_path).rows

    assert {name: row[name] for name in ("name", "verb", "rate", "ttft_p50_ms", "hit_rate", "grade")} == {
        "name": "one",
        "verb": "bench serve",
        "rate": 4.0,
        "ttft_p50_ms": 12.5,
        "hit_rate": 0.5,
        "grade": "B",
    }
    assert list(row)[: len(COLUMNS)] == list(COLUMNS)


def test_all_else_that_the_folder_tells_is_there_under_names_of_its_own(tmp_path: Path) -> None:
    save_run(tmp_path / "one", swept={"--max-concurrency": 8}, label="mine")
    (row,) = read_catalogue(tmp_path).rows

    assert row["swept_max_concurrency"] == 8
    assert (row["label"], row["config_label"]) == ("mine", None)
    assert (row["config_max_concurrency"], row["env_server_page_size"]) == (4, 16)
    assert row["notes"] == "[]"


def test_the_newest_run_is_last(tmp_path: Path) -> None:
    for name, date in (("a", "20260301-000000"), ("b", "20260101-000000"), ("c", "20260201-000000")):
        save_run(tmp_path / name, date=date)

    assert [row["name"] for row in read_catalogue(tmp_path).rows] == ["b", "c", "a"]


def test_a_broken_folder_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    save_run(tmp_path / "good")
    (save_run(tmp_path / "bad") / "summary.json").write_text("{")
    catalogue = read_catalogue(tmp_path)

    assert [row["name"] for row in catalogue.rows] == ["good"]
    assert len(catalogue.broken) == 1 and "bad/summary.json" in catalogue.broken[0]


def test_an_unfinished_run_says_how_to_go_on_and_one_under_way_does_not(tmp_path: Path) -> None:
    killed = save_run(tmp_path / "killed", finished=None)
    save_run(tmp_path / "done")
    with RunDir.open(killed):
        busy = read_catalogue(tmp_path)
    left = read_catalogue(tmp_path)

    assert {row["name"]: row["state"] for row in busy.rows} == {"killed": "running", "done": "finished"}
    assert [left.how_to_go_on(row) for row in left.rows] == [f"prefixlab bench serve --resume {killed}", None]
    assert [busy.how_to_go_on(row) for row in busy.rows] == [None, None]


def test_a_point_of_a_sweep_is_gone_on_with_by_the_sweep(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "s", {"000": {}, "001": {"finished": None}}, verb="bench sweep")
    catalogue = read_catalogue(tmp_path)
    ways = {row["name"]: catalogue.how_to_go_on(row) for row in catalogue.rows}

    assert ways == {"s/000": None, "s/001": f"prefixlab bench sweep --resume {sweep}"}


def test_where_there_is_no_run_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run in it"):
        read_catalogue(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        read_catalogue(tmp_path / "nowhere")


def test_a_sweep_is_one_line_with_what_its_points_share_and_span(tmp_path: Path) -> None:
    points = {
        "000": {"median_ttft_ms": 10.0, "verdict": "consistent"},
        "001": {"median_ttft_ms": 30.0, "verdict": "less than expected"},
    }
    save_sweep(tmp_path / "s", points)
    save_run(tmp_path / "one", date="20270101-000000")
    catalogue = read_catalogue(tmp_path)
    sweep, one = sweeps_folded(catalogue, catalogue.rows)

    assert (sweep["name"], sweep["verb"], sweep["state"]) == ("s: 2 points", "bench sweep", "finished")
    assert (sweep["ok"], sweep["ttft_p50_ms"], sweep["model"]) == (400, "10 … 30", "some-model")
    assert sweep["verdict"] == "consistent, less than expected"
    assert one == catalogue.rows[-1]


def test_a_sweep_that_was_broken_off_says_how_far_it_came(tmp_path: Path) -> None:
    save_sweep(tmp_path / "s", {"000": {}, "001": {"finished": False}})
    catalogue = read_catalogue(tmp_path)

    assert sweeps_folded(catalogue, catalogue.rows)[0]["state"] == "1 of 2"


def test_the_points_of_a_sweep_can_be_listed_by_themselves(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "s", {"000": {}, "001": {}})

    assert [row["name"] for row in read_catalogue(sweep).rows] == ["000", "001"]


# Filters and order. ---------------------------------------------------------------------------------------

ROWS: list[Row] = [
    {"name": "a", "ttft_p99_ms": 100.0, "verdict": "consistent", "rate": float("inf"), "ok": 5},
    {"name": "b", "ttft_p99_ms": 600.0, "verdict": "not reported", "rate": 4.0, "ok": 5},
    {"name": "c", "ttft_p99_ms": None, "verdict": "consistent", "rate": None, "ok": None},
]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["ttft_p99<500"], "a"),
        (["ttft_p99_ms >= 100"], "ab"),
        (["ttft-p99!=100"], "bc"),
        (["verdict=consistent"], "ac"),
        (["verdict=Consistent", "ok=5"], "a"),
        (["verdict~report"], "b"),
        (["rate=inf"], "a"),
        (["rate=4"], "b"),
        (["rate>100"], "a"),
        ([], "abc"),
    ],
)
def test_filters_keep_what_passes_all_of_them(words: list[str], names: str) -> None:
    assert "".join(row["name"] for row in filtered(ROWS, words)) == names


DATED: list[Row] = [
    {"name": "a", "date": "20261121-074212", "hit_rate": 0.3},
    {"name": "b", "date": "20261122-235959", "hit_rate": 0.72},
    {"name": "c", "date": "20261123-000000", "hit_rate": None},
]


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("date>2026-11-22", "c"),
        ("date>=2026-11-22", "bc"),
        ("date<2026-11-22", "a"),
        ("date=2026-11-21", "a"),
        ("date=2026-11-21 07:42", "a"),
        ("date>2026-11-21 07:42", "bc"),
        ("date>20261121-074211", "abc"),
        ("date=2026-11", "abc"),
        ("date~2026-11-21", "a"),
        ("date~20261121", "a"),
        ("hit_rate>50%", "b"),
        ("hit_rate>0.5", "b"),
        ("hit_rate<=30.0 %", "a"),
    ],
)
def test_dates_and_shares_are_taken_as_lists_show_them(word: str, names: str) -> None:
    assert "".join(row["name"] for row in filtered(DATED, [word])) == names


@pytest.mark.parametrize(
    "word",
    ["hit_rate>half", "hit_rate=half", "name>5", "date>yesterday", "ok>50%", "ttft_p99<1s", "rate>50%"],
)
def test_numbers_are_not_compared_with_words(word: str) -> None:
    with pytest.raises(ConfigError, match="--filter"):
        filtered([*ROWS, *DATED], [word])


def test_a_word_among_numbers_is_equal_to_itself_and_neither_more_nor_less() -> None:
    rows: list[Row] = [{"name": "a", "x": "auto"}, {"name": "b", "x": 5}]
    assert [row["name"] for row in filtered(rows, ["x=auto"])] == ["a"]
    assert [row["name"] for row in filtered(rows, ["x>3"])] == ["b"]


@pytest.mark.parametrize("word", ["", "ttft", "<5", "= 3"])
def test_a_word_that_is_no_filter_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="--filter"):
        filtered(ROWS, [word])


def test_a_misspelt_column_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'verdict'"):
        filtered(ROWS, ["verdit=x"])


def test_what_a_run_does_not_say_is_last_in_either_order() -> None:
    assert [row["name"] for row in ordered(ROWS, "ttft_p99", falling=False)] == ["a", "b", "c"]
    assert [row["name"] for row in ordered(ROWS, "ttft_p99", falling=True)] == ["b", "a", "c"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())))
def test_any_column_can_be_sorted(values: list[Any]) -> None:
    rows = [{"name": value} for value in values]

    assert len(ordered(rows, "name", falling=False)) == len(rows)


# Paper. ---------------------------------------------------------------------------------------------------


def test_json_and_csv_have_whole_figures_and_nothing_for_what_is_not_known(tmp_path: Path) -> None:
    names = ["name", "x"]
    rows = [["a", 0.123456789], ["b", None], ["c", float("inf")], ["d", float("nan")]]

    assert json.loads(as_json(names, rows)) == [
        {"name": "a", "x": 0.123456789},
        {"name": "b", "x": None},
        {"name": "c", "x": "inf"},
        {"name": "d", "x": None},
    ]
    assert list(csv.reader(as_csv(names, rows).splitlines()))[1:] == [
        ["a", "0.123456789"],
        ["b", ""],
        ["c", "inf"],
        ["d", ""],
    ]


def test_a_table_rounds_and_shows_shares_as_percent_and_dates_as_dates(tmp_path: Path) -> None:
    row: Row = {"name": "a", "date": "20260102-030405", "hit_rate": 0.5, "ttft_p50_ms": 12.3456}
    text = as_table(list(row), picked([row], list(row)), 200)

    assert "2026-01-02 03:04" in text and "50.0%" in text and "12.35" in text


def test_text_of_others_is_no_command_to_a_terminal_and_no_markup() -> None:
    text = as_table(["name"], [["\x1b[2J[red]x[/red]"]], 200)

    assert "\x1b" not in text and "[red]x[/red]" in text


def test_every_column_that_is_shown_is_one(tmp_path: Path) -> None:
    assert set(SHOWN) <= set(COLUMNS)
