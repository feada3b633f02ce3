"""KV events over real sockets: the wire, replay, and that a subscriber believes what the tree holds."""

from __future__ import annotations

import pytest
import zmq

from prefixlab.cache.config import CacheConfig
from prefixlab.cache.radix import RadixCache
from prefixlab.core.errors import ConfigError
from prefixlab.core.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, decode_batch
from prefixlab.server.kv_publisher import (
    KVEventsConfig,
    KVPublisher,
    coalesce,
    make_publisher,
    parse_kv_events_config,
)
from tests.fakes import fold_events, tree_contents
from tests.server.harness import serving
from tests.server.kv_subscriber import connected, emit_and_send, publishing, replayed, stored, wait_until


def test_a_batch_is_topic_number_and_payload() -> None:
    with publishing(topic="kv@here") as publisher:
        endpoint = publisher.describe(2)["endpoint"]
        with connected(zmq.SUB, endpoint, "kv") as subscriber, connected(zmq.SUB, endpoint, "other") as other:
            # A subscription takes a while to arrive: publish until it has.
            while not subscriber.poll(10):
                emit_and_send(publisher, stored(1))
            topic, number, payload = subscriber.recv_multipart()
            assert topic == b"kv@here"
            assert len(number) == 8
            batch = decode_batch(payload)
            assert batch.events == [stored(1)]
            assert batch.attn_dp_rank == 0
            first = int.from_bytes(number, "big")
            emit_and_send(publisher, BlockRemoved(block_hashes=[1], medium="GPU"))
            numbers = [first]
            while decode_batch(payload).events != [BlockRemoved(block_hashes=[1], medium="GPU")]:
                _, number, payload = subscriber.recv_multipart()
                numbers.append(int.from_bytes(number, "big"))
            assert numbers == list(range(first, first + len(numbers)))
            assert not other.poll(0)


def test_numbers_begin_at_zero_and_replay_gives_them_again() -> None:
    with publishing() as publisher:
        for block in range(5):
            emit_and_send(publisher, stored(block + 1))
        assert [number for number, _ in replayed(publisher, 0)] == [0, 1, 2, 3, 4]
        late = replayed(publisher, 3)
        assert [number for number, _ in late] == [3, 4]
        assert [batch.events for _, batch in late] == [[stored(4)], [stored(5)]]
        assert replayed(publisher, 5) == []


def test_only_so_much_is_remembered() -> None:
    with publishing(buffer_steps=2) as publisher:
        for block in range(4):
            emit_and_send(publisher, stored(block + 1))
        assert [number for number, _ in replayed(publisher, 0)] == [2, 3]


def test_a_malformed_replay_request_is_ignored() -> None:
    with publishing() as publisher:
        emit_and_send(publisher, stored(1))
        with connected(zmq.DEALER, publisher.describe(2)["replay_endpoint"]) as dealer:
            dealer.send_multipart((b"", b"soon"))
            dealer.send_multipart((b"not empty", b"\0" * 8))
            dealer.send(b"")
            assert not dealer.poll(50)
        assert len(replayed(publisher, 0)) == 1


def test_a_number_is_used_up_only_by_a_batch_that_was_sent() -> None:
    with publishing() as publisher:
        emit_and_send(publisher, stored(1))
        real, publisher._publish = publisher._publish, BrokenSocket()  # type: ignore[assignment]
        publisher.emit([stored(2)])
        wait_until(lambda: publisher.num_failed_sends == 1)
        publisher._publish = real
        emit_and_send(publisher, stored(3))
        batches = replayed(publisher, 0)
        assert [number for number, _ in batches] == [0, 1]
        # What was lost cannot be told again, so subscribers start over.
        assert batches[1][1].events == [AllBlocksCleared(), stored(3)]


class BrokenSocket:
    def send_multipart(self, frames: object) -> None:
        raise zmq.ZMQError(zmq.ENOTSOCK)


def test_what_cannot_be_kept_up_with_is_dropped_as_a_whole_and_counted() -> None:
    with publishing(max_queue_size=3) as publisher:
        publisher._is_awake = True  # it will not be woken: the thread is busy elsewhere
        publisher.emit([stored(1), stored(2)])
        publisher.emit([stored(3), stored(4)])
        publisher._is_awake = False
        emit_and_send(publisher, stored(5))
        assert publisher.num_dropped_events == 4
        assert [batch.events for _, batch in replayed(publisher, 0)] == [[AllBlocksCleared(), stored(5)]]


def test_close_sends_what_waits() -> None:
    with publishing() as publisher:
        for block in range(50):
            publisher.emit([BlockRemoved(block_hashes=[block])])
    assert sum(len(decode_batch(payload).events) for _, payload in publisher._remembered) == 50


