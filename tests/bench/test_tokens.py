from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.bench.workloads.tokens import TokenStream, Vocabulary, with_first
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.errors import ConfigError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer

SMALL = Vocabulary.of_size(10, "test", avoid=[0, 9])


def test_the_stream_of_a_key_never_changes() -> None:
    """Prompts are compared across machines and versions: these are the ids, for good."""
    stream = TokenStream(Vocabulary.of_size(32_000, "test"), 42, 90)
    assert stream.draw(5).tolist() == [17952, 5034, 6208, 17153, 30968]
    assert TokenStream(SMALL, 42).distinct(8, "x").tolist() == [4, 1, 2, 5, 8, 7, 6, 3]


def test_avoided_ids_are_never_drawn_and_all_others_are() -> None:
    assert set(TokenStream(SMALL, 1).draw(1000).tolist()) == set(range(1, 9))


def test_draws_are_spread_evenly() -> None:
    counts = np.bincount(TokenStream(SMALL, 2).draw(80_000), minlength=10)[1:9]
    # 10,000 expected each, standard deviation 94: seven of them away would be no accident.
    assert np.abs(counts - 10_000).max() < 7 * 94


@given(key=st.lists(st.integers(0, 2**62), max_size=4), count=st.integers(0, 8))
def test_distinct_ids_are_distinct_and_usable(key: list[int], count: int) -> None:
    ids = TokenStream(SMALL, *key).distinct(count, "x").tolist()
    assert len(set(ids)) == count
    assert set(ids) <= set(range(1, 9))


def test_a_vocabulary_smaller_than_the_number_of_prompts_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match=r"prompts must all differ .* takes 9 usable token ids, .* has 8"):
        TokenStream(SMALL, 1).distinct(9, "prompts")


def test_streams_of_different_keys_differ() -> None:
    wide = Vocabulary.of_size(32_000, "test")
    draws = {TokenStream(wide, *key).draw(8).tobytes() for key in [(1,), (2,), (1, 0), (1, 1), (0, 1)]}
    assert len(draws) == 5


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="negative"):
        TokenStream(SMALL, -1)


def test_special_ids_of_a_tokenizer_are_left_out() -> None:
    tokenizer = ByteTokenizer()
    ids = set(Vocabulary.of_tokenizer(tokenizer).ids.tolist())
    assert not ids & tokenizer.eos_token_ids
    assert all(tokenizer.decode([token]) for token in ids)
    assert len(ids) > 4000


def test_a_model_with_fewer_ids_than_its_tokenizer_is_respected() -> None:
    assert Vocabulary.of_size(100, "x").below(50).ids.max() == 49


def test_setting_the_first_token_leaves_the_source_alone() -> None:
    source = as_token_ids([1, 2, 3])
    assert with_first(9, source).tolist() == [9, 2, 3]
    assert source.tolist() == [1, 2, 3]
    assert with_first(9, as_token_ids([])).tolist() == []
