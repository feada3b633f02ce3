"""KV events on ZeroMQ, as subscribers of SGLang and vLLM expect them, with replay.

    cache ── emit ──► backlog ──► [own thread: batch · encode · send · remember] ──► PUB: topic, seq, payload
                                                 └──► ROUTER: what is remembered from a number on

Owns the thread, both sockets and the numbers of batches. All events waiting when the thread looks become one
batch. When more than `max_queue_size` wait, because the thread cannot keep up, they are dropped as a whole
and "all cleared" takes their place: a subscriber then believes too little is cached, never too much.

Invariant: numbers are consecutive, and each was sent: a gap a subscriber sees is the network's, and replay
fills it for as long as the batch is remembered.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

from prefixlab.core.clock import wall_time_s
from prefixlab.core.errors import ConfigError
from prefixlab.core.kv_events import AllBlocksCleared, BlockStored, EventBatch, KVEvent, encode_batch

log = logging.getLogger(__name__)

END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
FLAG = "--kv-events-config"
LINGER_MS = 500
"""How long sockets may go on sending after the end."""
_JOIN_TIMEOUT_S = 5.0


class KVEventsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON of `--kv-events-config`; names and defaults are SGLang's."""

    publisher: str = "null"
    endpoint: str = "tcp://*:5557"
    bind: bool | None = None
    """None: bind where the endpoint names no one host to connect to."""
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    """Batches remembered for replay."""
    hwm: int = 100_000
    """Batches ZeroMQ holds for a slow subscriber before it drops."""
    max_queue_size: int = 100_000
    """Events that may wait for the thread."""
    topic: str = ""
    format: str = "default"

    @property
    def binds(self) -> bool:
        if self.bind is not None:
            return self.bind
        scheme, _, rest = self.endpoint.partition("://")
        host = rest.rpartition(":")[0].strip("[]")
        return scheme in ("ipc", "inproc") or host in ("*", "0.0.0.0", "::")


