"""Incremental decoding against decoding everything at once, on byte-level and byte-fallback vocabularies."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from prefixlab.core.text.incremental import MAX_PENDING, REPLACEMENT, IncrementalDecoder

SPECIAL = 256


class Bytes:
    """Ids 0 … 255 are bytes, 256 is special."""

    vocab_size = 257
    eos_token_ids = frozenset({SPECIAL})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        data = b"".join(
            bytes([i]) if i < SPECIAL else b"" if skip_special_tokens else b"<special>" for i in token_ids
        )
        return data.decode(errors="replace")

    def apply_chat_template(self, messages: Sequence[dict[str, object]]) -> str:
        return "".join(str(message["content"]) for message in messages)


class Hub:
    """A vocabulary of the tokenizers library behind our seam."""

    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: HubTokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, messages: Sequence[dict[str, object]]) -> str:
        return ""


def byte_level() -> Hub:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    pairs = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ã", "©"), ("Ġ", "Ġ")]
    for left, right in pairs:
        vocab[left + right] = len(vocab)
    tokenizer = HubTokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return Hub(tokenizer)


def byte_fallback() -> Hub:
    """As Llama 2 and Mistral have it: ▁ for a space, the first space dropped, unknown characters as bytes."""
    vocab = {"<unk>": 0, "▁": 1, **{f"<0x{i:02X}>": 2 + i for i in range(256)}}
    for piece in ["a", "b", "c", "t", "h", "e", "▁t", "he", "▁the"]:
        vocab[piece] = len(vocab)
    pairs = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    tokenizer = HubTokenizer(models.BPE(vocab=vocab, merges=pairs, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<eos>"])
    return Hub(tokenizer)


BYTES, BYTE_LEVEL, BYTE_FALLBACK = Bytes(), byte_level(), byte_fallback()


def chunked(draw: st.DrawFn, ids: list[int]) -> list[list[int]]:
    chunks, start = [], 0
    while start < len(ids):
        size = draw(st.integers(1, 4))
        chunks.append(ids[start : start + size])
        start += size
    return chunks


@st.composite
def chunks_of_ids(draw: st.DrawFn, vocab_size: int, max_size: int = 120) -> list[list[int]]:
    favourites = st.sampled_from([0, 1, vocab_size - 1])
    ids = draw(st.lists(st.one_of(st.integers(0, vocab_size - 1), favourites), max_size=max_size))
    return chunked(draw, ids)


@st.composite
def chunks_of_text(draw: st.DrawFn, tokenizer: Hub | Bytes, alphabet: str) -> list[list[int]]:
    return chunked(draw, tokenizer.encode(draw(st.text(alphabet, max_size=80))))


def decode_in_chunks(decoder: IncrementalDecoder, chunks: list[list[int]]) -> str:
    return "".join([decoder.feed(chunk) for chunk in chunks] + [decoder.finish()])


def all_of(chunks: list[list[int]]) -> list[int]:
    return [token for chunk in chunks for token in chunk]


@settings(deadline=None)
@given(chunks_of_ids(BYTES.vocab_size), st.booleans())
def test_deltas_of_any_bytes_add_up_to_the_whole_text(chunks: list[list[int]], skip: bool) -> None:
    decoder = IncrementalDecoder(BYTES, skip_special_tokens=skip)
    assert decode_in_chunks(decoder, chunks) == BYTES.decode(all_of(chunks), skip_special_tokens=skip)


@settings(deadline=None)
@given(chunks_of_ids(BYTE_LEVEL.vocab_size), st.booleans())
def test_deltas_of_a_byte_level_vocabulary_add_up_to_the_whole_text(
    chunks: list[list[int]], skip: bool
) -> None:
    decoder = IncrementalDecoder(BYTE_LEVEL, skip_special_tokens=skip)
    assert decode_in_chunks(decoder, chunks) == BYTE_LEVEL.decode(all_of(chunks), skip_special_tokens=skip)


@settings(deadline=None)
@given(chunks_of_text(BYTE_FALLBACK, "the abc  "))
def test_spaces_of_a_byte_fallback_vocabulary_survive_every_cut(chunks: list[list[int]]) -> None:
    assert decode_in_chunks(IncrementalDecoder(BYTE_FALLBACK), chunks) == BYTE_FALLBACK.decode(all_of(chunks))


@settings(deadline=None)
@given(chunks_of_text(BYTE_FALLBACK, "a é€😀"))
def test_characters_spelt_as_fallback_bytes_come_out_whole(chunks: list[list[int]]) -> None:
    text = decode_in_chunks(IncrementalDecoder(BYTE_FALLBACK), chunks)
    assert text == BYTE_FALLBACK.decode(all_of(chunks))
    assert REPLACEMENT not in text


@settings(deadline=None)
@given(chunks_of_text(BYTES, "aé€😀"))
def test_no_delta_ever_holds_half_a_character(chunks: list[list[int]]) -> None:
    decoder = IncrementalDecoder(BYTES)
    assert all(REPLACEMENT not in decoder.feed(chunk) for chunk in chunks)
    assert decoder.finish() == ""


def reference_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The slow twin: look after every character."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(deadline=None)
@given(
    chunks_of_text(BYTES, "abc€"),
    st.lists(st.text("abc€", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_is_found_across_tokens_and_cut(chunks: list[list[int]], stops: list[str]) -> None:
    decoder = IncrementalDecoder(BYTES, stop=stops)
    expected = reference_stop(BYTES.decode(all_of(chunks)), stops)
    assert (decode_in_chunks(decoder, chunks), decoder.matched_stop) == expected


@settings(deadline=None)
@given(chunks_of_text(BYTES, "ab"), st.integers(0, 10))
def test_text_of_unchecked_tokens_cannot_stop(chunks: list[list[int]], num_unchecked: int) -> None:
    decoder = IncrementalDecoder(BYTES, stop=["ab"], num_unchecked_tokens=num_unchecked)
    text = BYTES.decode(all_of(chunks))
    checked, stop = reference_stop(text[num_unchecked:], ["ab"])
    assert (decode_in_chunks(decoder, chunks), decoder.matched_stop) == (text[:num_unchecked] + checked, stop)


def test_text_that_may_become_a_stop_string_waits_until_it_cannot() -> None:
    decoder = IncrementalDecoder(BYTES, stop=["<end>"])
    assert [decoder.feed(BYTES.encode(piece)) for piece in ("one <e", "n", "x two <", "end")] == [
        "one ",
        "",
        "<enx two ",
        "",
    ]
    assert decoder.finish() == "<end"
    assert decoder.matched_stop is None


def test_nothing_follows_a_stop_string() -> None:
    decoder = IncrementalDecoder(BYTES, stop=["b"])
    assert decoder.feed(BYTES.encode("abc")) == "a"
    assert decoder.feed(BYTES.encode("def")) == ""
    assert decoder.finish() == ""
    assert decoder.matched_stop == "b"


def test_the_stop_string_completed_first_wins_and_then_the_longest() -> None:
    first = IncrementalDecoder(BYTES, stop=["abc", "b"])
    assert (first.feed(BYTES.encode("abc")), first.matched_stop) == ("a", "b")
    longest = IncrementalDecoder(BYTES, stop=["bc", "abc"])
    assert (longest.feed(BYTES.encode("xabc")), longest.matched_stop) == ("x", "abc")


def test_an_unfinished_character_shows_at_the_end() -> None:
    decoder = IncrementalDecoder(BYTES)
    assert decoder.feed("€".encode()[:2]) == ""
    assert decoder.finish() == REPLACEMENT


def test_bytes_that_never_become_text_are_not_held_for_long() -> None:
    decoder = IncrementalDecoder(BYTES)
    fed = sum(len(decoder.feed([0xFF])) for _ in range(1000))
    assert fed == 1000 - MAX_PENDING


class CountingBytes(Bytes):
    num_decoded = 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        self.num_decoded += len(token_ids)
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("token", [ord("a"), 0xFF, 0x80, SPECIAL, 0xE2], ids=hex)
def test_work_per_token_does_not_grow_with_the_length(token: int) -> None:
    tokenizer = CountingBytes()
    decoder = IncrementalDecoder(tokenizer)
    for _ in range(2000):
        decoder.feed([token])
    assert tokenizer.num_decoded < 2000 * 100
