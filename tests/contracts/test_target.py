"""What every Target must do, over the three dialects, against a server that can be told to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from prefixlab.bench.targets.dialects import ChatDialect, CompletionsDialect, Dialect, NativeDialect
from prefixlab.bench.targets.http import HttpTarget, open_client
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.errors import TargetError
from prefixlab.core.target import Chunk, Sent, TargetRequest
from tests.bench.fake_server import FakeServer, running

DIALECTS = {
    "native": NativeDialect,
    "completions": CompletionsDialect,
    "completions-continuous": lambda: CompletionsDialect(continuous_usage=True),
    "chat": ChatDialect,
    "chat-continuous": lambda: ChatDialect(continuous_usage=True),
}
WORDS = " the" * 40


@pytest.fixture(scope="module")
def served() -> Iterator[FakeServer]:
    with running(FakeServer()) as server:
        yield server


@pytest.fixture
def server(served: FakeServer) -> FakeServer:
    served.reset()
    return served


@pytest.fixture(params=list(DIALECTS))
def dialect(request: pytest.FixtureRequest) -> Dialect:
    made: Dialect = DIALECTS[request.param]()  # type: ignore[operator]
    return made


def a_request(dialect: Dialect, *, max_new_tokens: int = 4) -> TargetRequest:
    if isinstance(dialect, ChatDialect):
        return TargetRequest("r", max_new_tokens, messages=({"role": "user", "content": WORDS},))
    return TargetRequest("r", max_new_tokens, prompt_token_ids=as_token_ids(range(300, 340)))


def ask(
    server: FakeServer, dialect: Dialect, *, times: int = 1, read_timeout_s: float = 10.0
) -> list[list[Sent | Chunk]]:
    async def talk() -> list[list[Sent | Chunk]]:
        async with open_client(server.url, read_timeout_s=read_timeout_s) as client:
            target = HttpTarget(client, dialect, MonotonicClock(), model="fake")
            return [[item async for item in target.stream(a_request(dialect))] for _ in range(times)]

    return asyncio.run(talk())


def test_a_stream_is_one_sent_then_chunks_in_order_of_time(server: FakeServer, dialect: Dialect) -> None:
    (items,) = ask(server, dialect)
    sent, *chunks = items
    assert isinstance(sent, Sent)
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    arrivals = [chunk.arrival_s for chunk in chunks if isinstance(chunk, Chunk)]
    assert arrivals == sorted(arrivals)
    assert sent.sent_s <= arrivals[0]


def test_counts_finish_reason_and_cached_tokens_come_through(server: FakeServer, dialect: Dialect) -> None:
    _, second = ask(server, dialect, times=2)
    chunks = [item for item in second if isinstance(item, Chunk)]
    assert sum(chunk.carries_tokens for chunk in chunks) == 4
    assert [c.num_output_tokens for c in chunks if c.num_output_tokens is not None][-1] == 4
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["length"]
    cached = [c.num_cached_tokens for c in chunks if c.num_cached_tokens is not None]
    assert cached and cached[-1] > 0


def test_a_server_that_does_not_report_leaves_cached_tokens_none(
    server: FakeServer, dialect: Dialect
) -> None:
    server.behaviour.reports_cached = False
    _, second = ask(server, dialect, times=2)
    assert all(item.num_cached_tokens is None for item in second if isinstance(item, Chunk))


def test_a_connection_is_opened_once_and_its_time_stands_apart(server: FakeServer, dialect: Dialect) -> None:
    first, second = (items[0] for items in ask(server, dialect, times=2))
    assert isinstance(first, Sent) and isinstance(second, Sent)
    assert first.connect_started_s is not None and first.connected_s is not None
    assert first.connect_started_s <= first.connected_s <= first.sent_s
    assert (second.connect_started_s, second.connected_s) == (None, None)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("status", r"HTTP 503 .*queue is full"),
        ("stream_error", "out of pages"),
        ("cut", "cut short|ended"),
        ("reset", "broke off"),
        ("garbage", "not JSON"),
        ("not_sse", "ended|inside an event"),
        ("silence", "fell silent"),
    ],
)
def test_whatever_goes_wrong_is_a_target_error_that_says_what(
    server: FakeServer, dialect: Dialect, fault: str, message: str
) -> None:
    server.behaviour.fault = fault
    with pytest.raises(TargetError, match=message):
        ask(server, dialect, read_timeout_s=0.2 if fault == "silence" else 10.0)


def test_a_server_that_is_not_there_is_named(dialect: Dialect) -> None:
    nowhere = FakeServer()
    nowhere.url = "http://127.0.0.1:9"
    with pytest.raises(TargetError, match=r"could not connect \(http://127\.0\.0\.1:9/"):
        ask(nowhere, dialect)


def test_the_key_is_sent(server: FakeServer) -> None:
    async def headers() -> str:
        async with open_client(server.url, api_key="sesame") as client:
            return client.headers["Authorization"]

    assert asyncio.run(headers()) == "Bearer sesame"
