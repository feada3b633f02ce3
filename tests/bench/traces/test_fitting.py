"""Fitting keeps the sharing, and says all it did."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.traces.fitting import choose_requests, fit_trace
from prefixlab.bench.traces.trace import Trace
from prefixlab.core.errors import ConfigError
from tests.bench.traces.trace_files import a_trace, ids_of

SHARING = a_trace((40, [0, 1, 2]), (33, [0, 1, 3]), (40, [0, 1, 2]), (20, [9, 10]))


def in_sessions(trace: Trace) -> Trace:
    """Two sessions by turns, ten seconds of thought before each later turn."""
    rows = np.arange(len(trace))
    return replace(
        trace,
        session_ids=["ab"[row % 2] for row in rows],
        turns=rows // 2,
        think_s=np.where(rows < 2, np.nan, 10.0),
    )


def test_left_alone_a_trace_stays_as_it_is() -> None:
    fitted, fitting = fit_trace(SHARING)
    assert fitted.prompt_tokens.tolist() == SHARING.prompt_tokens.tolist()
    assert ids_of(fitted) == ids_of(SHARING)
    assert (fitted.notes, fitting.num_cut) == ((), 0)
    assert choose_requests(SHARING).notes == ()


def test_scaling_makes_smaller_blocks_and_keeps_the_sharing() -> None:
    fitted, fitting = fit_trace(a_trace((40, [0, 1, 2]), (33, [0, 1, 3])), length_scale=0.25)
    assert fitted.block_size == 4
    assert fitted.prompt_tokens.tolist() == [10, 8]
    assert fitted.output_tokens.tolist() == [1, 1]
    assert fitting.num_cut == 0
    assert fitted.sketches.shared_tokens.tolist() == [0, 8]
    assert fitted.notes == ("lengths and blocks scaled by 0.25: blocks of 4 tokens",)


def test_a_scale_may_be_any_fraction_that_leaves_blocks_whole() -> None:
    fitted, _ = fit_trace(SHARING, length_scale=1.5)
    assert fitted.block_size == 24
    assert fitted.prompt_tokens.tolist() == [60, 50, 60, 30]  # 33 · 1.5 is 48 of whole blocks and 1.5 of one
    assert fitted.sketches.shared_tokens.tolist() == [0, 48, 60, 0]


@pytest.mark.parametrize("scale", [0.3, 0.01])
def test_a_scale_that_tears_blocks_apart_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="--length-scale"):
        fit_trace(SHARING, length_scale=scale)


def test_without_blocks_any_scale_will_do() -> None:
    fitted, _ = fit_trace(a_trace((40, []), (1, []), block_size=1), length_scale=0.3)
    assert fitted.prompt_tokens.tolist() == [12, 1]
    assert fitted.block_size == 1
    assert fitted.notes == ("lengths scaled by 0.3",)


def test_a_part_that_has_no_id_stays_a_part_when_scaled() -> None:
    fitted, _ = fit_trace(a_trace((31, [0]), (31, [0, 5])), length_scale=0.25)
    assert fitted.prompt_tokens.tolist() == [7, 8]
    assert ids_of(fitted) == [[0], [0, 5]]


def test_cutting_takes_the_end_of_prompts_and_counts_what_it_cut() -> None:
    fitted, fitting = fit_trace(a_trace((40, [0, 1, 2]), (20, [0, 9])), max_len=30)
    assert fitting.num_cut == 1
    assert fitted.prompt_tokens.tolist() == [26, 20]
    assert ids_of(fitted) == [[0, 1], [0, 9]]
    assert fitted.notes == ("1 of 2 requests cut to 30 tokens",)


def test_output_is_cut_to_half_of_the_room_first() -> None:
    fitted, _ = fit_trace(a_trace((40, [0, 1, 2]), output=1000), max_len=30)
    assert (fitted.prompt_tokens.tolist(), fitted.output_tokens.tolist()) == ([15], [15])
    assert ids_of(fitted) == [[0]]


def test_outputs_are_bounded_and_prompts_outside_their_bounds_left_out() -> None:
    fitted, fitting = fit_trace(replace(SHARING, output_tokens=np.array([1, 5, 9, 13])), min_osl=4, max_osl=9)
    assert fitted.output_tokens.tolist() == [4, 5, 9, 9]
    assert fitting.num_outputs_changed == 2
    assert fitted.notes == ("2 outputs raised or cut to 4 … 9 tokens",)
    chosen = choose_requests(SHARING, min_isl=21, max_isl=39)
    assert chosen.prompt_tokens.tolist() == [33]
    assert ids_of(chosen) == [[0, 1, 3]]
    assert chosen.notes == ("3 requests with prompts outside 21 … 39 tokens left out",)


def test_a_window_begins_at_its_first_request() -> None:
    chosen = choose_requests(SHARING, slice_start_s=0.5, slice_duration_s=2.5)
    assert chosen.offsets_s.tolist() == [0, 1]
    assert ids_of(chosen) == [[0, 1, 3], [0, 1, 2]]
    assert chosen.notes == ("of 4 requests the 2 from 0.5 s to 3 s",)
    assert len(choose_requests(SHARING, slice_start_s=3.0)) == 1


def test_the_first_so_many_are_of_what_is_left() -> None:
    chosen = choose_requests(SHARING, slice_start_s=1.0, min_isl=30, num_requests=1)
    assert chosen.prompt_tokens.tolist() == [33]
    assert chosen.notes[-1] == "the first 1 of 2 requests"
    assert len(choose_requests(SHARING, num_requests=99)) == 4


def test_what_leaves_nothing_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"none of its 4 requests is left: .* 0 from 99 s"):
        choose_requests(SHARING, slice_start_s=99.0)
    with pytest.raises(ConfigError, match=r"none .*4 requests with prompts outside 50 … tokens"):
        choose_requests(SHARING, min_isl=50)


def test_options_about_what_a_trace_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no times .*--slice-start"):
        choose_requests(replace(SHARING, has_times=False), slice_duration_s=1.0)
    with pytest.raises(ConfigError, match=r"no times .*--speedup"):
        fit_trace(replace(SHARING, has_times=False), speedup=2.0)
    with pytest.raises(ConfigError, match=r"no sessions .*--agentic-max-turns"):
        choose_requests(SHARING, max_turns=1)


def test_a_speedup_of_two_is_twice_as_fast_thinking_too() -> None:
    fitted, fitting = fit_trace(in_sessions(SHARING), speedup=2.0)
    assert fitted.offsets_s.tolist() == [0, 0.5, 1, 1.5]
    np.testing.assert_array_equal(fitted.think_s, [np.nan, np.nan, 5, 5])
    assert fitting.speedup == 2
    assert fitted.notes == ("replayed 2 times as fast as recorded",)


def test_a_turn_whose_turn_before_is_left_out_has_no_time_to_think() -> None:
    chosen = choose_requests(in_sessions(SHARING), slice_start_s=1.0)
    assert chosen.session_ids == ["b", "a", "b"]
    assert chosen.turns is not None and chosen.turns.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(chosen.think_s, [np.nan, np.nan, 10])
    few = choose_requests(in_sessions(SHARING), max_turns=1)
    assert few.prompt_tokens.tolist() == [40, 33]
    assert few.notes == ("2 turns behind the first 1 of their session left out",)


requests = st.lists(
    st.tuples(st.integers(1, 200), st.integers(0, 2), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(requests, st.sampled_from([0.25, 0.5, 1, 1.5, 2]), st.integers(2, 300))
def test_what_was_shared_is_shared_as_far_as_it_reaches(
    shapes: list[tuple[int, int, int, bool]], scale: float, max_len: int
) -> None:
    made = []
    for length, a, b, last_has_id in shapes:
        chain = [a, 10 + 4 * a + b, *(1000 * (1 + 4 * a + b) + i for i in range(20))]
        made.append((length, chain[: -(-length // 16) if last_has_id else length // 16]))
    trace = a_trace(*made)
    fitted, fitting = fit_trace(trace, length_scale=scale, max_len=max_len)
    total = fitted.prompt_tokens + fitted.output_tokens
    assert (total <= max_len).all()
    assert (fitted.prompt_tokens >= 1).all() and (fitted.output_tokens >= 1).all()
    # Of each request as many ids as there were, or as blocks are left; and those the same.
    for before, after, tokens in zip(
        ids_of(trace), ids_of(fitted), fitted.prompt_tokens.tolist(), strict=True
    ):
        assert after == before[: min(len(before), -(-tokens // fitted.block_size))]
        assert len(after) >= tokens // fitted.block_size
    assert fitted.sketches.prompt_tokens.tolist() == fitted.prompt_tokens.tolist()
    assert fitting.num_cut == sum("cut to" in note for note in fitted.notes) * fitting.num_cut


@settings(deadline=None)
@given(st.integers(1, 30), st.randoms(use_true_random=False))
def test_requests_taken_keep_their_ids(count: int, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    trace = a_trace(*((40, rng.integers(0, 99, rng.integers(0, 5)).tolist()) for _ in range(count)))
    rows = rng.permutation(count)[: rng.integers(1, count + 1)]
    assert ids_of(trace.take(rows)) == [ids_of(trace)[row] for row in rows]
