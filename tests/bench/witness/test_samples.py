"""Metrics as they are kept: what changes, within bounds, as Parquet."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.witness.samples import UP, SampleLog, join_metrics, write_metrics


def told(log: SampleLog, name: str) -> list[tuple[float, float]]:
    samples = log.samples()
    mine = np.array(samples.names, object)[samples.series] == name
    return sorted(zip(samples.times_s[mine].tolist(), samples.values[mine].tolist(), strict=True))


def value_at(rows: list[tuple[float, float]], time_s: float) -> float | None:
    before = [value for at, value in rows if at <= time_s]
    return before[-1] if before else None


def test_a_series_has_a_row_where_it_changes_and_at_its_first_and_last_beat() -> None:
    log = SampleLog()
    for beat, value in enumerate([1, 1, 2, 2, 2]):
        log.add(float(beat), f'# HELP c\nc{{a="b"}} {value}\nconstant 7\n', {})

    assert told(log, 'c{a="b"}') == [(0.0, 1.0), (2.0, 2.0), (4.0, 2.0)]
    assert told(log, "constant") == [(0.0, 7.0), (4.0, 7.0)]


def test_the_scrapes_own_series_have_a_row_at_every_beat_answered_or_not() -> None:
    log = SampleLog()
    for beat, text in enumerate(["c 1\n", None, "c 1\n"]):
        log.add(float(beat), text, {UP: float(text is not None)})

    assert told(log, UP) == [(0.0, 1.0), (1.0, 0.0), (2.0, 1.0)]
    assert told(log, "c") == [(0.0, 1.0), (2.0, 1.0)]


def test_a_server_that_went_away_has_its_last_values_where_it_was_last_heard() -> None:
    log = SampleLog()
    for beat, text in enumerate(["c 1\n", "c 1\n", None, None]):
        log.add(float(beat), text, {})

    assert told(log, "c") == [(0.0, 1.0), (1.0, 1.0)]


def test_lines_that_are_no_samples_are_passed_over() -> None:
    log = SampleLog()
    log.add(0.0, 'good 1\ntorn\n{} \nworse one\nspaced{a="x y}"} 2 1700000000\nnothing NaN\n', {})

    names = set(log.samples().names)
    assert names == {"good", 'spaced{a="x y}"}', "nothing"}


def test_five_thousand_series_that_all_change_stay_within_bounds() -> None:
    log = SampleLog(max_rows=20_000)
    for beat in range(50):
        log.add(float(beat), "".join(f"s{number} {beat + number}\n" for number in range(500)), {})

    samples = log.samples()
    assert log.num_rows <= 20_000 + 500
    assert log.thinned == 2
    assert samples.times_s.max() == 49.0
    rows = told(log, "s7")
    assert all(value == time_s + 7 for time_s, value in rows)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=40))
def test_values_at_beats_that_are_kept_are_those_the_server_told(beats: list[list[int]]) -> None:
    log = SampleLog(max_rows=12)
    for beat, values in enumerate(beats):
        text = "".join(f"s{number} {value}\n" for number, value in enumerate(values))
        log.add(float(beat), text, {UP: 1.0})

    kept = [int(time_s) for time_s, _ in told(log, UP)]
    assert kept[0] == 0 and kept[-1] == len(beats) - 1
    for number in range(3):
        rows = told(log, f"s{number}")
        assert [value_at(rows, beat) for beat in kept] == [beats[beat][number] for beat in kept]


def test_labels_are_json_however_they_are_spelt(tmp_path: Path) -> None:
    log = SampleLog()
    log.add(0.5, 'c{tier="host",path="a\\"b\\\\c, d=\\"}"} 3\n', {UP: 1.0})
    write_metrics(tmp_path / "m.parquet", {"http://it's": log.samples()})

    rows = duckdb.execute(f"SELECT * FROM '{tmp_path}/m.parquet' WHERE name = 'c'").fetchall()
    assert [(time_s, server, name, value) for time_s, server, name, _, value in rows] == [
        (0.5, "http://it's", "c", 3.0)
    ]
    assert json.loads(rows[0][3]) == {"tier": "host", "path": 'a"b\\c, d="}'}
    assert duckdb.execute(
        f"SELECT labels->>'tier' FROM '{tmp_path}/m.parquet' WHERE name = 'c'"
    ).fetchone() == ("host",)


def test_the_file_of_a_run_has_the_rows_of_all_its_stretches(tmp_path: Path) -> None:
    for number in (0, 2):
        (tmp_path / f"segments/{number:04}").mkdir(parents=True)
        log = SampleLog()
        log.add(1.0, f"c {number}\n", {})
        write_metrics(tmp_path / f"segments/{number:04}/metrics.parquet", {"u": log.samples()})
    (tmp_path / "segments/0001").mkdir()

    join_metrics(tmp_path)

    found = duckdb.execute(f"SELECT segment, value FROM '{tmp_path}/metrics.parquet' ORDER BY 1").fetchall()
    assert found == [(0, 0.0), (2, 2.0)]


def test_a_run_without_any_has_no_file(tmp_path: Path) -> None:
    join_metrics(tmp_path)

    assert not (tmp_path / "metrics.parquet").exists()
