"""What every EventSink keeps: order, and never holding up the one who emits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from prefixlab.core.kv_events import AllBlocksCleared, BlockRemoved, KVEvent
from prefixlab.core.seams import EventSink
from tests.fakes import EventList
from tests.server.kv_subscriber import publishing, replayed, stored, wait_until

Heard = Callable[[], Sequence[KVEvent]]


@pytest.fixture(params=["list", "zmq"])
def sink_and_heard(request: pytest.FixtureRequest) -> Iterator[tuple[EventSink, Heard]]:
    if request.param == "list":
        events = EventList()
        yield events, lambda: events.events
        return
    with publishing() as publisher:
        yield publisher, lambda: [event for _, batch in replayed(publisher, 0) for event in batch.events]


class TestEventSink:
    def test_events_are_heard_in_the_order_they_happened(
        self, sink_and_heard: tuple[EventSink, Heard]
    ) -> None:
        sink, heard = sink_and_heard
        events: list[KVEvent] = [AllBlocksCleared(), stored(1), stored(7), BlockRemoved(block_hashes=[1])]
        sink.emit(events[:1])
        sink.emit(events[1:3])
        sink.emit(events[3:])
        wait_until(lambda: len(heard()) == len(events))
        assert list(heard()) == events

    def test_nothing_can_be_emitted(self, sink_and_heard: tuple[EventSink, Heard]) -> None:
        sink, heard = sink_and_heard
        sink.emit([])
        sink.emit([stored(1)])
        wait_until(lambda: len(heard()) == 1)

    def test_a_burst_that_nobody_listens_to_is_taken(self, sink_and_heard: tuple[EventSink, Heard]) -> None:
        sink, heard = sink_and_heard
        for block in range(2000):
            sink.emit([BlockRemoved(block_hashes=[block])])
        wait_until(lambda: len(heard()) == 2000)
