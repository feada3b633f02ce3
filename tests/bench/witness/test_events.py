from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from prefixlab.bench.ledger.seen import EventCounts
from prefixlab.bench.witness.events import EventFold, EventWatch, reachable
from prefixlab.core.clock import sleep
from prefixlab.core.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    KVEvent,
    encode_batch,
)
from prefixlab.server.kv_publisher import KVEventsConfig, KVPublisher

SETTLES_S = 0.1
"""Between the handshake of a subscriber and its subscription."""


def stored(*names: int, medium: str | None = None) -> BlockStored:
    return BlockStored(
        block_hashes=list(names), parent_block_hash=None, token_ids=[], block_size=16, medium=medium
    )


def removed(*names: int, medium: str | None = None) -> BlockRemoved:
    return BlockRemoved(block_hashes=list(names), medium=medium)


def fold(*batches: list[KVEvent]) -> EventCounts:
    made = EventFold()
    for number, events in enumerate(batches):
        made.take(number, encode_batch(EventBatch(0.0, events)))
    return made.counts


@contextmanager
def publisher() -> Iterator[tuple[KVPublisher, str]]:
    made = KVPublisher(KVEventsConfig(publisher="zmq", endpoint="tcp://127.0.0.1:*", bind=True))
    try:
        yield made, str(made.describe(16)["endpoint"])
    finally:
        made.close()


# The fold. --------------------------------------------------------------------------------------------------


def test_blocks_are_counted_and_those_that_come_back_are_known_again() -> None:
    counts = fold([stored(1, 2, 3)], [removed(2, 3)], [stored(3, 4)])
    assert (counts.num_batches, counts.num_stored, counts.num_removed) == (3, 5, 2)
    assert (counts.num_evicted, counts.num_stored_again) == (2, 1)
    assert counts.is_whole


def test_a_block_that_moves_to_another_tier_is_not_evicted() -> None:
    counts = fold([stored(1, medium="GPU"), stored(1, medium="CPU_PINNED"), removed(1, medium="GPU")])
    assert (counts.num_removed, counts.num_evicted) == (1, 0)
    counts = fold([stored(1, medium="CPU_PINNED"), removed(1, medium="CPU_PINNED")])
    assert counts.num_evicted == 1


def test_a_block_from_before_the_run_is_evicted_like_any_other() -> None:
    counts = fold([removed(9)], [stored(9)])
    assert (counts.num_evicted, counts.num_stored_again) == (1, 1)


def test_what_was_cleared_and_is_computed_anew_is_known_again() -> None:
    counts = fold([stored(1, 2)], [AllBlocksCleared()], [stored(1)])
    assert (counts.num_cleared, counts.num_stored_again, counts.num_evicted) == (1, 1, 0)


def test_a_gap_in_the_numbers_is_a_loss_and_a_publisher_started_anew_is_not() -> None:
    made = EventFold()
    for number in (7, 8, 12, 0, 1):
        made.take(number, encode_batch(EventBatch(0.0, [])))
    assert (made.counts.num_lost, made.counts.num_batches) == (3, 5)
    assert not made.counts.is_whole


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01\x02\x03", msgspec.msgpack.encode([0, [["X"]]])])
def test_what_cannot_be_read_is_counted_and_never_an_error(payload: bytes) -> None:
    made = EventFold()
    made.take(0, payload)
    assert (made.counts.num_unread, made.counts.num_batches, made.counts.is_whole) == (1, 0, False)


def test_events_as_arrays_and_as_maps_are_the_same() -> None:
    as_arrays = [["BlockStored", [1, 2], None, [], 16, None, "GPU"], ["BlockRemoved", [1], "GPU"]]
    as_maps = [
        {"type": "BlockStored", "block_hashes": [1, 2], "parent_block_hash": None, "token_ids": []}
        | {"block_size": 16, "lora_id": None, "medium": "GPU", "extra_keys": None, "group_idx": 0},
        {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "group_idx": 0},
    ]
    of_each = []
    for events in (as_arrays, as_maps):
        made = EventFold()
        made.take(0, msgspec.msgpack.encode([1.0, events, 0]))
        of_each.append(made.counts)
    assert of_each[0] == of_each[1] == EventCounts(1, 2, 1, 1)


# The subscription. ------------------------------------------------------------------------------------------


def test_what_a_server_publishes_during_a_run_is_counted() -> None:
    with publisher() as (made, address):
        watch = EventWatch([address])
        for _ in range(2):  # of a stretch, and of the next one anew
            watch.start(None)
            sleep(SETTLES_S)
            made.emit([stored(1, 2, 3), removed(1)])
            assert watch.stop() == []
            assert watch.counts is not None and watch.counts.is_whole
            assert (watch.counts.num_stored, watch.counts.num_evicted) == (3, 1)


def test_several_servers_add_up() -> None:
    with publisher() as (one, first), publisher() as (other, second):
        watch = EventWatch([first, second])
        watch.start(None)
        sleep(SETTLES_S)
        one.emit([stored(1)])
        other.emit([stored(1, 2)])
        assert watch.stop() == []
    assert watch.counts is not None and watch.counts.num_stored == 3


def test_nobody_there_is_a_note_and_nothing_is_known() -> None:
    watch = EventWatch(["tcp://127.0.0.1:1", "tcp://nonsense"])
    watch.start(None)
    notes = watch.stop()
    assert watch.counts is None and len(notes) == 2
    assert "no KV events from tcp://127.0.0.1:1: nobody answers there" in notes


def test_without_an_address_nothing_is_subscribed_to() -> None:
    watch = EventWatch([])
    watch.start(None)
    assert watch.stop() == [] and watch.counts is None


@pytest.mark.parametrize(
    ("bound", "url", "found"),
    [
        ("tcp://*:5557", "http://10.0.0.7:8000", "tcp://10.0.0.7:5557"),
        ("tcp://0.0.0.0:5557", "http://gpu-1", "tcp://gpu-1:5557"),
        ("tcp://[::]:5557", "http://[fe80::1]:30000", "tcp://[fe80::1]:5557"),
        ("tcp://10.0.0.9:5557", "http://10.0.0.7:8000", "tcp://10.0.0.9:5557"),
        ("ipc:///run/kv", "http://10.0.0.7:8000", "ipc:///run/kv"),
    ],
)
def test_a_publisher_that_bound_to_any_host_is_found_at_its_servers(bound: str, url: str, found: str) -> None:
    assert reachable(bound, url) == found
