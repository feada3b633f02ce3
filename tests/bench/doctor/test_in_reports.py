"""The doctor's word wherever a point is shown."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from prefixlab.bench.doctor.page import examined, page_text
from prefixlab.bench.report.points.block import point_block
from prefixlab.bench.report.points.keys import result_keys
from prefixlab.bench.report.points.side_by_side import write_csv
from prefixlab.bench.runs.files import as_text, sweep_text
from tests.bench.doctor.patients import a_result, healthy_client

WORD = "trust: B — 1 caution: clock steps"


@pytest.mark.parametrize("style", ["vllm", "table"])
def test_one_line_of_a_points_report(style: str) -> None:
    result = examined(a_result(health=healthy_client(num_clock_steps=1)), ignores_eos=True)
    assert as_text(result, style).rstrip().endswith(WORD)


def test_a_point_that_nobody_examined_says_nothing() -> None:
    assert "trust" not in point_block(a_result())
    assert result_keys(a_result())["doctor"] is None


def test_a_column_of_a_sweeps_tables(tmp_path: Path) -> None:
    results = [examined(a_result(), ignores_eos=True)]
    assert "trust" in sweep_text(results, width=200)
    write_csv(tmp_path / "points.csv", results)
    with (tmp_path / "points.csv").open(newline="") as file:
        assert [row["trust"] for row in csv.DictReader(file)] == ["A"]


def test_the_page_has_a_line_per_check_the_worst_first() -> None:
    diagnosis = examined(a_result(health=healthy_client(num_clock_steps=1)), ignores_eos=True).diagnosis
    assert diagnosis is not None
    page = page_text(diagnosis, "runs/x").splitlines()
    assert page[0] == "trust in runs/x: B, these figures hold, with what is said below"
    assert page[2].startswith("caution  clock steps")
    assert page[3].split(": ")[0].strip() == "affects" and page[4].split(": ")[0].strip() == "what to do"
    text = "\n".join(page)
    assert text.count("affects: ") == 1, "what is unknown, or fine, makes nothing wrong"
    words = [line.split()[0] for line in page[2:] if line and not line.startswith(" ")]
    assert len(words) == len(diagnosis.checks)
    assert words == sorted(words, key=["bad", "caution", "unknown", "fine"].index)
