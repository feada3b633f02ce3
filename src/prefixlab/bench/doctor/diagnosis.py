"""What the doctor says: checks, and the grade that follows from them. Plain data, and one pure rule.

    grade   cautions   bad
    A       none       none     the figures can be passed on
    B       1 to 3     none     they can, with what is said
    C       4 or more  none     only by somebody who has read the page
    C       any        one
    F       any        two or more, or one that voids every figure

Owns the words and the rule. What is looked at is the business of the files beside.

Invariant: what could not be told is said, and does not change the grade: nobody is punished for what a server
does not report.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GRADES = ("A", "B", "C", "F")
"""Best first."""
MOST_CAUTIONS_OF_B = 3


class Status(enum.Enum):
    FINE = "fine"
    CAUTION = "caution"
    BAD = "bad"
    UNKNOWN = "unknown"
    """The run does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the page.

    Attributes:
        figure, limit: what was found, and up to where it is fine; in words, with units.
        distorts: which figures it makes wrong, or would.
        remedy: what to do; empty where nothing need be done.
        voids: no figure of the run stands.
    """

    name: str
    status: Status
    figure: str
    limit: str
    distorts: str
    remedy: str = ""
    voids: bool = False


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks of one run.

    Attributes:
        page: the file that says all of it, beside the report; None where nothing is kept.
    """

    checks: tuple[Check, ...]
    page: str | None = None

    @property
    def grade(self) -> str:
        return grade_of(self.checks)

    def having(self, status: Status) -> list[Check]:
        return [check for check in self.checks if check.status is status]

    def __str__(self) -> str:
        """`trust: B — 2 cautions: prompt lengths, repeats; see doctor.txt`."""
        found = []
        for status, word in ((Status.BAD, "bad"), (Status.CAUTION, "caution")):
            if names := [check.name for check in self.having(status)]:
                number = f"{len(names)} {word}{'s' if status is Status.CAUTION and len(names) > 1 else ''}"
                found.append(f"{number}: {', '.join(names)}")
        where = f"; see {self.page}" if self.page and found else ""
        return f"trust: {self.grade} — {'; '.join(found) or 'nothing against it'}{where}"

    def keys(self) -> dict[str, Any]:
        """For result files."""
        return {
            "grade": self.grade,
            **{f"num_{status.value}": len(self.having(status)) for status in Status},
            "checks": [
                {
                    "name": check.name,
                    "status": check.status.value,
                    "figure": check.figure,
                    "limit": check.limit,
                    "distorts": check.distorts,
                    "remedy": check.remedy,
                }
                for check in self.checks
            ],
        }


def grade_of(checks: Sequence[Check]) -> str:
    """See the module."""
    num_bad = sum(check.status is Status.BAD for check in checks)
    num_cautions = sum(check.status is Status.CAUTION for check in checks)
    if num_bad > 1 or any(check.status is Status.BAD and check.voids for check in checks):
        return "F"
    if num_bad or num_cautions > MOST_CAUTIONS_OF_B:
        return "C"
    return "B" if num_cautions else "A"


def is_below(grade: str, least: str) -> bool:
    return GRADES.index(grade) > GRADES.index(least)


def by_limits(value: float, caution: float, bad: float = float("inf")) -> Status:
    """Fine up to `caution`, bad above `bad`."""
    if value > bad:
        return Status.BAD
    return Status.CAUTION if value > caution else Status.FINE


def grade_of_keys(keys: Mapping[str, Any]) -> str | None:
    """The grade in a result file; None where there is none."""
    doctor = keys.get("doctor")
    return doctor.get("grade") if isinstance(doctor, dict) else None
