from __future__ import annotations

from collections.abc import Callable

from prefixlab.bench.calibrate.compare import Comparison
from prefixlab.bench.calibrate.ladder import Judgement, climb, judge
from tests.bench.calibrate.helpers import comparison

GOOD = comparison(itl_p99_s=0.00009)
ERRING = comparison(itl_p99_s=0.00011)


def up_to(limit: int, past: Comparison) -> Callable[[int], Comparison]:
    return lambda streams: GOOD if streams <= limit else past


def climbed(
    measure: Callable[[int], Comparison], *, first: int = 10, most: int = 1000
) -> list[tuple[int, str]]:
    rungs = climb(measure, itl_s=0.01, first=first, growth=2.0, most=most)
    return [(rung.streams, rung.judgement.name) for rung in rungs]


def test_an_error_up_to_the_limit_is_within_and_above_it_is_not() -> None:
    assert judge(GOOD, 0.01) is Judgement.WITHIN
    assert judge(ERRING, 0.01) is Judgement.ERRED


def test_a_lost_request_is_an_error_of_the_client_whatever_the_server_did() -> None:
    assert judge(comparison(lost=1, late_p99_s=1.0), 0.01) is Judgement.ERRED


def test_a_server_half_an_itl_late_says_nothing_about_the_client() -> None:
    assert judge(comparison(late_p99_s=0.0051), 0.01) is Judgement.METRONOME
    assert judge(comparison(late_p99_s=0.0051, itl_p99_s=1.0), 0.01) is Judgement.METRONOME
    assert judge(comparison(late_p99_s=0.0049), 0.01) is Judgement.WITHIN


def test_the_ladder_ends_at_the_first_rung_past_the_limit() -> None:
    assert climbed(up_to(50, ERRING)) == [(10, "WITHIN"), (20, "WITHIN"), (40, "WITHIN"), (80, "ERRED")]


def test_the_ladder_ends_where_the_server_gives_out() -> None:
    assert climbed(up_to(15, comparison(late_p99_s=1.0))) == [(10, "WITHIN"), (20, "METRONOME")]


def test_the_ladder_ends_at_the_most_streams_there_may_be() -> None:
    assert climbed(up_to(10_000, ERRING), most=35) == [(10, "WITHIN"), (20, "WITHIN"), (35, "WITHIN")]


def test_the_first_rung_never_exceeds_the_most() -> None:
    assert climbed(up_to(10_000, ERRING), first=100, most=35) == [(35, "WITHIN")]


def test_a_hiccup_is_not_a_ceiling() -> None:
    answers = iter([GOOD, ERRING, GOOD, ERRING, ERRING])
    assert climbed(lambda _: next(answers)) == [(10, "WITHIN"), (20, "WITHIN"), (40, "ERRED")]


def test_steps_always_go_up() -> None:
    rungs = climb(up_to(4, ERRING), itl_s=0.01, first=1, growth=1.1, most=100)
    assert [rung.streams for rung in rungs] == [1, 2, 3, 4, 5]


def test_a_rung_says_what_rate_was_asked_for() -> None:
    [rung] = climb(up_to(0, ERRING), itl_s=0.02, first=100, growth=2.0, most=1000)
    assert rung.nominal_tokens_per_s == 5000
