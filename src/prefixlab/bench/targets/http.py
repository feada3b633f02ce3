"""A server over HTTP as a Target: sends a request in a dialect, yields what its stream brings.

Owns the connection pool and the stamps; the dialect owns the words. One target serves many requests at once
on one event loop. HTTP/1.1, connections reused, no proxy, no compression, no retry: a request is one attempt.

Invariant: a stream ends with a complete answer or with a TargetError that quotes what the server said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import msgspec

from prefixlab.bench.targets.dialects import Dialect, quote
from prefixlab.bench.targets.sse import SseParser
from prefixlab.core.clock import Clock
from prefixlab.core.errors import TargetError
from prefixlab.core.target import Chunk, Sent, TargetRequest

DONE = b"[DONE]"
# Shorter than uvicorn's 5 s, so that a connection is not used in the moment the server closes it.
KEEPALIVE_S = 4.0


def open_client(
    base_url: str,
    *,
    api_key: str | None = None,
    read_timeout_s: float = 1200.0,
    connect_timeout_s: float = 10.0,
) -> httpx.AsyncClient:
    """A pool without a limit on connections (a limit would queue requests where nobody sees it).

    `read_timeout_s` is the longest silence between two pieces of an answer, the wait for the first included.
    """
    headers = {"Accept-Encoding": "identity"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    return httpx.AsyncClient(
        base_url=base_url,
        headers=headers,
        timeout=httpx.Timeout(
            connect=connect_timeout_s, read=read_timeout_s, write=read_timeout_s, pool=None
        ),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_S
        ),
        trust_env=False,
    )


class HttpTarget:
    """See the module. The client is the caller's to close."""

    def __init__(
        self, client: httpx.AsyncClient, dialect: Dialect, clock: Clock, *, model: str | None = None
    ) -> None:
        self._client = client
        self._dialect = dialect
        self._clock = clock
        self._model = model

    async def stream(self, request: TargetRequest) -> AsyncIterator[Sent | Chunk]:
        """See `core.seams.Target`."""
        body = msgspec.json.encode(self._dialect.body(request, self._model))
        stamps = _Stamps(self._clock)
        http_request = self._client.build_request(
            "POST",
            self._dialect.path,
            content=body,
            headers={"Content-Type": "application/json"},
            extensions={"trace": stamps.trace},
        )
        try:
            response = await self._client.send(http_request, stream=True)
        except httpx.HTTPError as error:
            if stamps.sent_s is not None:
                yield stamps.as_sent()
            raise TargetError(describe(error)) from error
        try:
            yield stamps.as_sent()
            if response.status_code != 200:
                answer = quote(await response.aread())
                raise TargetError(f"HTTP {response.status_code} from {self._dialect.path}: {answer}")
            async for chunk in self._chunks(response):
                yield chunk
        except httpx.HTTPError as error:
            raise TargetError(describe(error)) from error
        finally:
            await response.aclose()

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[Chunk]:
        parser = SseParser()
        complete = False
        async for received in response.aiter_raw():
            arrival_s = self._clock.now()
            for payload in parser.feed(received):
                if payload == DONE:
                    complete = True
                    continue
                chunk = self._dialect.read(payload, arrival_s)
                complete = complete or chunk.finish_reason is not None
                yield chunk
        if parser.unfinished.strip():
            raise TargetError(f"the answer ended inside an event: {quote(parser.unfinished)}")
        if not complete:
            raise TargetError("the stream ended without a finish reason or [DONE]: the answer was cut short")


class _Stamps:
    """When the connection was opened and the request written, from httpcore's trace extension."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.sent_s: float | None = None
        self.connect_started_s: float | None = None
        self.connected_s: float | None = None

    async def trace(self, name: str, info: dict[str, Any]) -> None:
        if name == "connection.connect_tcp.started":
            self.connect_started_s = self._clock.now()
        elif name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self.connected_s = self._clock.now()
        elif name == "http11.send_request_headers.started":
            self.sent_s = self._clock.now()

    def as_sent(self) -> Sent:
        # A transport without httpcore under it (an in-process application) traces nothing: stamp it here.
        sent_s = self._clock.now() if self.sent_s is None else self.sent_s
        return Sent(sent_s, self.connect_started_s, self.connected_s)


def describe(error: httpx.HTTPError) -> str:
    """What went wrong on the way, in one sentence: httpx leaves some messages empty."""
    request = cast(httpx.Request | None, getattr(error, "_request", None))
    where = f" ({request.url})" if request is not None else ""
    kinds = {
        httpx.ConnectError: "could not connect",
        httpx.ConnectTimeout: "no connection within the time-out",
        httpx.ReadTimeout: "the server fell silent for longer than the read time-out",
        httpx.RemoteProtocolError: "the server broke off",
        httpx.ReadError: "the connection was reset",
    }
    kind = next((text for known, text in kinds.items() if isinstance(error, known)), type(error).__name__)
    detail = f": {error}" if str(error) else ""
    return f"{kind}{where}{detail}"
