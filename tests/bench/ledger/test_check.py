from __future__ import annotations

from dataclasses import replace

from prefixlab.bench.ledger.check import Verdict, check_cache, delivery_notes, first_failure
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.records.table import as_table
from tests.bench.helpers import ok_record


def answered(number: int, cached: int | None, expected: int | None = 64, **fields: int) -> Record:
    return ok_record(
        f"r{number}",
        planned_prompt_tokens=100,
        num_expected_cached_tokens=expected,
        num_cached_tokens=cached,
        **fields,
    )


def test_what_was_expected_of_every_request_is_consistent() -> None:
    check = check_cache([answered(0, 64), answered(1, 64)])
    assert check.verdict is Verdict.CONSISTENT
    assert (check.expected_cached_tokens, check.cached_tokens, check.prompt_tokens) == (128, 128, 200)
    assert check.hit_rate == check.expected_hit_rate == 0.64
    assert check.detail == ""


def test_one_silent_answer_makes_the_total_unknown_and_not_smaller() -> None:
    check = check_cache([answered(0, 64), answered(1, None)])
    assert check.verdict is Verdict.NOT_REPORTED
    assert check.cached_tokens is None
    assert check.hit_rate is None
    assert "1 of 2" in check.detail


def test_less_and_more_are_named_with_an_example() -> None:
    less = check_cache([answered(0, 64), answered(1, 48)])
    assert less.verdict is Verdict.LESS
    assert "r1 reported 48 cached tokens instead of 64" in less.detail
    assert check_cache([answered(0, 80)]).verdict is Verdict.MORE


def test_two_mistakes_do_not_cancel_out() -> None:
    check = check_cache([answered(0, 48), answered(1, 80)])
    assert check.cached_tokens == check.expected_cached_tokens
    assert check.verdict is Verdict.LESS


def test_without_a_page_size_nothing_is_claimed() -> None:
    check = check_cache([answered(0, 64, expected=None)])
    assert check.verdict is Verdict.UNCHECKED
    assert (check.expected_cached_tokens, check.cached_tokens, check.hit_rate) == (None, 64, 0.64)
    assert check.words == "not checked: page size unknown" and "--page-size" in check.note


def test_measured_is_all_that_was_reported_and_the_verdict_of_what_could_be_checked() -> None:
    check = check_cache([answered(0, 16, expected=16), answered(1, 64, expected=None)])
    assert check.words == "consistent (1 of 2 requests checked)"
    assert (check.expected_cached_tokens, check.cached_tokens, check.prompt_tokens) == (16, 80, 200)
    assert check.checked_cached_tokens == 16
    assert (check.hit_rate, check.expected_hit_rate) == (0.4, 0.16)
    less = check_cache([answered(0, 64, expected=None), answered(1, 48)])
    assert "1 of 1 requests hit less than expected, e.g. r1 reported 48" in less.detail


def test_failed_requests_are_not_part_of_the_ledger() -> None:
    lost = replace(answered(1, None), outcome=Outcome.FAILED, error="HTTP 503")
    check = check_cache([answered(0, 64), lost])
    assert check.verdict is Verdict.CONSISTENT
    assert check.prompt_tokens == 100
    assert check_cache([lost]).verdict is Verdict.NOTHING_FINISHED


def test_a_server_that_counts_other_prompt_tokens_is_named() -> None:
    check = check_cache([answered(0, 48, num_prompt_tokens=103)])
    assert "the server counted 103 prompt tokens, not 100" in check.detail


def test_failures_and_odd_lengths_are_noted() -> None:
    short = ok_record("short", planned_output_tokens=8)
    lost = Record("lost", Outcome.FAILED, intended_s=0.0, error="HTTP 503: full")
    guessed = ok_record("guessed", planned_output_tokens=1, counts_estimated=True, num_prompt_tokens=9)
    notes = delivery_notes([short, lost, guessed], ignore_eos=True)
    assert any("1 instead of 8" in note for note in notes)
    assert any("1 of 3 requests failed, first: HTTP 503: full" in note for note in notes)
    assert any("estimate" in note for note in notes)
    assert not any("instead of" in note for note in delivery_notes([short], ignore_eos=False))


def test_answers_without_any_counts_are_told_from_those_with_a_total_alone() -> None:
    total = ok_record("total", planned_output_tokens=1, counts_estimated=True, num_prompt_tokens=9)
    silent = ok_record("silent", planned_output_tokens=1, counts_estimated=True)
    notes = delivery_notes([total, silent, silent], ignore_eos=False)
    assert any("2 of 3 answers named no counts" in note for note in notes)
    assert any("1 of 3 answers told only their total" in note for note in notes)


def test_outputs_beyond_their_length_name_the_likely_cause() -> None:
    endless = ok_record("endless", arrivals_s=[2.0, 3.0], last_s=3.0, planned_output_tokens=1)
    (note,) = delivery_notes([endless], ignore_eos=False)
    assert "1 of 1 outputs are longer than asked for" in note and "max_tokens" in note


def test_prompts_of_another_length_than_planned_are_told() -> None:
    def told(counted: int, planned: int) -> list[str]:
        record = ok_record(planned_output_tokens=1, planned_prompt_tokens=planned, num_prompt_tokens=counted)
        return delivery_notes([record], ignore_eos=True)

    assert told(335, 64) == [
        "prompt lengths: 64.0 tokens asked for on average, 335.0 counted by the server; 1 of 1 differ, by "
        "271 at most"
    ]
    assert "1 of 1 differ, by 1 at most" in told(63, 64)[0]
    assert told(64, 64) == []
    assert told(29, 0) == [], "nobody planned the length of a file's prompts"


def test_the_first_failure_comes_with_a_remedy() -> None:
    lost = Record("lost", Outcome.FAILED, intended_s=0.0, error="Token id 31557 is out of vocabulary")
    words = first_failure([lost])
    assert words is not None and "--vocab-size" in words
    assert words == first_failure(as_table([lost]))
