from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.warm_cache import WarmCachePoint, make_point, shape_point
from prefixlab.bench.workloads.wording import ChatWording, IdWording, Wording, common_prefix
from prefixlab.core.errors import ConfigError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer

IDS = IdWording(Vocabulary.of_size(4096, "test"))
CHAT = ChatWording(ByteTokenizer())


def point(
    pct: int,
    *,
    wording: Wording = IDS,
    total_tokens: int = 200,
    num_prompts: int = 8,
    seed: int = 42,
    salt: int = 0,
) -> WarmCachePoint:
    shape = shape_point(
        pct, total_tokens, num_head_tokens=wording.num_head_tokens, num_tail_tokens=wording.num_tail_tokens
    )
    return make_point(wording, shape, num_prompts=num_prompts, seed=seed, probe_tokens=33, salt=salt)


@pytest.mark.parametrize(
    ("pct", "expected"),
    [(10, 6976), (25, 17472), (50, 34944), (75, 52480), (90, 62976), (95, 66496), (99, 69248)],
)
def test_the_oracle_at_70000_tokens_and_page_64(pct: int, expected: int) -> None:
    shape = shape_point(pct, 70_000)
    assert shape.expected_cached_tokens(64) == expected
    assert shape.prefix_len + shape.suffix_len == 70_000


@pytest.mark.parametrize("wording", [IDS, CHAT], ids=["ids", "chat"])
@settings(deadline=None, max_examples=40)
@given(
    pct=st.integers(0, 99),
    total=st.integers(60, 300),
    num_prompts=st.integers(1, 12),
    seed=st.integers(0, 2**32),
    salt=st.integers(0, 2**62),
)
def test_prompts_share_exactly_the_prefix_and_nothing_beyond_it(
    wording: Wording, pct: int, total: int, num_prompts: int, seed: int, salt: int
) -> None:
    total += wording.num_head_tokens + wording.num_tail_tokens + 100 * (wording is CHAT) * 20
    made = point(pct, wording=wording, total_tokens=total, num_prompts=num_prompts, seed=seed, salt=salt)
    shared = made.shape.num_shared_tokens
    everything = [prompt.token_ids for prompt in made.prompts]
    assert all(len(tokens) == total for tokens in everything)
    if made.warm_up is None:
        assert shared == 0
    else:
        everything.append(made.warm_up.token_ids)
    for left, right in itertools.combinations(everything, 2):
        assert common_prefix(left, right) == shared
    for tokens in everything:
        assert common_prefix(tokens, made.probe.token_ids) == wording.num_head_tokens


def test_the_warm_up_is_exactly_the_shared_prefix() -> None:
    made = point(50)
    assert made.warm_up is not None
    assert made.warm_up.token_ids.tolist() == made.prompts[0].token_ids[:100].tolist()


def test_nothing_is_warmed_where_nothing_is_shared() -> None:
    assert point(0).warm_up is None
    assert point(10, total_tokens=5).warm_up is None


def test_on_chat_the_template_is_part_of_the_length_and_of_the_prefix() -> None:
    made = point(50, wording=CHAT, total_tokens=400)
    assert len(made.prompts[0]) == 400
    assert made.shape.num_shared_tokens == 200
    head_only = point(0, wording=CHAT, total_tokens=400)
    assert head_only.shape.num_shared_tokens == CHAT.num_head_tokens
    assert head_only.warm_up is not None, "the head is shared by all, so the warm-up leaves it behind"


def test_a_points_prompts_depend_on_seed_and_percent_alone() -> None:
    same = point(25).prompts[3].token_ids.tolist()
    assert same == point(25).prompts[3].token_ids.tolist()
    assert same == point(25, num_prompts=8).prompts[3].token_ids.tolist()
    for other in (point(25, seed=43), point(26), point(25, salt=1)):
        assert common_prefix(other.prompts[3].token_ids, point(25).prompts[3].token_ids) < 3


def test_a_vocabulary_smaller_than_the_number_of_prompts_is_an_error_that_says_so() -> None:
    small = IdWording(Vocabulary.of_size(64, "test"))
    with pytest.raises(ConfigError, match=r"takes 66 usable token ids, and the vocabulary has 64"):
        point(50, wording=small, num_prompts=64)


@pytest.mark.parametrize("pct", [-1, 100])
def test_percentages_outside_0_to_99_are_refused(pct: int) -> None:
    with pytest.raises(ConfigError, match="0 to 99"):
        shape_point(pct, 1000)


def test_a_prompt_too_short_for_its_template_is_refused_and_the_template_named() -> None:
    with pytest.raises(ConfigError, match=r"no room for a suffix at 99 % \(the chat template takes"):
        point(99, wording=CHAT, total_tokens=300)
