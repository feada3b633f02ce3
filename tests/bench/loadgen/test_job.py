from __future__ import annotations

from pathlib import Path

import pytest

from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.loadgen.plan import Planned
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


def as_text(request: TargetRequest) -> bytes:
    return (request.prompt_text or "").encode()


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
