"""The servers' KV events during a stretch of a run: what their caches stored, removed and cleared.

Owns the subscription (ZeroMQ, `[topic, number, batch]` as vLLM, SGLang and our server publish it) and the
fold of what came. The form of a batch is `core/kv_events.py`'s.

Numbers of batches are consecutive for a publisher, so that lost ones are noticed, the very first apart: what
was sent before the subscription stood is nobody's loss.

Invariant: memory is bounded by what the caches hold; nothing a publisher does, or leaves undone, fails a run
or holds it up, by more than CONNECT_WAIT_S before it and LAST_WAIT_S after.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import zmq

from prefixlab.bench.ledger.seen import EventCounts
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.targets.several import SeveralEndpoints
from prefixlab.core.clock import Clock, MonotonicClock
from prefixlab.core.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent, decode_batch

CONNECT_WAIT_S = 1.0
QUIET_MS = 250
"""So long nothing must have come, after the end, before no more is waited for."""
LAST_WAIT_S = 3.0
MAX_REMEMBERED = 10_000_000
"""Evicted blocks that are known again when they come back."""
_WAKE = "inproc://wake"
_NUMBER_BYTES = 8


class EventFold:
    """What one publisher's events amount to."""

    def __init__(self) -> None:
        self.counts = EventCounts()
        self._holders: dict[int, set[str | None]] = {}
        self._evicted: set[int] = set()
        self._next: int | None = None

    def take(self, number: int, payload: bytes) -> None:
        """One batch, as it came."""
        lost = 0 if self._next is None or number < self._next else number - self._next
        self._next = number + 1
        counts = self.counts
        try:
            events = decode_batch(payload).events
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
            self.counts = replace(counts, num_unread=counts.num_unread + 1, num_lost=counts.num_lost + lost)
            return
        self.counts = replace(counts, num_batches=counts.num_batches + 1, num_lost=counts.num_lost + lost)
        for event in events:
            self._fold(event)

    def _fold(self, event: KVEvent) -> None:
        counts = self.counts
        if isinstance(event, BlockStored):
            again = self._evicted.intersection(event.block_hashes)
            self._evicted -= again
            for name in event.block_hashes:
                self._holders.setdefault(name, set()).add(event.medium)
            self.counts = replace(
                counts,
                num_stored=counts.num_stored + len(event.block_hashes),
                num_stored_again=counts.num_stored_again + len(again),
            )
        elif isinstance(event, BlockRemoved):
            gone = [name for name in event.block_hashes if self._is_gone(name, event.medium)]
            self._give_up(gone)
            self.counts = replace(
                counts,
                num_removed=counts.num_removed + len(event.block_hashes),
                num_evicted=counts.num_evicted + len(gone),
            )
        elif isinstance(event, AllBlocksCleared):
            self._give_up(self._holders)
            self._holders.clear()
            self.counts = replace(counts, num_cleared=counts.num_cleared + 1)

    def _give_up(self, names: Iterable[int]) -> None:
        if len(self._evicted) < MAX_REMEMBERED:
            self._evicted.update(names)

    def _is_gone(self, name: int, medium: str | None) -> bool:
        """A block nobody saw stored was there before; no other tier is known to hold it."""
        holders = self._holders.get(name)
        if holders is None:
            return True
        holders.discard(medium)
        if holders:
            return False
        del self._holders[name]
        return True


class EventWatch:
    """Implements `witness.Witness`.

    Args:
        addresses: of the publishers, as tcp://host:port.

    Attributes:
        counts: of the stretch that ended last; None where nothing was subscribed to.
    """

    def __init__(self, addresses: Sequence[str], clock: Clock | None = None) -> None:
        self._addresses = tuple(dict.fromkeys(addresses))
        self._clock = clock or MonotonicClock()
        self._subscription: _Subscription | None = None
        self.counts: EventCounts | None = None

    @classmethod
    def of(cls, endpoint: Endpoint, given: Sequence[str] = ()) -> EventWatch:
        """Of the addresses given, else of those that the servers state."""
        each = endpoint.each if isinstance(endpoint, SeveralEndpoints) else (endpoint,)
        stated = [reachable(one.facts.kv_events, one.url) for one in each if one.facts.kv_events]
        return cls(given or stated)

    def start(self, folder: Path | None) -> None:
        """See Witness. Keeps nothing in the folder: who asked for the counts keeps them."""
        self.counts, self._subscription = None, None
        if self._addresses:
            self._subscription = _Subscription(self._addresses, self._clock)
            self._subscription.start()

    def stop(self) -> list[str]:
        """See Witness."""
        if self._subscription is None:
            return []
        silent = self._subscription.stop()
        folds = self._subscription.folds
        # A publisher that could not be reached may have said anything.
        self.counts = None if silent else EventCounts.sum([fold.counts for fold in folds])
        notes = [f"no KV events from {address}: {why}" for address, why in silent.items()]
        if self.counts is not None and self.counts.num_lost:
            notes.append(f"{self.counts.num_lost:,} batches of KV events were lost on the way")
        if self.counts is not None and self.counts.num_unread:
            notes.append(f"{self.counts.num_unread:,} batches of KV events could not be read")
        return notes