def test_a_run_stored_behind_another_joins_it() -> None:
    joined = coalesce([stored(1, 2), stored(3, parent=2), stored(9), stored(4, parent=3)])
    assert joined == [stored(1, 2, 3), stored(9), stored(4, parent=3)]
    salted = BlockStored(
        block_hashes=[5], parent_block_hash=2, token_ids=[5, 5], block_size=2, medium="GPU", cache_salt="x"
    )
    assert coalesce([stored(1, 2), salted]) == [stored(1, 2), salted]


def test_what_a_subscriber_believes_is_what_the_tree_holds() -> None:
    """Through the server, with eviction, namespaces and retraction; read back by replay."""
    config = CacheConfig(page_size=2)
    with publishing() as publisher, serving(cache=config, num_pages=40, publisher=publisher) as served:
        for i in range(30):
            prompt = [1, 2, 3, 4, 5 + i % 3, 6, 7 + i % 5] * (1 + i % 3)
            served.generate(prompt, 3, cache_salt="tenant" if i % 4 == 0 else None)
        served.wait_until_idle()
        assert served.worker.loop.stats.cache.num_evicted_pages_total > 0
        cache = served.worker.loop._cache.cache
        assert isinstance(cache, RadixCache)
        emit_and_send(publisher, BlockRemoved(block_hashes=[]))
        batches = replayed(publisher, 0)
        assert [number for number, _ in batches] == list(range(len(batches)))
        events = [event for _, batch in batches for event in batch.events]
        assert events[0] == AllBlocksCleared()
        assert fold_events(events) == set(tree_contents(cache)) != set()

        assert served.get("/flush_cache")["success"]
        wait_until(lambda: replayed(publisher, len(batches)) != [])
        assert replayed(publisher, len(batches))[-1][1].events[-1] == AllBlocksCleared()


def test_server_info_says_where_to_subscribe() -> None:
    with publishing(topic="t") as publisher, serving(publisher=publisher) as served:
        info = served.get("/server_info")["kv_events"]
        assert info["endpoint"].endswith(f":{info['endpoint_port_base']}")
        assert info["replay_endpoint"].endswith(f":{info['replay_endpoint_port_base']}")
        assert (info["topic"], info["block_size"], info["dp_size"]) == ("t", 4, 1)
        assert "prefixlab:kv_event_batches_total" in served.client.get("/metrics").text


# Options. -----------------------------------------------------------------------------------------------


def test_events_are_off_unless_asked_for() -> None:
    assert make_publisher(parse_kv_events_config(None)) is None
    assert make_publisher(parse_kv_events_config('{"publisher": "null"}')) is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"publisher": "zmq", "topik": "x"}', "topik"),
        ('{"publisher": "kafka"}', "publisher"),
        ('{"publisher": "zmq", "format": "dynamo"}', "format"),
        ('{"publisher": "zmq", "hwm": 0}', "hwm"),
        ('{"publisher": "zmq", "buffer_steps": "many"}', "buffer_steps"),
        ("{", "--kv-events-config"),
    ],
)
def test_a_wrong_option_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_kv_events_config(text)


@pytest.mark.parametrize(
    ("endpoint", "bind", "binds"),
    [
        ("tcp://*:5557", None, True),
        ("tcp://0.0.0.0:5557", None, True),
        ("tcp://[::]:5557", None, True),
        ("ipc:///tmp/events", None, True),
        ("inproc://events", None, True),
        ("tcp://router:5557", None, False),
        ("tcp://127.0.0.1:5557", None, False),
        ("tcp://127.0.0.1:5557", True, True),
        ("tcp://*:5557", False, False),
    ],
)
def test_it_binds_where_the_endpoint_names_nobody_to_connect_to(
    endpoint: str, bind: bool | None, binds: bool
) -> None:
    assert KVEventsConfig(endpoint=endpoint, bind=bind).binds is binds


def test_it_can_connect_to_a_subscriber_that_binds() -> None:
    context = zmq.Context()
    subscriber: zmq.Socket[bytes] = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    port = subscriber.bind_to_random_port("tcp://127.0.0.1")
    try:
        with publishing(endpoint=f"tcp://127.0.0.1:{port}", bind=None) as publisher:
            while not subscriber.poll(10):
                emit_and_send(publisher, stored(1))
            assert decode_batch(subscriber.recv_multipart()[2]).events == [stored(1)]
    finally:
        context.destroy(linger=0)


def test_an_endpoint_that_is_taken_is_a_config_error() -> None:
    with publishing() as publisher:
        taken = publisher.describe(2)["endpoint"]
        with pytest.raises(ConfigError, match="--kv-events-config"):
            KVPublisher(KVEventsConfig(publisher="zmq", endpoint=taken, bind=True))
