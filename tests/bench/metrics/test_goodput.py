from __future__ import annotations

import pytest

from prefixlab.bench.metrics.goodput import Objectives
from prefixlab.bench.metrics.summary import summarise
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.core.errors import ConfigError
from tests.bench.helpers import ok_record

FAST = ok_record("fast", arrivals_s=[0.1, 0.2, 0.3])
SLOW_FIRST = ok_record("slow first", arrivals_s=[0.9, 1.0, 1.1])
SLOW_LATER = ok_record("slow later", arrivals_s=[0.1, 0.6, 1.1])
LATE = ok_record("late", intended_s=0.0, sent_s=1.0, arrivals_s=[1.1, 1.2, 1.3])
SINGLE = ok_record("single", arrivals_s=[0.2])
FAILED = Record("f", Outcome.FAILED, 0.0, sent_s=0.0, last_s=0.1, error="x", failure=Failure.RESET)
UNSENT = Record("u", Outcome.UNSENT, 0.0)


def good(words: str, *records: Record, open_loop: bool = False) -> int:
    metrics = summarise(
        records, len(records), open_loop=open_loop, objectives=Objectives.parse(words.split())
    )
    assert metrics.goodput is not None
    return metrics.goodput.num_good


def test_a_good_request_meets_every_objective() -> None:
    assert good("ttft:500", FAST, SLOW_FIRST, SLOW_LATER) == 2
    assert good("tpot:200", FAST, SLOW_FIRST, SLOW_LATER) == 2
    assert good("ttft:500 tpot:200", FAST, SLOW_FIRST, SLOW_LATER) == 1
    assert good("e2el:1000", FAST, SLOW_FIRST, SLOW_LATER) == 1


def test_a_single_token_has_no_tpot_and_so_meets_any() -> None:
    assert good("ttft:500 tpot:1", SINGLE) == 1


def test_in_open_loop_waiting_to_be_sent_counts() -> None:
    assert good("ttft:500", LATE) == 1
    assert good("ttft:500", LATE, open_loop=True) == 0


def test_failed_requests_are_bad_and_unsent_ones_are_neither() -> None:
    metrics = summarise([FAST, FAILED, UNSENT], 3, objectives=Objectives.parse(["ttft:500"]))
    assert metrics.goodput is not None
    assert (metrics.goodput.num_good, metrics.goodput.num_ended, metrics.goodput.share) == (1, 2, 0.5)
    assert metrics.goodput.request_goodput == pytest.approx(1 / metrics.duration_s)


def test_where_nothing_ended_there_is_no_share() -> None:
    metrics = summarise([UNSENT], 1, objectives=Objectives.parse(["ttft:500"]))
    assert metrics.goodput is not None
    assert metrics.goodput.share is None
    assert metrics.goodput.request_goodput is None


def test_objectives_are_written_as_vllms_users_know_them() -> None:
    objectives = Objectives.parse(["ttft:500", "tpot:50.5", "e2el:3000"])
    assert objectives == Objectives(ttft_s=0.5, tpot_s=0.0505, e2e_s=3.0)
    assert str(objectives) == "ttft:500 tpot:50.5 e2el:3000"


@pytest.mark.parametrize(
    "words", [["itl:5"], ["ttft"], ["ttft:fast"], ["ttft:-1"], ["ttft:nan"], ["ttft:1", "ttft:2"], []]
)
def test_any_other_objective_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--goodput"):
        Objectives.parse(words)
