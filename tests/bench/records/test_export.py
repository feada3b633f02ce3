from __future__ import annotations

from pathlib import Path

import pytest

from prefixlab.bench.records import export
from prefixlab.bench.records.export import join_lines, write_lines
from prefixlab.bench.records.line import encode
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record

RECORDS = [
    ok_record("a", sent_s=0.25, intended_s=0.125, arrivals_s=(1.0, 1.5), counts=(1, 3), num_prompt_tokens=9),
    Record('b\'s "x", y\n', Outcome.FAILED, 1.0, sent_s=1.0, failure=Failure.RESET, error="it broke"),
    Record("c", Outcome.UNSENT, 2.0),
]


@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_a_table_is_written_as_its_lines_were(
    tmp_path: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ROWS_AT_ONCE", rows_at_once)
    write_lines(tmp_path / "all", RecordTable.of(RECORDS))
    assert (tmp_path / "all").read_bytes() == b"".join(map(encode, RECORDS))


def test_files_of_lines_become_one(tmp_path: Path) -> None:
    for name, record in zip("abc", RECORDS, strict=True):
        (tmp_path / name).write_bytes(encode(record))
    join_lines(tmp_path / "joined", [tmp_path / name for name in "abc"])
    assert (tmp_path / "joined").read_bytes() == b"".join(map(encode, RECORDS))
