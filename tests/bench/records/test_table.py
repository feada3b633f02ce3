from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.records import reading
from prefixlab.bench.records.line import decode, encode
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.records.table import RecordTable
from prefixlab.core.errors import ConfigError
from tests.bench.helpers import ok_record
from tests.bench.records.strategies import record_lists

few = settings(deadline=None, max_examples=40)


def write(path: Path, records: list[Record]) -> Path:
    path.write_bytes(b"".join(map(encode, records)))
    return path


@given(record_lists)
@few
def test_a_table_gives_back_the_records_it_was_made_of(records: list[Record]) -> None:
    for record in records:
        record.check()
    assert RecordTable.of(records).to_records() == records


@given(record_lists)
@few
def test_a_line_gives_back_its_record(records: list[Record]) -> None:
    assert [decode(encode(record)) for record in records] == records


@given(st.lists(record_lists, max_size=3))
@few
def test_reading_files_of_lines_gives_all_their_records(files: list[list[Record]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [write(Path(folder) / f"{i}.jsonl", records) for i, records in enumerate(files)]
        assert RecordTable.read(paths).to_records() == [r for records in files for r in records]


@given(st.lists(record_lists, max_size=3))
@few
def test_tables_join_and_a_selection_keeps_whole_rows(parts: list[list[Record]]) -> None:
    records = [record for part in parts for record in part]
    table = RecordTable.concat([RecordTable.of(part) for part in parts])
    assert table.to_records() == records
    mask = np.arange(len(records)) % 2 == 0
    assert table.select(mask).to_records() == records[::2]


@given(record_lists)
@few
def test_derived_columns_agree_with_the_records(records: list[Record]) -> None:
    table = RecordTable.of(records)
    assert table.num_output_tokens.tolist() == [r.num_output_tokens for r in records]
    assert table.prompt_tokens.tolist() == [r.prompt_tokens for r in records]
    assert table.num_arrivals.tolist() == [len(r.arrivals_s) for r in records]
    assert table.ok.tolist() == [r.outcome is Outcome.OK for r in records]
    for column, place in ((table.first_arrival_s, 0), (table.last_arrival_s, -1)):
        got = [None if np.isnan(t) else t for t in column.tolist()]
        assert got == [r.arrivals_s[place] if r.arrivals_s else None for r in records]


def test_more_lines_than_are_read_at_once_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BYTES_AT_ONCE", 300)
    records = [ok_record(f"r{i}", arrivals_s=[i + 1.0], intended_s=float(i)) for i in range(10)]
    assert RecordTable.read([write(tmp_path / "a.jsonl", records)]).to_records() == records


def test_a_torn_last_line_is_left_out_and_a_whole_one_without_newline_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [ok_record("a"), ok_record("b")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert RecordTable.read([path]).request_id == ["a", "b"]
    for cut in range(2, len(encode(ok_record("b")))):
        path.write_bytes(whole[:-cut])
        assert RecordTable.read([path]).request_id == ["a"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"not json\n", "is not a record"),
        (b"\n", "is not a record"),
        (b'{"v":1,"id":"x","outcome":"ok","intended_ns":0,"colour":"red"}\n', "colour"),
        (b'{"v":9,"id":"x","outcome":"ok","intended_ns":0}\n', "version 9"),
        (b'{"v":1,"id":"x","outcome":"fine","intended_ns":0}\n', "fine"),
        (b'{"v":1,"id":"x","outcome":"ok","intended_ns":0,"failure":"bad luck"}\n', "bad luck"),
        (b'{"v":1,"id":"x","outcome":"ok","intended_ns":0,"arrivals_ns":[1],"counts":[1,2]}\n', "2 counts"),
    ],
)
def test_a_line_that_is_no_record_is_named_by_file_and_line(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(encode(ok_record("a")) + line + encode(ok_record("b")))
    with pytest.raises(ConfigError, match=r"a\.jsonl:2 ") as caught:
        RecordTable.read([path])
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.jsonl"):
        RecordTable.read([tmp_path / "gone.jsonl"])


def test_a_line_leaves_out_what_is_none_or_default() -> None:
    line = encode(ok_record("a", arrivals_s=[1.0, 1.25]))
    assert b"null" not in line
    assert b"counts" not in line
    assert b'"arrivals_ns":[1000000000,250000000]' in line
