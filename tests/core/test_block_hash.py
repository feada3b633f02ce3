from __future__ import annotations

import hashlib
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.core.block_hash import (
    PUBLIC,
    Namespace,
    as_token_ids,
    block_digests,
    event_hash,
    namespace_seed,
)

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=40)
PAGE_SIZES = st.integers(1, 7)
NAMESPACES = st.builds(Namespace, st.none() | st.text(max_size=3), st.none() | st.text(max_size=3))


def chain(tokens: list[int], page_size: int, namespace: Namespace = PUBLIC) -> list[bytes]:
    return block_digests(as_token_ids(tokens), page_size, namespace_seed(namespace))


def test_the_chain_is_sha256_of_parent_and_little_endian_tokens() -> None:
    first = hashlib.sha256(struct.pack("<2I", 1, 2)).digest()
    second = hashlib.sha256(first + struct.pack("<2I", 3, 4)).digest()
    assert chain([1, 2, 3, 4, 5], 2) == [first, second]


def test_an_event_carries_the_first_eight_bytes_as_a_signed_number() -> None:
    assert event_hash(b"\xff" * 32) == -1
    assert event_hash(bytes(7) + b"\x05" + b"\x99" * 24) == 5


@given(TOKENS, TOKENS, PAGE_SIZES)
def test_two_prompts_share_as_many_digests_as_full_equal_pages(
    a: list[int], b: list[int], page_size: int
) -> None:
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    first, second = chain(a, page_size), chain(b, page_size)
    shared = sum(1 for x, y in zip(first, second, strict=False) if x == y)
    assert shared == same // page_size
    assert len(first) == len(a) // page_size


@given(TOKENS, PAGE_SIZES, st.integers(0, 6))
def test_a_chain_continues_from_its_last_digest(tokens: list[int], page_size: int, pages: int) -> None:
    whole = chain(tokens, page_size)
    cut = min(pages, len(whole))
    parent = whole[cut - 1] if cut else namespace_seed(PUBLIC)
    assert block_digests(as_token_ids(tokens[cut * page_size :]), page_size, parent) == whole[cut:]


@given(NAMESPACES, NAMESPACES)
def test_namespaces_share_a_seed_only_if_they_are_equal(a: Namespace, b: Namespace) -> None:
    assert (namespace_seed(a) == namespace_seed(b)) == (a == b)


def test_an_int32_array_is_taken_without_a_copy() -> None:
    tokens = np.arange(5, dtype=np.int32)
    assert as_token_ids(tokens) is tokens
