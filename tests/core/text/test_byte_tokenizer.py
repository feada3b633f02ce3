"""The byte tokenizer: text survives, words survive, special tokens are what they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.core.errors import ConfigError, InvalidRequestError
from prefixlab.core.text.byte_tokenizer import FIRST_WORD_ID, NUM_BYTES, SPECIAL_TOKENS, ByteTokenizer

TOKENIZER = ByteTokenizer()
UTF8_TEXT = st.text(st.characters(codec="utf-8"))


@given(
    UTF8_TEXT
    | st.lists(st.sampled_from([" the", " baba", "ba", " ", "<|im_end|>", "<|", "é", "x"])).map("".join)
)
def test_text_survives_encoding_and_decoding(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=False) == text


@given(st.lists(st.integers(NUM_BYTES, TOKENIZER.vocab_size - 1)))
def test_words_and_special_tokens_survive_decoding_and_encoding(token_ids: list[int]) -> None:
    assert TOKENIZER.encode(TOKENIZER.decode(token_ids, skip_special_tokens=False)) == token_ids


@given(
    UTF8_TEXT
    | st.lists(st.sampled_from([" the", " theba", " ba", " babaX", "<|bos|>", " ", "y"])).map("".join)
)
def test_the_longest_word_is_taken_at_each_place(text: str) -> None:
    """The slow twin: at every position the longest piece that fits, over all pieces."""
    ids = range(NUM_BYTES, TOKENIZER.vocab_size)
    pieces = {TOKENIZER.decode([i], skip_special_tokens=False): i for i in ids}
    longest = max(map(len, pieces))
    expected: list[int] = []
    position = 0
    while position < len(text):
        for length in range(longest, 1, -1):
            if text[position : position + length] in pieces and position + length <= len(text):
                expected.append(pieces[text[position : position + length]])
                position += length
                break
        else:
            expected.extend(text[position].encode())
            position += 1
    assert TOKENIZER.encode(text) == expected


def test_every_id_of_any_vocabulary_has_a_text_of_its_own() -> None:
    for vocab_size in (FIRST_WORD_ID, 4096, 151_936):
        tokenizer = ByteTokenizer(vocab_size)
        assert tokenizer.vocab_size == vocab_size
        texts = {tokenizer.decode([i], skip_special_tokens=False) for i in range(NUM_BYTES, vocab_size)}
        assert len(texts) == vocab_size - NUM_BYTES
        assert all(texts)


def test_common_words_are_one_token_and_random_ids_can_be_read() -> None:
    assert len(TOKENIZER.encode(" the people of the water")) == 5
    assert TOKENIZER.decode([300, 1000, 4000]).isascii()


def test_half_a_character_becomes_the_replacement_character_until_the_rest_comes() -> None:
    euro = list("€".encode())
    assert TOKENIZER.decode(euro[:2]) == "\ufffd"
    assert TOKENIZER.decode(euro) == "€"
    assert TOKENIZER.decode([255]) == "\ufffd"


def test_special_tokens_are_ids_when_spelt_out_and_hidden_on_request() -> None:
    ids = TOKENIZER.encode("a<|im_start|>b<|eos|>")
    assert ids == [97, TOKENIZER.encode("<|im_start|>")[0], 98, TOKENIZER.encode("<|eos|>")[0]]
    assert TOKENIZER.decode(ids) == "ab"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == "a<|im_start|>b<|eos|>"
    assert {TOKENIZER.decode([i], skip_special_tokens=False) for i in TOKENIZER.eos_token_ids} == {
        "<|eos|>",
        "<|im_end|>",
    }
    assert len(SPECIAL_TOKENS) == FIRST_WORD_ID - NUM_BYTES


def test_a_conversation_becomes_chatml() -> None:
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "So?"},
    ]
    assert TOKENIZER.apply_chat_template(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "robot", "content": "x"}, "robot"),
        ({"content": "x"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "content"),
    ],
)
def test_a_message_it_cannot_spell_is_refused(message: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        TOKENIZER.apply_chat_template([message])


def test_a_lone_surrogate_is_refused_since_no_bytes_spell_it() -> None:
    with pytest.raises(InvalidRequestError, match="Unicode"):
        TOKENIZER.encode("a\ud800b")


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="260"):
        ByteTokenizer(259)
