from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.loadgen.outgoing import WriterState
from prefixlab.bench.loadgen.plan import Planned
from prefixlab.bench.loadgen.sockets.plan_file import PlanRows
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.errors import ConfigError
from prefixlab.core.target import TargetRequest


def a_plan(num_requests: int) -> list[Planned]:
    return [
        Planned(
            TargetRequest(f"r{i}", 5 + i, prompt_text="x" * i),
            num_prompt_tokens=i,
            num_expected_cached_tokens=None if i % 2 else 0,
            offset_s=0.25 * i,
            session_id="s" if i else None,
            turn=i or None,
        )
        for i in range(num_requests)
    ]


class AsText:
    """A writer of requests that are their text, with a mark where they ask for names of tokens."""

    state = WriterState(b"head", "model", b"id", names_requests=True)

    def __call__(self, request: TargetRequest, *, names_tokens: bool = False) -> bytes:
        return (request.prompt_text or "").encode() + b"!" * names_tokens


as_text = AsText()


@pytest.mark.parametrize("num_requests", [0, 1, 7])
def test_a_plan_laid_down_is_read_back_row_by_row(tmp_path: Path, num_requests: int) -> None:
    plan = a_plan(num_requests)
    assert jobs.write_plan(tmp_path, iter(plan), as_text) == num_requests
    wire = (tmp_path / jobs.PLAN_BYTES).read_bytes()
    rows = jobs.read_plan(tmp_path)
    got = [wire[row["start"] : row["start"] + row["length"]] for row in rows]
    assert got == [as_text(planned.request) for planned in plan]
    assert rows["due_ns"].tolist() == [250_000_000 * i for i in range(num_requests)]
    assert rows["max_new_tokens"].tolist() == [5 + i for i in range(num_requests)]


@pytest.mark.parametrize("num_requests", [0, 1, 7])
def test_templates_are_the_unsent_records_of_the_plan(tmp_path: Path, num_requests: int) -> None:
    plan = a_plan(num_requests)
    jobs.write_plan(tmp_path, plan, as_text)
    templates = jobs.read_templates(tmp_path)
    assert list(templates) == [planned.unsent(planned.offset_s) for planned in plan]
    assert list(templates[1::2]) == [planned.unsent(planned.offset_s) for planned in plan[1::2]]
    if num_requests:
        assert templates[-1].request_id == f"r{num_requests - 1}"


def sessions_of_two(num_sessions: int) -> list[Planned]:
    """First turns, then second turns, each session's last."""
    first = [Planned(_ids(f"a{i}", i), 2, session_id=f"s{i}") for i in range(num_sessions)]
    second = [
        Planned(_ids(f"b{i}", i), 2, session_id=f"s{i}", after=i, continues=True, delay_s=0.5)
        for i in range(num_sessions)
    ]
    return [*first, *second]


def _ids(request_id: str, number: int) -> TargetRequest:
    ids = as_token_ids([number, number + 1])
    return TargetRequest(request_id, 3, prompt_token_ids=ids, prompt_text=request_id, extra_body={"x": 1})


def test_what_is_continued_asks_for_names_and_is_kept_as_a_request_too(tmp_path: Path) -> None:
    alone = Planned(TargetRequest("alone", 3, prompt_text="alone"), 1, session_id="other")
    jobs.write_plan(tmp_path, [*sessions_of_two(2), alone], as_text)
    job = Job(host="h", port=1, dialect="chat", path="/")
    rows = PlanRows(tmp_path, 0, job)
    assert rows.after.tolist() == [-1, -1, 0, 1, -1]
    assert rows.delay_ns.tolist() == [0, 0, 500_000_000, 500_000_000, 0]
    assert rows.continues.tolist() == [False, False, True, True, False]
    wire = [bytes(rows.payload(row)) for row in range(5)]
    assert wire == [b"a0!", b"a1!", b"", b"", b"alone"]
    for row, planned in enumerate(sessions_of_two(2)):
        kept, given = rows.request(row), planned.request
        assert kept.prompt_token_ids is not None and given.prompt_token_ids is not None
        assert kept.prompt_token_ids.tolist() == given.prompt_token_ids.tolist()
        assert (kept.request_id, kept.extra_body) == (given.request_id, given.extra_body)
    rows.close()
    assert jobs.read_writer(tmp_path) == AsText.state


