"""The doctor's page: its text, its JSON, and the two files in a run's folder.

Owns their form.

Invariant: the grade in `doctor.txt`, in `doctor.json`, in the result's keys and on the screen is the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prefixlab.bench.doctor.checks import diagnose
from prefixlab.bench.doctor.diagnosis import Check, Diagnosis, Status
from prefixlab.bench.doctor.evidence import evidence_of
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.records.run_dir import RunDir

PAGE, DATA = "doctor.txt", "doctor.json"
_WORST_FIRST = (Status.BAD, Status.CAUTION, Status.UNKNOWN, Status.FINE)
_MEANING = {
    "A": "nothing speaks against these figures",
    "B": "these figures hold, with what is said below",
    "C": "read all of this before using these figures",
    "F": "do not use these figures",
}


def examined(result: PointResult, *, ignores_eos: bool | None) -> PointResult:
    """The result with its diagnosis."""
    return replace(result, diagnosis=diagnose(evidence_of(result, ignores_eos=ignores_eos)))


def keep_page(folder: RunDir, result: PointResult) -> PointResult:
    """Write both files, if there is a diagnosis; the result knows of them from then on."""
    if result.diagnosis is None:
        return result
    folder.write_text(PAGE, page_text(result.diagnosis))
    folder.write_json(DATA, result.diagnosis.keys())
    return replace(result, diagnosis=replace(result.diagnosis, page=PAGE))


def page_text(diagnosis: Diagnosis, name: str = "") -> str:
    """One line per check, the worst first; below it, where it is not fine, what to do."""
    grade = diagnosis.grade
    lines = [f"trust{f' in {name}' if name else ''}: {grade}, {_MEANING[grade]}", ""]
    width = max(len(check.name) for check in diagnosis.checks)
    for status in _WORST_FIRST:
        for check in diagnosis.having(status):
            lines += _check_lines(check, width)
    return "\n".join(lines) + "\n"


def _check_lines(check: Check, width: int) -> list[str]:
    lines = [f"{check.status.value:<8} {check.name:<{width}}  {check.figure} (limit: {check.limit})"]
    margin = " " * (len("caution") + width + 4)
    if check.status in (Status.CAUTION, Status.BAD):
        lines.append(f"{margin}affects: {check.distorts}")
    if check.status is not Status.FINE and check.remedy:
        lines.append(f"{margin}what to do: {check.remedy}")
    return lines


def page_keys(diagnosis: Diagnosis, *, path: str, name: str) -> dict[str, Any]:
    """For `prefixlab doctor --json`: of which run, and what."""
    return {"path": path, "name": name, **diagnosis.keys()}
