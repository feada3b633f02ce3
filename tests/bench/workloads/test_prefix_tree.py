from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.workloads.prefix_tree import PrefixTree
from prefixlab.bench.workloads.prompts import make_contents
from prefixlab.bench.workloads.sketch import Sketches
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import IdWording
from prefixlab.core.block_hash import as_token_ids
from tests.bench.workloads.random_sketches import any_sketches

WORDING = IdWording(Vocabulary.of_size(500, "for the test"))


def sketches_of(prompts: list[list[int]]) -> Sketches:
    tree = PrefixTree()
    for prompt in prompts:
        tree.add(as_token_ids(prompt))
    return Sketches(*tree.pieces(), np.ones(len(prompts), np.int64))


def common(one: list[int], other: list[int]) -> int:
    return next(
        (n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=15))
def test_it_finds_what_prompts_share_to_the_token(prompts: list[list[int]]) -> None:
    found = sketches_of(prompts)
    assert found.prompt_tokens.tolist() == [len(prompt) for prompt in prompts]
    assert found.shared_tokens.tolist() == [
        max((common(prompt, earlier) for earlier in prompts[:number]), default=0)
        for number, prompt in enumerate(prompts)
    ]


@settings(max_examples=60, deadline=None)
@given(any_sketches(sessions=True))
def test_it_is_the_way_back_from_making_prompts(asked: Sketches) -> None:
    assert asked.after is not None and asked.continues is not None
    tree = PrefixTree()
    for row, tokens in enumerate(make_contents(asked, WORDING, 1)):
        tree.add(tokens, behind=int(asked.after[row]) if asked.continues[row] else None)
    found = Sketches(*tree.pieces(), asked.output_tokens, after=asked.after, continues=asked.continues)
    assert found.prompt_tokens.tolist() == asked.prompt_tokens.tolist()
    assert found.shared_tokens.tolist() == asked.shared_tokens.tolist()


def test_a_prompt_of_unknown_tokens_shares_nothing() -> None:
    tree = PrefixTree()
    tree.add(as_token_ids([1, 2, 3]))
    tree.add_alone(3)
    tree.add_alone(3)
    tree.add(as_token_ids([1, 2, 4]))
    found = Sketches(*tree.pieces(), np.ones(4, np.int64))
    assert found.shared_tokens.tolist() == [0, 0, 0, 2]
    assert found.own_tokens.tolist() == [3, 3, 3, 3]