def test_how_to_write_requests_is_for_no_other_users_eyes_and_goes_with_the_plan(tmp_path: Path) -> None:
    jobs.write_plan(tmp_path, sessions_of_two(1), as_text)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("plan.*")}
    assert (modes["plan.writer"], modes["plan.bin"]) == (0o600, 0o600)
    assert set(modes) == {"plan.writer", "plan.bin", "plan.npy"}, "what was put aside is gone"
    jobs.forget_plan(tmp_path)
    assert jobs.read_writer(tmp_path) is None
    jobs.write_plan(tmp_path, a_plan(3), as_text)
    assert jobs.read_writer(tmp_path) is None, "where nothing goes on, no key is needed"


def test_what_is_continued_must_be_of_a_session(tmp_path: Path) -> None:
    plan = [replace(planned, session_id=None) for planned in sessions_of_two(1)]
    with pytest.raises(ConfigError, match="request 0 of the plan is continued by another"):
        jobs.write_plan(tmp_path, plan, as_text)


@pytest.mark.parametrize("workers", [[0], [1], [0, 1]])
def test_whole_sessions_are_carried_elsewhere_with_all_their_workers_need(
    tmp_path: Path, workers: list[int]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    jobs.write_plan(here, sessions_of_two(3), as_text)
    jobs.write_job(here, Job(host="h", port=1, dialect="chat", path="/", num_workers=2))
    for name, data in jobs.share(here, workers):
        with (there / name).open("ab") as file:
            file.write(data)
    assert jobs.read_writer(there) == AsText.state
    for worker in workers:
        rows = PlanRows(there, worker, jobs.read_job(there))
        firsts = [number for number in range(3) if number % 2 == worker]
        assert [rows.index(row) for row in range(len(rows))] == [*firsts, *(3 + first for first in firsts)]
        assert rows.after.tolist() == [-1] * len(firsts) + list(range(len(firsts)))
        for row, first in enumerate(firsts):
            assert bytes(rows.payload(row)) == b"a%d!" % first
            assert rows.request(len(firsts) + row).request_id == f"b{first}"
        rows.close()


def test_a_job_and_its_start_are_read_back(tmp_path: Path) -> None:
    job = Job(host="::1", port=80, dialect="chat", path="/v1/x", max_concurrency=(2, 1), num_workers=2)
    jobs.write_job(tmp_path, job)
    assert jobs.read_job(tmp_path) == job
    assert jobs.read_start(tmp_path) is None
    jobs.write_start(tmp_path, 12)
    assert jobs.read_start(tmp_path) == 12


def test_a_folder_without_a_job_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        jobs.read_job(tmp_path)


@pytest.mark.parametrize("piece_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize("num_requests", [0, 1, 7])
@pytest.mark.parametrize(("workers", "num_workers"), [([0], 1), ([0, 1], 2), ([1], 3), ([0, 2], 3)])
def test_a_share_carried_elsewhere_gives_its_workers_the_same_rows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: list[int],
    num_workers: int,
    num_requests: int,
    piece_bytes: int,
) -> None:
    monkeypatch.setattr(jobs, "_PIECE_BYTES", piece_bytes)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    jobs.write_plan(here, a_plan(num_requests), as_text)
    jobs.write_job(here, Job(host="h", port=1, dialect="chat", path="/", num_workers=num_workers))
    for name, data in jobs.share(here, workers):
        with (there / name).open("ab") as file:
            file.write(data)
    assert jobs.read_job(there) == jobs.read_job(here)
    for worker in workers:
        got, expected = (PlanRows(folder, worker, jobs.read_job(folder)) for folder in (there, here))
        assert got.due_ns.tolist() == expected.due_ns.tolist()
        for row in range(len(expected)):
            assert bytes(got.payload(row)) == bytes(expected.payload(row))
        got.close()
        expected.close()
        mine = slice(worker, None, num_workers)
        assert list(jobs.read_templates(there)[mine]) == list(jobs.read_templates(here)[mine])
    own = sum(
        len(as_text(planned.request))
        for worker in workers
        for planned in a_plan(num_requests)[worker::num_workers]
    )
    assert (there / jobs.PLAN_BYTES).stat().st_size == own, "and nothing of the others"
