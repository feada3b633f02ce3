"""Token and page arithmetic of admission, as tables."""

from __future__ import annotations

import numpy as np
import pytest

from prefixlab.scheduler.admission import RatioRule, TokenBudget, is_length_certain, num_pages_at_end
from prefixlab.scheduler.config import SchedulerConfig
from tests.scheduler.harness import make_request


@pytest.mark.parametrize(
    ("conservativeness", "initial"), [(1.0, 0.7), (0.5, 0.35), (1.5, 1.0), (100.0, 1.0), (0.0, 0.0)]
)
def test_the_ratio_starts_at_seven_tenths_of_the_conservativeness_at_most_one(
    conservativeness: float, initial: float
) -> None:
    rule = RatioRule.from_conservativeness(conservativeness)
    assert rule.initial == pytest.approx(initial)
    assert rule.floor == pytest.approx(0.14 * initial)


def test_the_ratio_sinks_in_a_line_to_its_floor_over_600_decode_steps() -> None:
    rule = RatioRule.from_conservativeness(1.0)
    ratio = rule.initial
    seen = [ratio]
    for _ in range(700):
        ratio = rule.after_decode(ratio)
        seen.append(ratio)
    assert seen[300] == pytest.approx((rule.initial + rule.floor) / 2)
    assert seen[599] > rule.floor
    assert seen[600] == pytest.approx(rule.floor)
    assert seen[700] == rule.floor


@pytest.mark.parametrize(
    ("num_output", "max_new", "num_requests", "expected"),
    [(100, 999, 5, 0.2), (990, 999, 5, 1.0), (0, 399, 2, 0.1)],
)
def test_after_a_retraction_the_ratio_is_what_the_others_have_used_and_a_margin(
    num_output: int, max_new: int, num_requests: int, expected: float
) -> None:
    rule = RatioRule.from_conservativeness(1.0)
    assert rule.after_retraction(num_output, max_new, num_requests) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("num_tokens", "num_left", "certain", "ratio", "page_size", "expected"),
    [
        (10, 8, True, 0.5, 4, 5),  # 10 + 8 - 1 = 17 places
        (10, 7, True, 0.5, 4, 4),  # the last token's KV needs no place: 16
        (10, 8, False, 0.5, 4, 4),  # half of 8 expected: 13
        (10, 8, False, 0.0, 4, 3),  # at least the next token: 10
        (12, 8, False, 0.0, 4, 3),  # whose KV is not computed before the one after it
        (10, 100_000, True, 1.0, 1, 10 + 4096 - 1),  # nobody is expected to use more than 4096
        (10, 100_000, False, 0.5, 1, 10 + 2048 - 1),
        (0, 0, False, 0.5, 4, 0),  # a free row
    ],
)
def test_a_request_is_expected_to_need_pages_for_its_tokens_and_a_part_of_its_output(
    num_tokens: int, num_left: int, certain: bool, ratio: float, page_size: int, expected: int
) -> None:
    assert num_pages_at_end(num_tokens, num_left, certain, ratio, page_size) == expected
    rows = num_pages_at_end(
        np.array([num_tokens, 0], dtype=np.int32),
        np.array([num_left, 0], dtype=np.int32),
        np.array([certain, False]),
        ratio,
        page_size,
    )
    assert rows.tolist() == [expected, 0]


def test_a_length_is_certain_when_neither_an_id_nor_a_string_can_stop_the_request() -> None:
    assert is_length_certain(make_request("a", 4))
    assert not is_length_certain(make_request("a", 4, stop_token_ids=[2]))
    assert not is_length_certain(make_request("a", 4, stop=("\n",)))


def budget(*, chunk: int = 8, prefill: int = 20, page_size: int = 4) -> TokenBudget:
    return TokenBudget(SchedulerConfig(chunked_prefill_size=chunk, max_prefill_tokens=prefill), page_size)


@pytest.mark.parametrize(
    ("chunk", "page_size", "num_tokens", "expected"),
    [
        (8, 4, 8, 8),
        (8, 4, 9, 8),
        (8, 4, 7, 7),  # a prompt's last piece need not end on a page
        (11, 4, 100, 8),  # others do
        (11, 4, 11, 11),
        (100, 4, 100, 20),  # max_prefill_tokens
        (100, 8, 100, 16),
        (-1, 4, 19, 19),
        (-1, 4, 21, 21),  # whole prompts: one larger than the budget runs alone
    ],
)
def test_a_piece_is_as_long_as_chunk_and_step_allow_and_ends_on_a_page(
    chunk: int, page_size: int, num_tokens: int, expected: int
) -> None:
    assert budget(chunk=chunk, page_size=page_size).piece(num_tokens) == expected


def test_one_prompt_at_a_time_is_split() -> None:
    tokens = budget()
    tokens.spend(8, is_last_piece=False)
    assert tokens.piece(9) == 0
    assert tokens.piece(8) == 8


def test_after_the_last_piece_of_a_prompt_the_next_may_be_split() -> None:
    tokens = budget()
    tokens.spend(8, is_last_piece=True)
    assert tokens.piece(9) == 8


def test_what_was_spent_is_gone() -> None:
    tokens = budget()
    tokens.spend(8, is_last_piece=True)
    tokens.spend(8, is_last_piece=True)
    assert tokens.piece(100) == 4
    assert tokens.piece(3) == 3
    tokens.spend(4, is_last_piece=True)
    assert tokens.is_spent
    assert tokens.piece(1) == 0


def test_a_whole_prompt_larger_than_what_is_left_waits_for_a_step_of_its_own() -> None:
    tokens = budget(chunk=-1)
    tokens.spend(5, is_last_piece=True)
    assert tokens.piece(16) == 0
    assert tokens.piece(15) == 15
