from __future__ import annotations

from pathlib import Path

import pytest

from prefixlab.bench.records.line import encode
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.run_dir import RunDir, done_ids, free_name, settled
from prefixlab.bench.records.table import RecordTable
from prefixlab.core.errors import ConfigError
from tests.bench.helpers import ok_record

VERB = "bench serve"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


def unsent(request_id: str) -> Record:
    return Record(request_id, Outcome.UNSENT, intended_s=0.0)


def test_settings_are_there_before_anything_else_and_are_this_verbs(path: Path) -> None:
    with RunDir.create(path, {"verb": VERB, "x": 1}):
        pass
    with RunDir.open(path) as run:
        assert run.config_of(VERB) == {"verb": VERB, "x": 1}
        with pytest.raises(ConfigError, match="that is a run of bench serve, not of bench sweep"):
            run.config_of("bench sweep")


def test_records_of_all_stretches_are_read_torn_ends_left_out(path: Path) -> None:
    with RunDir.create(path, {"verb": VERB}) as run:
        first = run.begin_segment({"repeat": 0})
        line = encode(ok_record("b"))
        (first.folder / "records-0.jsonl").write_bytes(encode(ok_record("a")) + line[: len(line) // 2])
        second = run.begin_segment({"repeat": 0})
        (second.folder / "records-0.jsonl").write_bytes(encode(ok_record("b")))
        (second.folder / "records-1.jsonl").write_bytes(encode(unsent("c")))
        run.end_segment(second, {"health": "{}"})
    with RunDir.open(path) as run:
        segments = run.segments()
        assert [segment.about for segment in segments] == [{"repeat": 0}, {"repeat": 0, "health": "{}"}]
        tables = [segment.table() for segment in segments]
        assert [list(table.request_id) for table in tables] == [["a"], ["b", "c"]]
        assert done_ids(settled(tables)) == {"a", "b"}


def test_the_last_word_on_a_request_counts() -> None:
    tables = [
        RecordTable.of([unsent("a"), ok_record("b"), Record("c", Outcome.CANCELLED, 0.0)]),
        RecordTable.of([ok_record("a"), unsent("c")]),
    ]
    table = settled(tables)
    assert {r.request_id: r.outcome for r in table.to_records()} == {
        "a": Outcome.OK,
        "b": Outcome.OK,
        "c": Outcome.UNSENT,
    }
    assert len(settled([])) == 0


def test_two_processes_never_write_in_one_folder(path: Path) -> None:
    with RunDir.create(path, {"verb": VERB}), pytest.raises(ConfigError, match="being written by another"):
        RunDir.open(path)
    RunDir.open(path).close()


def test_a_finished_run_refuses_to_go_on_an_interrupted_one_does_not(path: Path) -> None:
    with RunDir.create(path, {"verb": VERB}) as run:
        run.write_json("summary.json", {"finished": False})
        assert not run.is_finished
    with RunDir.open(path) as run:
        run.write_json("summary.json", {"finished": True})
    with pytest.raises(ConfigError, match="that run is finished"):
        RunDir.open(path)
    RunDir.open(path, even_finished=True).close()


def test_a_folder_that_holds_something_is_not_written_into(path: Path, tmp_path: Path) -> None:
    RunDir.create(path, {}).close()
    with pytest.raises(ConfigError, match="is not empty"):
        RunDir.create(path, {})
    assert free_name(path) == path.with_name("one-2")
    RunDir.create_beside(path, {}).close()
    assert free_name(path) == path.with_name("one-3")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--run-dir"):
        RunDir.create(tmp_path / "file" / "run", {})


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        RunDir.open(tmp_path)
    (tmp_path / "config.json").write_text("{half")
    with RunDir.open(tmp_path) as run, pytest.raises(ConfigError, match="cannot be read"):
        run.config_of(VERB)


def test_a_file_is_there_whole_or_not_at_all(path: Path) -> None:
    with RunDir.create(path, {}) as run:
        run.write_text("report.txt", "one")
        run.write_text("report.txt", "two")
    assert (path / "report.txt").read_text() == "two"
    assert not list(path.glob("*.new"))


def test_a_stretch_that_was_cut_off_before_its_note_is_begun_again(path: Path) -> None:
    with RunDir.create(path, {}) as run:
        (path / "segments" / "0000").mkdir(parents=True)
        assert run.segments() == []
        assert run.begin_segment({}).number == 0


def test_what_the_client_lost_is_sent_again_and_what_the_server_failed_is_not() -> None:
    failed = [
        Record(kind.value, Outcome.FAILED, intended_s=0.0, last_s=1.0, failure=kind, error="x")
        for kind in (Failure.CLIENT, Failure.RESET)
    ]
    assert done_ids(RecordTable.of([ok_record("ok"), *failed])) == {"ok", Failure.RESET.value}
