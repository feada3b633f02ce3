from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.config.dataset import LengthRange
from prefixlab.bench.workloads import prompts as making
from prefixlab.bench.workloads.generators.random import RandomShape, sketch_random
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import (
    ChatWording,
    IdWording,
    Prompt,
    Wording,
    common_prefix,
)
from prefixlab.bench.workloads.words import WORDS, TextWording, WordWording
from prefixlab.core.errors import ConfigError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer

VOCABULARY = Vocabulary.of_size(32_000, "for the test")


def shape(
    num_prompts: int = 20,
    inputs: tuple[int, int] = (40, 40),
    outputs: tuple[int, int] = (8, 8),
    prefix: int = 0,
) -> RandomShape:
    return RandomShape(num_prompts, LengthRange(*inputs), LengthRange(*outputs), prefix)


def make_prompts(wording: Wording, wanted: RandomShape, *key: int, salt: int = 0) -> Iterator[Prompt]:
    return making.make_prompts(sketch_random(wanted, *key), wording, *key, salt=salt)


def num_telling_tokens(vocabulary: Vocabulary, num_prompts: int) -> int:
    count = 1
    while len(vocabulary) ** count < num_prompts:
        count += 1
    return count


@settings(max_examples=40, deadline=None)
@given(
    vocab_size=st.integers(2, 60),
    num_prompts=st.integers(1, 40),
    low=st.integers(8, 20),
    spread=st.integers(0, 10),
    prefix=st.integers(0, 9),
    seed=st.integers(0, 2**40),
)
def test_prompts_share_the_prefix_and_are_told_apart_right_behind_it(
    vocab_size: int, num_prompts: int, low: int, spread: int, prefix: int, seed: int
) -> None:
    vocabulary = Vocabulary.of_size(vocab_size, "for the test")
    wanted = shape(num_prompts, (low, low + spread), prefix=prefix)
    prompts = [p.token_ids for p in make_prompts(IdWording(vocabulary), wanted, seed)]
    assert [len(prompt) for prompt in prompts] == sketch_random(wanted, seed).prompt_tokens.tolist()
    telling = num_telling_tokens(vocabulary, num_prompts)
    for i, left in enumerate(prompts):
        for right in prompts[:i]:
            assert prefix <= common_prefix(left, right) < prefix + telling


def test_where_there_are_enough_ids_every_first_token_differs() -> None:
    firsts = [int(p.token_ids[0]) for p in make_prompts(IdWording(VOCABULARY), shape(5_000), 1)]
    assert len(set(firsts)) == 5_000
    many = [p.token_ids[:2].tolist() for p in make_prompts(IdWording(VOCABULARY), shape(33_000, (2, 2)), 1)]
    assert len({tuple(pair) for pair in many}) == 33_000


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short = [p.token_ids for p in make_prompts(IdWording(VOCABULARY), shape(300, (5, 9)), 1)]
    long = [p.token_ids for p in make_prompts(IdWording(VOCABULARY), shape(600, (5, 9)), 1)]
    assert all(np.array_equal(left, right) for left, right in zip(short, long, strict=False))


def test_another_key_makes_other_prompts_and_a_salt_other_tokens_of_the_same_lengths() -> None:
    def prompts(*key: int, salt: int = 0) -> list[list[int]]:
        made = make_prompts(IdWording(VOCABULARY), shape(10, (5, 50)), *key, salt=salt)
        return [p.token_ids.tolist() for p in made]

    assert prompts(1, 2) == prompts(1, 2)
    assert not any(left[0] == right[0] for left, right in zip(prompts(1, 2), prompts(1, 3), strict=True))
    assert prompts(1, salt=5) != prompts(1)
    assert [len(p) for p in prompts(1, salt=5)] == [len(p) for p in prompts(1)]


def test_lengths_are_drawn_evenly_from_the_whole_interval_both_ends_included() -> None:
    sketches = sketch_random(shape(100_000, (3, 7), (1, 2), prefix=10), 1)
    assert set(sketches.prompt_tokens.tolist()) == {13, 14, 15, 16, 17}
    counts = np.bincount(sketches.prompt_tokens)[13:]
    assert counts == pytest.approx(np.full(5, 20_000), rel=0.03)
    assert set(sketches.output_tokens.tolist()) == {1, 2}


@pytest.mark.parametrize("prefix", [0, 6])
def test_a_probe_begins_as_no_prompt_does(prefix: int) -> None:
    wording = IdWording(Vocabulary.of_size(52, "for the test"))
    for seed in range(30):
        wanted = shape(50, (9, 9), prefix=prefix)
        probe = making.make_probe(sketch_random(wanted, seed), wording, 64, seed).token_ids
        assert len(probe) == 64
        assert all(p.token_ids[0] != probe[0] for p in make_prompts(wording, wanted, seed))


def test_special_ids_are_never_drawn() -> None:
    vocabulary = Vocabulary.of_size(50, "for the test", avoid={0, 7})
    prompts = make_prompts(IdWording(vocabulary), shape(40, (50, 50)), 1)
    assert not {0, 7} & {token for p in prompts for token in p.token_ids.tolist()}


def test_on_chat_lengths_are_the_servers_template_included() -> None:
    wording = ChatWording(ByteTokenizer())
    wanted = shape(5, (60, 80), prefix=wording.num_head_tokens + 4)
    prompts = list(make_prompts(wording, wanted, 3))
    assert [len(p) for p in prompts] == sketch_random(wanted, 3).prompt_tokens.tolist()
    shared = making.shared_tokens(sketch_random(wanted, 3), wording).tolist()
    assert shared == [0, *[wording.num_head_tokens + 4] * 4]
    assert common_prefix(prompts[0].token_ids, prompts[1].token_ids) == wording.num_head_tokens + 4


def test_prompts_too_short_to_differ_are_refused_and_a_template_is_named() -> None:
    wording = ChatWording(ByteTokenizer())
    with pytest.raises(ConfigError, match="of them a chat template's"):
        list(make_prompts(wording, shape(5, (5, 5)), 1))
    tiny = Vocabulary.of_size(2, "for the test")
    with pytest.raises(ConfigError, match="to tell them apart takes 3"):
        list(make_prompts(IdWording(tiny), shape(5, (2, 2)), 1))
    with pytest.raises(ConfigError, match="cannot differ"):
        list(make_prompts(IdWording(Vocabulary.of_size(1, "for the test")), shape(2), 1))


def test_without_a_tokenizer_text_is_words_that_are_all_different() -> None:
    assert len(set(WORDS)) == len(WORDS)
    prompts = [p.text for p in make_prompts(WordWording(), shape(1000, (5, 5)), 1)]
    assert len(set(prompts)) == 1000
    assert all(text is not None and len(text.split()) == 5 for text in prompts)


def test_text_is_what_the_tokenizer_makes_of_the_tokens() -> None:
    tokenizer = ByteTokenizer()
    wording = TextWording(tokenizer, Vocabulary.of_size(128, "ASCII"))
    (prompt,) = make_prompts(wording, shape(1, (30, 30)), 1)
    assert prompt.text == tokenizer.decode(prompt.token_ids.tolist())
