from __future__ import annotations

import csv
import tempfile
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings

from prefixlab.bench.records import store
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.store import read_parquet, write_csv, write_parquet
from prefixlab.bench.records.table import RecordTable
from prefixlab.core.errors import ConfigError
from tests.bench.helpers import ok_record
from tests.bench.records.strategies import record_lists

FAILED = Record(
    "f",
    Outcome.FAILED,
    intended_s=1.0,
    sent_s=1.5,
    last_s=2.0,
    failure=Failure.HTTP_STATUS,
    http_status=503,
    error='it said "no", twice',
)


@given(record_lists)
@settings(deadline=None, max_examples=10)
def test_parquet_gives_back_the_records_that_were_written(records: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it's.parquet"
        write_parquet(path, RecordTable.of(records))
        assert read_parquet([path]).to_records() == records


def test_arrivals_keep_their_order_over_many_stretches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ARRIVALS_AT_ONCE", 5000)
    rng = np.random.default_rng(0)
    records = [
        ok_record(
            f"r{i}",
            arrivals_s=np.cumsum(rng.exponential(1.0, length)).tolist(),
            counts=rng.integers(1, 9, length).tolist(),
        )
        for i, length in enumerate(rng.integers(0, 20, 2500).tolist())
    ]
    records[-1] = replace(records[-1], worker="the only one named")
    write_parquet(tmp_path / "a.parquet", RecordTable.of(records))
    assert read_parquet([tmp_path / "a.parquet"]).to_records() == records


def test_a_stretch_never_tears_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ARRIVALS_AT_ONCE", 4)
    table = RecordTable.of(
        [ok_record(f"r{i}", arrivals_s=[1.0] * n) for i, n in enumerate([9, 0, 2, 2, 1, 0, 4])]
    )
    stretches = [stretch.num_arrivals.tolist() for stretch in store._stretches(table)]
    assert [length for lengths in stretches for length in lengths] == [9, 0, 2, 2, 1, 0, 4]
    assert all(sum(lengths) <= 4 or len(lengths) == 1 for lengths in stretches)


def test_several_files_are_read_as_one_table(tmp_path: Path) -> None:
    for name in "ab":
        write_parquet(tmp_path / f"{name}.parquet", RecordTable.of([ok_record(name), FAILED]))
    table = read_parquet([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert list(table.request_id) == ["a", "f", "b", "f"]
    assert dict(table.errors) == {1: FAILED.error, 3: FAILED.error}


def test_sql_over_run_directories_finds_latencies_in_milliseconds_and_nulls(tmp_path: Path) -> None:
    for name, first_s in (("a", 0.1), ("b", 0.3)):
        (tmp_path / name).mkdir()
        record = ok_record(name, arrivals_s=[first_s, 1.0], counts=[1, 3])
        write_parquet(tmp_path / name / "requests.parquet", RecordTable.of([record, FAILED]))
    with duckdb.connect() as database:
        found = database.execute(
            "SELECT median(ttft_ms), count(ttft_ms), count(num_cached_tokens), sum(output_tokens), "
            f"sum(list_sum(arrival_counts)) FROM '{tmp_path}/*/requests.parquet'"
        ).fetchone()
    assert found == (pytest.approx(200.0), 2, 0, 8, 8)


def test_csv_has_one_line_per_request_with_scalars_and_latencies(tmp_path: Path) -> None:
    good = ok_record("a", sent_s=0.5, arrivals_s=[1.0, 1.5, 2.0], planned_prompt_tokens=7)
    write_csv(tmp_path / "a.csv", RecordTable.of([good, FAILED]))
    with (tmp_path / "a.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["request_id"], first["outcome"], first["prompt_tokens"]) == ("a", "ok", "7")
    assert (first["ttft_ms"], first["tpot_ms"], first["e2el_from_intent_ms"]) == ("500.0", "500.0", "2000.0")
    assert (second["error"], second["failure"], second["http_status"]) == (FAILED.error, "http_status", "503")
    assert second["ttft_ms"] == second["num_cached_tokens"] == ""
    assert "arrivals_s" not in first


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_text("not one")
    with duckdb.connect() as database:
        database.execute(f"COPY (SELECT 1 AS x) TO '{tmp_path}/other.parquet' (FORMAT parquet)")
    for name in ("no.parquet", "gone.parquet", "other.parquet"):
        with pytest.raises(ConfigError, match=name):
            read_parquet([tmp_path / name])
    with pytest.raises(ConfigError, match="nowhere"):
        write_parquet(tmp_path / "nowhere" / "a.parquet", RecordTable.of([]))