def parse_kv_events_config(text: str | None) -> KVEventsConfig:
    """Raises ConfigError that names the key at fault."""
    if text is None:
        return KVEventsConfig()
    try:
        config = msgspec.json.decode(text, type=KVEventsConfig)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{FLAG}: {error}") from None
    if config.publisher not in ("null", "zmq"):
        raise ConfigError(f"{FLAG}: publisher must be null or zmq, not {config.publisher!r}")
    if config.format != "default":
        raise ConfigError(f"{FLAG}: format must be default, not {config.format!r}")
    for name in ("buffer_steps", "hwm", "max_queue_size"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{FLAG}: {name} must be at least 1, not {getattr(config, name)}")
    return config


class KVPublisher:
    """An EventSink. `emit` is for one thread, the cache's; it appends, and wakes the publisher's.

    Raises ConfigError at construction if an endpoint cannot be used.
    """

    def __init__(self, config: KVEventsConfig) -> None:
        self._config = config
        self._topic = config.topic.encode()
        self._backlog: deque[KVEvent] = deque()
        self._is_awake = False
        self._is_closing = False
        self._next_number = 0
        self._remembered: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self.num_dropped_events = 0
        self.num_sent_batches = 0
        self.num_failed_sends = 0

        self._context = zmq.Context()
        self._publish = self._open(zmq.PUB, config.endpoint, config.binds)
        self._replay: zmq.Socket[bytes] | None = None
        if config.replay_endpoint is not None:
            self._replay = self._open(zmq.ROUTER, config.replay_endpoint, bind=True)
        # A pipe, since the thread sleeps on ZeroMQ's poller: it takes plain sockets too.
        self._wake_end, self._sleep_end = socket.socketpair()
        for end in (self._wake_end, self._sleep_end):
            end.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="kv-publisher", daemon=True)
        self._thread.start()

    def describe(self, page_size: int) -> dict[str, Any]:
        """Where to subscribe, for `/server_info`; the `…_port_base` names are SGLang's."""
        endpoint = _last_endpoint(self._publish)
        replay = None if self._replay is None else _last_endpoint(self._replay)
        return {
            "publisher": "zmq",
            "endpoint": endpoint,
            "endpoint_port_base": _port(endpoint),
            "replay_endpoint": replay,
            "replay_endpoint_port_base": None if replay is None else _port(replay),
            "topic": self._config.topic,
            "block_size": page_size,
            "dp_size": 1,
        }

    # The cache's side. ------------------------------------------------------------------------------------

    def emit(self, events: Sequence[KVEvent]) -> None:
        self._backlog.extend(events)
        if len(self._backlog) > self._config.max_queue_size:
            self.num_dropped_events += len(self._backlog)
            self._backlog.clear()
            self._backlog.append(AllBlocksCleared())
        if not self._is_awake:
            self._is_awake = True
            # Full: the thread will wake anyway. Closed: nobody is there to wake.
            with contextlib.suppress(OSError):
                self._wake_end.send(b"w")

    def close(self) -> None:
        """Send what waits, then end."""
        self._is_closing = True
        self._is_awake = False
        self.emit(())
        self._thread.join(_JOIN_TIMEOUT_S)

    # The thread. ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._sleep_end, zmq.POLLIN)
        if self._replay is not None:
            poller.register(self._replay, zmq.POLLIN)
        try:
            while not self._is_closing:
                ready = {source for source, _ in poller.poll()}
                if self._replay is not None and self._replay in ready:
                    self._answer_replay(self._replay)
                with contextlib.suppress(BlockingIOError):
                    self._sleep_end.recv(4096)
                # Before the backlog is read: what comes after this wakes the thread again.
                self._is_awake = False
                self._send_backlog()
            self._send_backlog()  # what came between the last look and `close`
        except Exception:
            log.exception("the KV event publisher died; events are no longer sent")
        finally:
            for end in (self._wake_end, self._sleep_end):
                end.close()
            self._context.destroy(linger=LINGER_MS)

    def _send_backlog(self) -> None:
        events: list[KVEvent] = []
        with contextlib.suppress(IndexError):  # until it is empty; `emit` may add or drop meanwhile
            while len(events) < self._config.max_queue_size:
                events.append(self._backlog.popleft())
        if not events:
            return
        payload = encode_batch(EventBatch(ts=wall_time_s(), events=coalesce(events), attn_dp_rank=0))
        try:
            self._publish.send_multipart((self._topic, self._number(), payload))
        except zmq.ZMQError:
            # The number is not used up, and what subscribers believe is no longer true: start them over.
            self.num_failed_sends += 1
            log.exception("KV events could not be sent")
            self._backlog.appendleft(AllBlocksCleared())
            return
        self._remembered.append((self._next_number, payload))
        self._next_number += 1
        self.num_sent_batches += 1

    def _answer_replay(self, replay: zmq.Socket[bytes]) -> None:
        frames = replay.recv_multipart()
        if len(frames) != 3 or frames[1] or len(frames[2]) != 8:
            log.warning("a replay request of %d frames is not [identity, empty, number]", len(frames))
            return
        identity, start = frames[0], int.from_bytes(frames[2], "big")
        for number, payload in self._remembered:
            if number >= start:
                replay.send_multipart((identity, b"", self._topic, number.to_bytes(8, "big"), payload))
        replay.send_multipart((identity, b"", self._topic, END_OF_REPLAY, b""))

    def _number(self) -> bytes:
        return self._next_number.to_bytes(8, "big")

    def _open(self, kind: int, endpoint: str, bind: bool) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        made.setsockopt(zmq.SNDHWM, self._config.hwm)
        made.setsockopt(zmq.LINGER, LINGER_MS)
        try:
            if bind:
                made.bind(endpoint)
            else:
                made.connect(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(f"{FLAG}: {endpoint!r} cannot be used: {error}") from None
        return made


def make_publisher(config: KVEventsConfig) -> KVPublisher | None:
    """None where events are off."""
    return KVPublisher(config) if config.publisher == "zmq" else None


def coalesce(events: Sequence[KVEvent]) -> list[KVEvent]:
    """The same events, fewer: a run stored right behind the one before joins it."""
    merged: list[KVEvent] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, BlockStored) and isinstance(last, BlockStored) and _continues(event, last):
            merged[-1] = msgspec.structs.replace(
                last,
                block_hashes=last.block_hashes + event.block_hashes,
                token_ids=last.token_ids + event.token_ids,
            )
        else:
            merged.append(event)
    return merged


def _continues(event: BlockStored, last: BlockStored) -> bool:
    return (
        event.parent_block_hash == last.block_hashes[-1]
        and event.block_size == last.block_size
        and event.medium == last.medium
        and (event.extra_key, event.cache_salt) == (last.extra_key, last.cache_salt)
        and (event.lora_id, event.lora_name, event.session_id)
        == (last.lora_id, last.lora_name, last.session_id)
    )


def _last_endpoint(made: zmq.Socket[bytes]) -> str:
    """As it was bound, a wildcard port replaced by the one given."""
    endpoint = made.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def _port(endpoint: str) -> int | None:
    port = endpoint.rpartition(":")[2]
    return int(port) if port.isdecimal() else None
