from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.workloads.tokens import TokenStream, Vocabulary
from prefixlab.bench.workloads.wording import ChatWording, IdWording, common_prefix
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.errors import ConfigError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
CHAT = ChatWording(TOKENIZER)


class PairMerging(ByteTokenizer):
    """As a BPE tokenizer may: some words next to one another become something else."""

    def __init__(self, fusing: Sequence[int]) -> None:
        super().__init__()
        self._fusing = set(fusing)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for token in super().encode(text):
            if ids and ids[-1] in self._fusing and token in self._fusing:
                ids[-1] = 1
            else:
                ids.append(token)
        return ids


class Trimming(ByteTokenizer):
    """A template that does something to the text."""

    def apply_chat_template(self, messages: Sequence[dict[str, object]]) -> str:
        return super().apply_chat_template([{**m, "content": str(m["content"]).strip()} for m in messages])


class NoWords(ByteTokenizer):
    """Every text is bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def test_ids_are_sent_as_they_are() -> None:
    wording = IdWording(Vocabulary.of_size(100, "test"))
    prompt = wording.prompt(as_token_ids([3, 4]))
    request = prompt.request("r", 5, chat=True, ignore_eos=True, extra_body={})
    assert request.prompt_token_ids is not None and request.prompt_token_ids.tolist() == [3, 4]
    assert request.messages is None


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 300))
def test_chat_text_becomes_exactly_the_intended_tokens(seed: int, count: int) -> None:
    content = TokenStream(CHAT.vocabulary, seed).draw(count)
    prompt = CHAT.prompt(content)
    assert prompt.text is not None
    seen = TOKENIZER.encode(TOKENIZER.apply_chat_template([{"role": "user", "content": prompt.text}]))
    assert seen == prompt.token_ids.tolist()
    head, tail = CHAT.num_head_tokens, CHAT.num_tail_tokens
    assert prompt.token_ids[head : len(prompt) - tail].tolist() == content.tolist()


def test_the_template_around_the_content_is_known() -> None:
    empty = TOKENIZER.encode(TOKENIZER.apply_chat_template([{"role": "user", "content": ""}]))
    assert CHAT.num_head_tokens + CHAT.num_tail_tokens == len(empty)
    assert CHAT.num_head_tokens > 0


def test_chat_goes_as_one_user_message() -> None:
    request = CHAT.prompt(CHAT.vocabulary.ids[:3]).request(
        "r", 5, chat=True, ignore_eos=True, extra_body={"a": 1}
    )
    assert request.prompt_token_ids is None
    assert request.messages is not None and request.messages[0]["role"] == "user"
    assert request.extra_body == {"a": 1}


def test_words_that_fuse_with_others_are_left_out() -> None:
    fusing = set(range(300, 1800))
    used = set(ChatWording(PairMerging(sorted(fusing))).vocabulary.ids.tolist())
    assert len(used & fusing) < 300
    assert len(used - fusing) > 1000


def test_a_template_that_changes_the_text_is_an_error_that_says_where() -> None:
    with pytest.raises(ConfigError, match=r"does not survive the tokenizer: token \d+ of \d+ .* use an API"):
        ChatWording(Trimming()).prompt(CHAT.vocabulary.ids[:4])


def test_a_tokenizer_without_words_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match="no words that stay whole"):
        ChatWording(NoWords())


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_common_prefix_agrees_with_counting(left: list[int], right: list[int]) -> None:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    assert common_prefix(np.array(left, np.int32), np.array(right, np.int32)) == count