class _Subscription:
    """To all publishers, in a thread that owns every socket but the one that wakes it."""

    def __init__(self, addresses: Sequence[str], clock: Clock) -> None:
        self._addresses = addresses
        self._clock = clock
        self._context = zmq.Context()
        self._refused: dict[str, str] = {}
        self._connected: set[str] = set()
        self._all_connected = threading.Event()
        self._told_to_end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)
        self.folds = [EventFold() for _ in addresses]

    def start(self) -> None:
        self._waker = self._context.socket(zmq.PAIR)
        self._waker.bind(_WAKE)
        self._thread.start()
        self._all_connected.wait(CONNECT_WAIT_S)

    def stop(self) -> dict[str, str]:
        """Returns those of which nothing can be said, and why."""
        self._told_to_end.set()
        with contextlib.suppress(zmq.ZMQError):
            self._waker.send(b"", zmq.NOBLOCK)
        self._thread.join(LAST_WAIT_S + 1)
        self._waker.close(linger=0)
        if not self._thread.is_alive():
            self._context.term()
        missing = dict.fromkeys(self._addresses, "nobody answers there")
        return self._refused | {
            address: why
            for address, why in missing.items()
            if address not in self._connected and address not in self._refused
        }

    def _run(self) -> None:
        poller = zmq.Poller()
        sleeper = self._context.socket(zmq.PAIR)
        sleeper.connect(_WAKE)
        poller.register(sleeper, zmq.POLLIN)
        numbers: dict[zmq.Socket[bytes], int] = {}
        monitors: dict[zmq.Socket[bytes], str] = {}
        opened = [sleeper]
        try:
            for number, address in enumerate(self._addresses):
                try:
                    subscriber = self._subscribe(address, opened)
                except zmq.ZMQError as error:
                    self._refused[address] = str(error)
                    continue
                numbers[subscriber] = number
                monitors[opened[-1]] = address
                poller.register(subscriber, zmq.POLLIN)
                poller.register(opened[-1], zmq.POLLIN)
            self._listen(poller, sleeper, numbers, monitors)
        finally:
            self._all_connected.set()
            for one in reversed(opened):
                one.close(linger=0)

    def _subscribe(self, address: str, opened: list[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        subscriber = self._context.socket(zmq.SUB)
        opened.append(subscriber)
        subscriber.setsockopt(zmq.RCVHWM, 0)  # what waits here is bounded by what a run makes a cache do
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.setsockopt(zmq.IPV6, 1)
        opened.append(subscriber.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED))
        subscriber.connect(address)
        return subscriber

    def _listen(
        self,
        poller: zmq.Poller,
        sleeper: zmq.Socket[bytes],
        numbers: dict[zmq.Socket[bytes], int],
        monitors: dict[zmq.Socket[bytes], str],
    ) -> None:
        until_s: float | None = None
        while until_s is None or self._clock.now() < until_s:
            if self._connected | self._refused.keys() == set(self._addresses):
                self._all_connected.set()
            if until_s is None and self._told_to_end.is_set():
                until_s = self._clock.now() + LAST_WAIT_S
                poller.unregister(sleeper)
            ready = [one for one, _ in poller.poll(None if until_s is None else QUIET_MS)]
            if until_s is not None and not any(one in numbers for one in ready):
                return
            for one in ready:
                if one in numbers:
                    self._take(one, self.folds[numbers[one]])
                elif one in monitors:
                    one.recv_multipart()
                    self._connected.add(monitors[one])

    def _take(self, subscriber: zmq.Socket[bytes], fold: EventFold) -> None:
        """All that waits."""
        while True:
            try:
                frames = subscriber.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) == 3 and len(frames[1]) == _NUMBER_BYTES:
                fold.take(int.from_bytes(frames[1], "big"), frames[2])


def reachable(address: str, url: str) -> str:
    """Where a publisher is found that tells where it bound: any host of its own is that of its server."""
    scheme, _, rest = address.partition("://")
    host, colon, port = rest.rpartition(":")
    if scheme != "tcp" or not colon or host.strip("[]") not in ("*", "0.0.0.0", "::", "localhost"):
        return address
    named = urlsplit(url).hostname or "127.0.0.1"
    return f"tcp://[{named}]:{port}" if ":" in named else f"tcp://{named}:{port}"
