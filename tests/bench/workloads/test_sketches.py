"""Whatever sketches say is shared, the prompts made from them share: to the token."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.workloads.prompts import (
    make_contents,
    make_probe,
    make_prompts,
    make_trial,
    shared_tokens,
)
from prefixlab.bench.workloads.sketch import NOBODY, Sketches
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import ChatWording, IdWording, common_prefix
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.bench.workloads.random_sketches import any_sketches

LARGE = IdWording(Vocabulary.of_size(4096, "for the test"))
CHAT = ChatWording(ByteTokenizer())


def pieces_of(sketches: Sketches) -> list[tuple[tuple[int, int], ...]]:
    """(key, size) of each request; negative keys told apart by request."""
    found = []
    for row in range(len(sketches)):
        here = slice(int(sketches.starts[row]), int(sketches.starts[row + 1]))
        keys, sizes = sketches.keys[here].tolist(), sketches.sizes[here].tolist()
        found.append(tuple(zip(keys, sizes, strict=True)))
    return found


class DictionaryTwin:
    """What `Trie` finds, one token after another: a token is known by all keys up to it and its place."""

    def __init__(self, sketches: Sketches) -> None:
        self.shared: list[int] = []
        self.repeats: list[bool] = []
        seen: set[tuple[object, ...]] = set()
        whole: set[object] = set()
        children: dict[object, list[object]] = {}
        for row, pieces in enumerate(pieces_of(sketches)):
            parent: tuple[object, ...] = ()
            if sketches.continues is not None and sketches.after is not None and sketches.continues[row]:
                parent = (("behind", int(sketches.after[row])),)
            tokens: list[tuple[object, ...]] = []
            for key, size in pieces:
                siblings = children.setdefault(parent, [])
                if key not in siblings:
                    siblings.append(key)
                parent = (*parent, key)
                tokens += [(parent, place) for place in range(size)]
            shared = 0
            while shared < len(tokens) and tokens[shared] in seen:
                shared += 1
            self.shared.append(shared)
            end = (parent, pieces[-1][1])
            self.repeats.append(end in whole)
            whole.add(end)
            seen.update(tokens)
        self.children = children


@settings(max_examples=200, deadline=None)
@given(sketches=any_sketches(sessions=False) | any_sketches(sessions=True))
def test_the_trie_is_what_a_dictionary_of_tokens_finds(sketches: Sketches) -> None:
    twin = DictionaryTwin(sketches)
    trie = sketches.trie
    assert trie.shared.tolist() == twin.shared
    assert trie.repeats.tolist() == twin.repeats
    assert sorted(trie.num_siblings.tolist()) == sorted(
        len(siblings) for siblings in twin.children.values() for _ in siblings
    )
    for row, pieces in enumerate(pieces_of(sketches)):
        parent: tuple[object, ...] = ()
        if sketches.continues is not None and sketches.after is not None and sketches.continues[row]:
            parent = (("behind", int(sketches.after[row])),)
        for place, (key, _) in enumerate(pieces):
            node = trie.nodes[sketches.starts[row] + place]
            assert trie.ranks[node] == twin.children[parent].index(key)
            parent = (*parent, key)


@settings(max_examples=150, deadline=None)
@given(sketches=any_sketches(), seed=st.integers(0, 2**40), salt=st.integers(0, 2**63))
def test_prompts_share_exactly_what_their_sketches_share(sketches: Sketches, seed: int, salt: int) -> None:
    contents = list(make_contents(sketches, LARGE, seed, salt=salt))
    assert [len(content) for content in contents] == sketches.prompt_tokens.tolist()
    for row, content in enumerate(contents):
        longest = max((common_prefix(content, other) for other in contents[:row]), default=0)
        assert longest == sketches.shared_tokens[row]


@settings(max_examples=60, deadline=None)
@given(sketches=any_sketches(low=24, high=40), seed=st.integers(0, 2**40))
def test_on_chat_too_its_template_counted_in(sketches: Sketches, seed: int) -> None:
    prompts = [prompt.token_ids for prompt in make_prompts(sketches, CHAT, seed)]
    assert [len(prompt) for prompt in prompts] == sketches.prompt_tokens.tolist()
    expected = shared_tokens(sketches, CHAT).tolist()
    for row, prompt in enumerate(prompts):
        assert max((common_prefix(prompt, other) for other in prompts[:row]), default=0) == expected[row]


@settings(max_examples=100, deadline=None)
@given(
    sketches=any_sketches(low=6, high=12, fewest_siblings=9, max_requests=30),
    vocab_size=st.integers(2, 5),
    seed=st.integers(0, 2**40),
)
def test_a_small_vocabulary_shares_that_much_and_no_more_than_it_takes_to_tell_prompts_apart(
    sketches: Sketches, vocab_size: int, seed: int
) -> None:
    wording = IdWording(Vocabulary.of_size(vocab_size, "for the test"))
    contents = list(make_contents(sketches, wording, seed))
    telling = 1
    while vocab_size**telling < sketches.trie.num_siblings.max():
        telling += 1
    ends_there = {(int(size), row) for row, size in enumerate(sketches.prompt_tokens)}
    for row, content in enumerate(contents):
        longest = max((common_prefix(content, other) for other in contents[:row]), default=0)
        exact = int(sketches.shared_tokens[row])
        assert exact <= longest < exact + telling or (longest, row) in ends_there


@settings(max_examples=60, deadline=None)
@given(sketches=any_sketches(sessions=True), count=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_the_first_requests_are_those_of_the_whole(sketches: Sketches, count: int, seed: int) -> None:
    cut = sketches.first(count)
    count = min(count, len(sketches))
    assert len(cut) == count
    assert cut.prompt_tokens.tolist() == sketches.prompt_tokens[:count].tolist()
    assert cut.shared_tokens.tolist() == sketches.shared_tokens[:count].tolist()
    whole = list(make_contents(sketches, LARGE, seed))
    for left, right in zip(make_contents(cut, LARGE, seed), whole[:count], strict=True):
        assert np.array_equal(left, right)


@settings(max_examples=60, deadline=None)
@given(sketches=any_sketches(), seed=st.integers(0, 2**40))
def test_a_probe_and_a_trial_begin_as_no_prompt_does(sketches: Sketches, seed: int) -> None:
    firsts = {int(content[0]) for content in make_contents(sketches, LARGE, seed)}
    assert int(make_probe(sketches, LARGE, 20, seed).token_ids[0]) not in firsts
    trial = make_trial(sketches, LARGE.vocabulary, seed)
    assert int(trial[0]) not in firsts and trial[1] == 4095


def test_what_continues_one_answer_parts_right_behind_it() -> None:
    after = np.array([NOBODY, 0, 0, 0])
    pieces = [[(-1, 8)], [(5, 4), (-2, 3)], [(5, 4), (-3, 3)], [(-4, 3)]]
    sketches = Sketches.of(pieces, [6, 1, 1, 1], after=after, continues=after == 0)
    assert sketches.prompt_tokens.tolist() == [8, 21, 21, 17]
    # The answer's last token is in the cache once somebody has continued it.
    assert sketches.shared_tokens.tolist() == [0, 13, 18, 14]
    contents = list(make_contents(sketches, LARGE, 1))
    assert common_prefix(contents[1], contents[2]) == 4
    assert common_prefix(contents[1], contents[3]) == 0


@pytest.mark.parametrize(
    ("pieces", "outputs", "complaint"),
    [
        ([[(1, 4)], []], [1, 1], "without a piece"),
        ([[(1, 0)]], [1], "no length"),
        ([[(1, 4)]], [0], "no length"),
    ],
)
def test_sketches_that_cannot_be_are_our_own_mistake(
    pieces: list[list[tuple[int, int]]], outputs: list[int], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        Sketches.of(pieces, outputs)


def test_a_piece_of_two_lengths_with_others_behind_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="two lengths"):
        _ = Sketches.of([[(1, 4), (2, 1)], [(1, 5), (3, 1)]], [1, 1]).trie


def test_optional_columns_are_cut_with_the_rest() -> None:
    every = {
        "offsets_s": np.arange(3.0),
        "after": np.array([NOBODY, 0, 1]),
        "delays_s": np.ones(3),
        "continues": np.array([False, True, True]),
        "session_ids": ["a", "a", "a"],
        "turns": np.arange(3),
    }
    sketches = Sketches.of([[(-1, 2)]] * 3, [1, 1, 1], **every)
    cut = sketches.first(2)
    assert all(len(getattr(cut, name)) == 2 for name in every)
    assert {field.name for field in fields(Sketches)} == {"starts", "keys", "sizes", "output_tokens", *every}
