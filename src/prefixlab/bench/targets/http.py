"""A server over HTTP as a Target: sends a request in a dialect, yields what its stream brings.

Owns the connection pool and the stamps; the dialect owns the words. One target serves many requests at once
on one event loop. HTTP/1.1, connections reused, no proxy, no compression, no retry: a request is one attempt.

Invariant: a stream ends with a complete answer or with a TargetError that quotes what the server said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from prefixlab.bench.targets.admin import describe
from prefixlab.bench.targets.dialects import Dialect, quote
from prefixlab.core.clock import Clock
from prefixlab.core.errors import TargetError
from prefixlab.core.target import Chunk, Sent, TargetRequest

DONE = b"[DONE]"


class HttpTarget:
    """See the module."""

    def __init__(
        self,
        url: str,
        dialect: Dialect,
        clock: Clock,
        *,
        model: str | None = None,
        api_key: str | None = None,
        read_timeout_s: float = 1200.0,
    ) -> None:
        self._dialect = dialect
        self._clock = clock
        self._model = model
        headers = {"Accept-Encoding": "identity"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._settings: dict[str, Any] = {
            "base_url": url,
            "headers": headers,
            "timeout": httpx.Timeout(10.0, read=read_timeout_s, pool=None),
            "trust_env": False,
        }

    async def stream(self, request: TargetRequest) -> AsyncIterator[Sent | Chunk]:
        """See `core.seams.Target`."""
        async with httpx.AsyncClient(**self._settings) as client:
            async for item in self._stream(client, request):
                yield item

    async def _stream(self, client: httpx.AsyncClient, request: TargetRequest) -> AsyncIterator[Sent | Chunk]:
        body = msgspec.json.encode(self._dialect.body(request, self._model))
        stamps = _Stamps(self._clock)
        http_request = client.build_request(
            "POST",
            self._dialect.path,
            content=body,
            headers={"Content-Type": "application/json"},
            extensions={"trace": stamps.trace},
        )
        try:
            response = await client.send(http_request, stream=True)
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


class SseParser:
    """Feed it bytes as they arrive; it gives back the payloads that became complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[bytes]:
        payloads: list[bytes] = []
        lines = (self._rest + received).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    payloads.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return payloads

    @property
    def unfinished(self) -> bytes:
        """What arrived after the last complete event: empty after a stream that ended well."""
        return b"\n".join([*self._data, self._rest]) if self._data else self._rest
