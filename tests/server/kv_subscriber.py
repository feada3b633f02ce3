"""A subscriber as SGLang and vLLM have it, and a publisher for it to listen to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from prefixlab.core.clock import sleep
from prefixlab.core.kv_events import BlockStored, EventBatch, KVEvent, decode_batch
from prefixlab.server.kv_publisher import (
    END_OF_REPLAY,
    KVPublisher,
    make_publisher,
    parse_kv_events_config,
)
from tests.server.harness import TIMEOUT_S

ANY = "tcp://127.0.0.1:*"


@contextmanager
def publishing(**options: Any) -> Iterator[KVPublisher]:
    config = {"publisher": "zmq", "endpoint": ANY, "bind": True, "replay_endpoint": ANY} | options
    publisher = make_publisher(parse_kv_events_config(json.dumps(config)))
    assert publisher is not None
    try:
        yield publisher
    finally:
        publisher.close()


@contextmanager
def connected(kind: int, endpoint: str, topic: str | None = None) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    made: zmq.Socket[bytes] = context.socket(kind)
    made.setsockopt(zmq.RCVTIMEO, int(TIMEOUT_S * 1000))
    made.setsockopt(zmq.LINGER, 0)
    if topic is not None:
        made.setsockopt(zmq.SUBSCRIBE, topic.encode())
    made.connect(endpoint)
    try:
        yield made
    finally:
        context.destroy(linger=0)


def stored(*hashes: int, parent: int | None = None) -> BlockStored:
    tokens = [abs(block) for block in hashes for _ in range(2)]
    return BlockStored(
        block_hashes=list(hashes), parent_block_hash=parent, token_ids=tokens, block_size=2, medium="GPU"
    )


def replayed(publisher: KVPublisher, start: int) -> list[tuple[int, EventBatch]]:
    """Ask for everything from `start` on, as SGLang's and vLLM's subscribers do."""
    with connected(zmq.DEALER, publisher.describe(2)["replay_endpoint"]) as dealer:
        dealer.send_multipart((b"", start.to_bytes(8, "big")))
        batches: list[tuple[int, EventBatch]] = []
        while True:
            empty, topic, number, payload = dealer.recv_multipart()
            assert (empty, topic) == (b"", publisher._topic)
            if number == END_OF_REPLAY:
                assert int.from_bytes(number, "big", signed=True) == -1
                assert payload == b""
                return batches
            batches.append((int.from_bytes(number, "big"), decode_batch(payload)))


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(int(TIMEOUT_S / 0.002)):
        if is_so():
            return
        sleep(0.002)
    raise AssertionError("it never came to that")


def emit_and_send(publisher: KVPublisher, *events: KVEvent) -> None:
    """Emit, and wait until that batch is out, so that the next is another one."""
    num_sent = publisher.num_sent_batches
    publisher.emit(events)
    wait_until(lambda: publisher.num_sent_batches > num_sent)
