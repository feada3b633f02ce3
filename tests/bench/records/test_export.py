from __future__ import annotations

import csv
from pathlib import Path

import duckdb

from prefixlab.bench.records.export import convert_lines, join_lines, write_lines
from prefixlab.bench.records.line import encode
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record

RECORDS = [
    ok_record("a", sent_s=0.25, intended_s=0.125, arrivals_s=(1.0, 1.5), counts=(1, 3), num_prompt_tokens=9),
    Record('b\'s "x", y\n', Outcome.FAILED, 1.0, sent_s=1.0, failure=Failure.RESET, error="it broke"),
    Record("c", Outcome.UNSENT, 2.0),
]


def converted(folder: Path, records: list[Record]) -> Path:
    """A folder whose name has a quote in it, as folders may."""
    folder = folder / "it's"
    folder.mkdir()
    lines = folder / "requests.jsonl"
    lines.write_bytes(b"".join(map(encode, records)))
    convert_lines(lines, parquet=folder / "r.parquet", csv=folder / "r.csv")
    return folder


def test_parquet_holds_every_column_of_a_line_and_the_two_everybody_asks_for(tmp_path: Path) -> None:
    folder = converted(tmp_path, RECORDS)
    with duckdb.connect() as database:
        query = database.execute("SELECT * FROM read_parquet(?)", [str(folder / "r.parquet")])
        names = [column[0] for column in query.description or []]
        rows = [dict(zip(names, row, strict=True)) for row in query.fetchall()]
    assert [row["id"] for row in rows] == [record.request_id for record in RECORDS]
    first = rows[0]
    assert (first["ttft_ns"], first["e2e_ns"]) == (750_000_000, 1_250_000_000)
    assert (first["counts"], first["output_tokens"], first["prompt_tokens"]) == ([1, 3], 4, 9)
    assert (first["retries"], first["kernel_stamps"], first["segment"]) == (0, False, 0)
    assert (rows[1]["failure"], rows[1]["error"], rows[1]["ttft_ns"]) == ("reset", "it broke", None)
    assert (rows[2]["outcome"], rows[2]["sent_ns"]) == ("unsent", None)


def test_csv_holds_one_value_a_cell(tmp_path: Path) -> None:
    folder = converted(tmp_path, RECORDS)
    with (folder / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [record.request_id for record in RECORDS]
    assert "arrivals_ns" not in rows[0] and rows[0]["ttft_ns"] == "750000000"


def test_every_run_has_the_same_columns_whatever_happened_in_it(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = converted(tmp_path / "one", RECORDS), converted(tmp_path / "two", [])
    both = [str(one / "r.parquet"), str(two / "r.parquet")]
    with duckdb.connect() as database:
        assert database.execute("SELECT count(*) FROM read_parquet(?)", [both]).fetchall() == [(3,)]


def test_a_table_is_written_as_its_lines_were(tmp_path: Path) -> None:
    write_lines(tmp_path / "all", RecordTable.of(RECORDS))
    assert (tmp_path / "all").read_bytes() == b"".join(map(encode, RECORDS))
    (tmp_path / "part").write_bytes(encode(RECORDS[0]))
    join_lines(tmp_path / "joined", [tmp_path / "part", tmp_path / "part"])
    assert (tmp_path / "joined").read_bytes() == 2 * encode(RECORDS[0])
