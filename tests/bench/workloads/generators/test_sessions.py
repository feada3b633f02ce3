from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.config.dataset import LengthRange
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.generators.sessions import (
    SessionShape,
    ThinkTime,
    first_sessions,
    live_workload,
    recorded_workload,
    sketch_live,
    sketch_recorded,
)
from prefixlab.bench.workloads.prompts import make_contents
from prefixlab.bench.workloads.sketch import NOBODY, Sketches
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import IdWording, common_prefix
from prefixlab.core.errors import ConfigError
from prefixlab.core.hit_oracle import expected_cached_tokens

AT_ONCE = ThinkTime(0.0)
WORDING = IdWording(Vocabulary.of_size(30_000, "for the test"))


def shape(
    num_sessions: int = 3,
    num_turns: int = 4,
    first: int = 50,
    later: int = 20,
    output: int = 8,
    system: int = 0,
) -> SessionShape:
    fixed = (LengthRange(length, length) for length in (first, later, output))
    return SessionShape(num_sessions, num_turns, *fixed, system)


def hits(sketches: Sketches, page_size: int) -> int:
    columns = zip(sketches.shared_tokens.tolist(), sketches.prompt_tokens.tolist(), strict=True)
    return sum(expected_cached_tokens(shared, prompt, page_size) for shared, prompt in columns)


@pytest.mark.parametrize(("page_size", "cached"), [(1, 92_196), (64, 92_160)])
def test_ten_rounds_of_2048_tokens_and_one_of_output_hit_as_they_must(page_size: int, cached: int) -> None:
    sketches = sketch_live(shape(1, 10, 2048, 2048, 1), AT_ONCE)
    assert int(sketches.prompt_tokens.sum()) == 112_685
    assert hits(sketches, page_size) == cached
    assert round(92_196 / 112_685, 6) == 0.818175


def test_a_later_turn_is_only_what_is_new_and_waits_for_the_one_before() -> None:
    sketches = sketch_live(shape(2, 3, system=100), ThinkTime(2.0))
    assert sketches.after is not None and sketches.continues is not None and sketches.turns is not None
    assert sketches.after.tolist() == [NOBODY, 0, 1, NOBODY, 3, 4]
    assert sketches.continues.tolist() == [False, True, True] * 2
    assert sketches.turns.tolist() == [0, 1, 2] * 2
    assert sketches.delays_s is not None and sketches.delays_s.tolist() == [0, 2, 2] * 2
    assert list(sketches.session_ids or ()) == ["session-0"] * 3 + ["session-1"] * 3
    assert sketches.own_tokens.tolist() == [150, 20, 20] * 2
    assert sketches.prompt_tokens.tolist() == [150, 178, 206] * 2
    assert sketches.shared_tokens.tolist() == [0, 157, 185, 100, 157, 185]


