from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.core.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    KVEvent,
    decode_batch,
    encode_batch,
)

HASHES = st.integers(-(2**63), 2**63 - 1)
EVENTS: st.SearchStrategy[KVEvent] = st.one_of(
    st.builds(
        BlockStored,
        block_hashes=st.lists(HASHES, max_size=3),
        parent_block_hash=st.none() | HASHES,
        token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=6),
        block_size=st.integers(1, 128),
        medium=st.none() | st.just("GPU"),
        cache_salt=st.none() | st.text(max_size=3),
    ),
    st.builds(BlockRemoved, block_hashes=st.lists(HASHES, max_size=3), medium=st.none() | st.just("GPU")),
    st.just(AllBlocksCleared()),
)


@given(st.lists(EVENTS, max_size=4), st.none() | st.integers(0, 7))
def test_a_batch_reads_back_as_it_was_written(events: list[KVEvent], rank: int | None) -> None:
    batch = EventBatch(ts=12.5, events=events, attn_dp_rank=rank)
    assert decode_batch(encode_batch(batch)) == batch


def test_the_wire_is_an_array_of_tagged_maps_without_defaults() -> None:
    event = BlockStored(
        block_hashes=[1, 2], parent_block_hash=None, token_ids=[7, 8], block_size=1, medium="GPU"
    )
    raw = msgspec.msgpack.decode(encode_batch(EventBatch(ts=1.0, events=[event])))
    assert raw[0] == 1.0
    assert raw[1] == [
        {
            "type": "BlockStored",
            "block_hashes": [1, 2],
            "parent_block_hash": None,
            "token_ids": [7, 8],
            "block_size": 1,
            "medium": "GPU",
        }
    ]


def test_events_as_tagged_arrays_are_read_too() -> None:
    payload = msgspec.msgpack.encode(
        [3.0, [["BlockStored", [5], 4, [1, 2], 2, None, "GPU"], ["BlockRemoved", [5]]], 1]
    )
    assert decode_batch(payload) == EventBatch(
        ts=3.0,
        events=[
            BlockStored(block_hashes=[5], parent_block_hash=4, token_ids=[1, 2], block_size=2, medium="GPU"),
            BlockRemoved(block_hashes=[5]),
        ],
        attn_dp_rank=1,
    )


def test_a_field_that_a_newer_peer_added_is_passed_over() -> None:
    payload = msgspec.msgpack.encode(
        [3.0, [{"type": "BlockRemoved", "block_hashes": [5], "brand_new": True}], None]
    )
    assert decode_batch(payload).events == [BlockRemoved(block_hashes=[5])]


@pytest.mark.parametrize(
    "raw", [7, [1.0], [1.0, "events"], [1.0, [{"type": "Unheard"}]], [1.0, [["Unheard"]]]]
)
def test_what_is_not_a_batch_is_refused(raw: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_batch(msgspec.msgpack.encode(raw))
