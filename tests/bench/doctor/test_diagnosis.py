from __future__ import annotations

import msgspec
import pytest

from prefixlab.bench.doctor.diagnosis import Check, Diagnosis, Status, grade_of, grade_of_keys, is_below


def checks(*, cautions: int = 0, bad: int = 0, unknown: int = 0, voids: bool = False) -> tuple[Check, ...]:
    statuses = [Status.CAUTION] * cautions + [Status.BAD] * bad + [Status.UNKNOWN] * unknown + [Status.FINE]
    return tuple(
        Check(
            name=f"check {number}",
            status=status,
            figure="1",
            limit="2",
            distorts="x",
            remedy="y",
            voids=voids and status is Status.BAD,
        )
        for number, status in enumerate(statuses)
    )


@pytest.mark.parametrize(
    ("cautions", "bad", "grade"),
    [(0, 0, "A"), (1, 0, "B"), (3, 0, "B"), (4, 0, "C"), (0, 1, "C"), (9, 1, "C"), (0, 2, "F"), (9, 5, "F")],
)
def test_the_grade_follows_from_how_many_checks_are_not_fine(cautions: int, bad: int, grade: str) -> None:
    assert grade_of(checks(cautions=cautions, bad=bad)) == grade


def test_one_check_that_voids_every_figure_is_enough() -> None:
    assert grade_of(checks(bad=1, voids=True)) == "F"


def test_what_is_not_known_lowers_no_grade() -> None:
    assert grade_of(checks(unknown=20)) == "A"


@pytest.mark.parametrize(
    ("grade", "least", "below"), [("A", "B", False), ("B", "B", False), ("F", "C", True)]
)
def test_grades_have_an_order(grade: str, least: str, below: bool) -> None:
    assert is_below(grade, least) is below


@pytest.mark.parametrize(
    ("given", "page", "line"),
    [
        ({}, "doctor.txt", "trust: A — nothing against it"),
        ({"cautions": 2}, "doctor.txt", "trust: B — 2 cautions: check 0, check 1; see doctor.txt"),
        ({"cautions": 1, "bad": 1}, None, "trust: C — 1 bad: check 1; 1 caution: check 0"),
    ],
)
def test_one_line_says_grade_and_names(given: dict[str, int], page: str | None, line: str) -> None:
    assert str(Diagnosis(checks(**given), page)) == line


def test_keys_are_json_and_stay_as_they_are() -> None:
    keys = Diagnosis(checks(bad=1)).keys()
    assert msgspec.json.decode(msgspec.json.encode(keys)) == keys
    assert keys == {
        "grade": "C",
        "num_fine": 1,
        "num_caution": 0,
        "num_bad": 1,
        "num_unknown": 0,
        "checks": [
            {"name": "check 0", "status": "bad", "figure": "1", "limit": "2", "distorts": "x", "remedy": "y"},
            {
                "name": "check 1",
                "status": "fine",
                "figure": "1",
                "limit": "2",
                "distorts": "x",
                "remedy": "y",
            },
        ],
    }
    assert grade_of_keys({"doctor": keys}) == "C"
    assert grade_of_keys({}) is None