@settings(max_examples=30, deadline=None)
@given(
    num_sessions=st.integers(1, 6),
    num_turns=st.integers(1, 5),
    system=st.integers(0, 20),
    output=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_what_is_sent_shares_to_the_token_what_the_sketches_say(
    num_sessions: int, num_turns: int, system: int, output: int, seed: int
) -> None:
    """Each turn against every earlier prompt and answer, as a cache that forgets nothing would find them."""
    ranges = LengthRange(1, 9), LengthRange(1, 9), LengthRange(output, output)
    sketches = sketch_live(SessionShape(num_sessions, num_turns, *ranges, system), AT_ONCE, seed)
    assert sketches.after is not None and sketches.continues is not None
    random = np.random.default_rng(seed)
    seen: list[np.ndarray] = []
    whole: list[np.ndarray] = []
    contents = list(make_contents(sketches, WORDING, seed))
    for row, new in enumerate(contents):
        before = int(sketches.after[row])
        prompt = np.concatenate((whole[before], new)) if sketches.continues[row] else new
        found = max((common_prefix(prompt, other) for other in seen), default=0)
        assert len(prompt) == sketches.prompt_tokens[row]
        assert found == sketches.shared_tokens[row]
        whole.append(np.concatenate((prompt, random.integers(40_000, 50_000, output, np.int32))))
        seen.append(whole[-1][:-1])  # of the last token of an answer keys and values are never computed


def test_more_sessions_begin_like_fewer_and_another_key_makes_others() -> None:
    drawn = LengthRange(1, 500)
    few = sketch_live(SessionShape(3, 4, drawn, drawn, drawn), ThinkTime(1.0, "exponential"), 7)
    more = sketch_live(SessionShape(9, 4, drawn, drawn, drawn), ThinkTime(1.0, "exponential"), 7)
    other = sketch_live(SessionShape(3, 4, drawn, drawn, drawn), ThinkTime(1.0, "exponential"), 8)
    assert few.sizes.tolist() != other.sizes.tolist()
    assert few.output_tokens.tolist() == more.output_tokens[:12].tolist()
    assert few.delays_s is not None and more.delays_s is not None
    assert few.delays_s.tolist() == more.delays_s[:12].tolist()


@pytest.mark.parametrize("distribution", ["constant", "exponential", "lognormal"])
def test_think_times_have_the_mean_asked_for(distribution: str) -> None:
    drawn = ThinkTime(3.0, distribution).draw(200_000, 1)
    assert drawn.mean() == pytest.approx(3.0, rel=0.02)
    assert (drawn > 0).all()
    assert (drawn.std() == 0) == (distribution == "constant")


def a_trace(**columns: object) -> Trace:
    """Two sessions, the rows of one between those of the other; blocks of 10 tokens."""
    ids = [[0, 1], [0, 5], [0, 1, 2, 3], [0, 5, 6, 7]]
    fields: dict[str, object] = {
        "name": "t.jsonl",
        "block_size": 10,
        "offsets_s": np.array([0.0, 1.0, 2.0, 3.0]),
        "prompt_tokens": np.array([25, 20, 47, 40]),
        "output_tokens": np.array([4, 5, 6, 7]),
        "starts": np.array([0, 2, 4, 8, 12]),
        "hash_ids": np.array([i for row in ids for i in row]),
        "session_ids": ["a", "b", "a", "b"],
        "turns": np.array([0, 0, 1, 1]),
        "think_s": np.array([np.nan, np.nan, 1.5, np.nan]),
        **columns,
    }
    return Trace(**fields)  # type: ignore[arg-type]


def test_recorded_sessions_keep_their_prompts_and_wait_as_long_as_their_users_did() -> None:
    sketches = sketch_recorded(first_sessions(a_trace()))
    assert list(sketches.session_ids or ()) == ["a", "a", "b", "b"]
    assert sketches.prompt_tokens.tolist() == [25, 47, 20, 40]
    assert sketches.output_tokens.tolist() == [4, 6, 5, 7]
    assert sketches.after is not None and sketches.after.tolist() == [NOBODY, 0, NOBODY, 2]
    assert sketches.delays_s is not None and sketches.delays_s.tolist() == [0, 1.5, 0, 0]
    assert sketches.continues is None and sketches.offsets_s is None
    assert sketches.shared_tokens.tolist() == [0, 20, 10, 20]


@pytest.mark.parametrize(("think", "delays"), [(ThinkTime(0.0), [0.0, 0.0]), (ThinkTime(9.0), [9.0, 9.0])])
def test_a_delay_of_ones_own_takes_the_place_of_the_recorded_ones(
    think: ThinkTime, delays: list[float]
) -> None:
    sketches = sketch_recorded(first_sessions(a_trace()), think)
    assert sketches.delays_s is not None and sketches.delays_s[1::2].tolist() == delays
    assert not sketches.delays_s[::2].any(), "the first turn is never delayed"


def test_so_many_sessions_of_so_many_turns_are_taken_and_turns_count_from_0() -> None:
    assert first_sessions(a_trace(), num_sessions=1).prompt_tokens.tolist() == [25, 47]
    assert first_sessions(a_trace(), num_turns=1).prompt_tokens.tolist() == [25, 20]
    late = first_sessions(a_trace(turns=np.array([7, 3, 9, 4])))
    assert late.turns is not None and late.turns.tolist() == [0, 1, 0, 1]
    unnumbered = first_sessions(a_trace(turns=None))
    assert unnumbered.prompt_tokens.tolist() == [25, 47, 20, 40]


def test_a_trace_without_sessions_is_refused_and_one_without_think_times_says_so() -> None:
    with pytest.raises(ConfigError, match=r"t\.jsonl knows no sessions"):
        first_sessions(a_trace(session_ids=None))
    notes = recorded_workload(first_sessions(a_trace(think_s=None))).notes
    assert any("does not say how long users thought" in note for note in notes)
    assert any(
        "as long as was recorded" in note for note in recorded_workload(first_sessions(a_trace())).notes
    )


def test_the_notes_say_what_is_sent() -> None:
    (lengths, think) = live_workload(shape(16, 5, system=1000), ThinkTime(2.5, "lognormal")).notes
    assert lengths == (
        "16 sessions of 5 turns: first prompts of 1,000 that all share, and 50 tokens, then 20 more each, "
        "behind what the server answered (8 tokens)"
    )
    assert think == "think time of 2.5 s, lognormal before each later turn"
