"""The server's edge with faults in it: an ASGI app around the real one, which knows nothing of them.

Owns when a fault strikes, and the made-up traffic. The server's own counters stay true (`/metrics` only gains
a label that names the faults): what is false in answers can be found out there.

Invariant: without a fault of its kind a message passes as it is; the same seed and order of requests strikes
the same ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import msgspec

from prefixlab.simulator.faults.answers import Stream, as_chunk, events_of, falsify, shorten
from prefixlab.simulator.faults.spec import Faults, parse_faults

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

GENERATING = ("/generate", "/v1/completions", "/v1/chat/completions")
FOREIGN_PROMPT_TOKENS, FOREIGN_OUTPUT_TOKENS = 256, 8
METRIC = "prefixlab:sim_fault"


class FaultyEdge:
    """See the module. An `Edge` of `server/launch.py`.

    Args:
        words: as `--sim-fault` was given.
        vocab_size: what made-up prompts are made of.
        api_key: what they need to be let in.
    """

    def __init__(
        self, words: Sequence[str], *, vocab_size: int, seed: int = 0, api_key: str | None = None
    ) -> None:
        self._words = tuple(words)
        self._faults = parse_faults(words)
        self._vocab_size = vocab_size
        self._api_key = api_key
        self._chance = random.Random(seed)
        self._foreign_chance = random.Random(seed + 1)

    @property
    def accept_every_s(self) -> float | None:
        """Of the listener: seconds between two connections."""
        return self._faults.accept_every_s

    def describe(self) -> str:
        return f"faults on purpose: {', '.join(self._words)}"

    def wrap(self, app: App) -> App:
        async def faulty(scope: Message, receive: Receive, send: Send) -> None:
            await self._run(app, scope, receive, send)

        return faulty

    async def _run(self, app: App, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            async with contextlib.AsyncExitStack() as running:
                await app(scope, receive, self._starting(app, running, send))
            return
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        path = scope["path"]
        if self._faults.accept_every_s is not None:
            send = _closing(send)
        if path == "/flush_cache" and self._faults.keeps_on_flush:
            await _answer(send, 200, {"success": True, "num_dropped_pages": 0, "num_dropped_tokens": 0})
        elif path == "/metrics":
            await app(scope, receive, _Whole(send, self._labelled).send)
        elif path in GENERATING and scope["method"] == "POST":
            await self._generate(app, scope, receive, send)
        else:
            await app(scope, receive, send)

    async def _generate(self, app: App, scope: Message, receive: Receive, send: Send) -> None:
        faults = self._faults
        if faults.drop_share and self._chance.random() < faults.drop_share:
            error = {
                "message": "dropped on purpose",
                "type": "overloaded_error",
                "param": None,
                "code": "fault",
            }
            await _answer(send, 503, {"error": error})
            return
        was_shortened = False
        if faults.eos_rate:
            receive, was_shortened = await self._shortened(receive)
        stalls = bool(faults.stall_s) and self._chance.random() < faults.stall_share
        answer = _FaultyAnswer(send, faults, was_shortened=was_shortened, stalls=stalls)
        await app(scope, receive, answer.send)

    async def _shortened(self, receive: Receive) -> tuple[Receive, bool]:
        """The request with its limits where the end of sequence would have come."""
        raw, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return _first(message, receive), False
            raw += message.get("body", b"")
            more = message.get("more_body", False)
        was_shortened = False
        try:
            body = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            body = None  # the server says what is wrong with it
        if isinstance(body, dict) and (was_shortened := shorten(body, self._faults, self._chance)):
            raw = msgspec.json.encode(body)
        return _first({"type": "http.request", "body": raw, "more_body": False}, receive), was_shortened

    def _labelled(self, body: bytes) -> bytes:
        lines = [f"# HELP {METRIC} A fault that is there on purpose", f"# TYPE {METRIC} gauge"]
        lines += [f'{METRIC}{{fault="{word}"}} 1.0' for word in self._words]
        return body.rstrip(b"\n") + b"\n" + "\n".join(lines).encode() + b"\n"

    # Traffic of nobody's. ---------------------------------------------------------------------------------

    def _starting(self, app: App, running: contextlib.AsyncExitStack, send: Send) -> Send:
        async def started(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete" and self._faults.foreign_per_s:
                await running.enter_async_context(self._foreign_traffic(app))
            await send(message)

        return started

    @contextlib.asynccontextmanager
    async def _foreign_traffic(self, app: App) -> AsyncIterator[None]:
        async def keep_coming() -> None:
            async with asyncio.TaskGroup() as asked:
                while True:
                    await asyncio.sleep(1 / self._faults.foreign_per_s)
                    asked.create_task(self._ask(app))

        traffic = asyncio.create_task(keep_coming())
        try:
            yield
        finally:
            traffic.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await traffic

    async def _ask(self, app: App) -> None:
        """One request from within, past the faults: new tokens, so that it takes room and shares nothing."""
        chance = self._foreign_chance
        prompt = [chance.randrange(self._vocab_size) for _ in range(FOREIGN_PROMPT_TOKENS)]
        sampling = {"max_new_tokens": FOREIGN_OUTPUT_TOKENS, "ignore_eos": True}
        body = msgspec.json.encode({"input_ids": prompt, "sampling_params": sampling})
        headers = [(b"content-type", b"application/json")]
        if self._api_key is not None:
            headers.append((b"authorization", b"Bearer " + self._api_key.encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/generate",
            "raw_path": b"/generate",
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": None,
        }
        never = asyncio.Event()

        async def stays() -> Message:
            await never.wait()
            raise AssertionError("nobody leaves")

        async def unread(message: Message) -> None:
            pass

        request = {"type": "http.request", "body": body, "more_body": False}
        await app(scope, _first(request, stays), unread)


class _FaultyAnswer:
    """Passes an answer on, falsified: a stream event by event, another one whole."""

    def __init__(self, send: Send, faults: Faults, *, was_shortened: bool, stalls: bool) -> None:
        self._send = send
        self._faults = faults
        self._was_shortened = was_shortened
        self._stalls = stalls
        self._stream: Stream | None = None
        self._whole = _Whole(send, self._falsified)
        self._is_success = False
        self._num_messages = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._is_success = message["status"] == 200
            if self._is_success and kind.startswith(b"text/event-stream"):
                self._stream = Stream(self._faults, was_shortened=self._was_shortened)
        if not self._is_success:
            await self._send(message)
        elif self._stream is None:
            await self._whole.send(message)
        elif message["type"] == "http.response.start":
            await self._send(message)
        else:
            await self._pass_on(self._stream, message)

    async def _pass_on(self, stream: Stream, message: Message) -> None:
        self._num_messages += 1
        if self._stalls and self._num_messages == STALL_BEFORE:
            await asyncio.sleep(self._faults.stall_s)
        events = stream.of(events_of(message.get("body", b"")))
        if events or not message.get("more_body"):
            await self._send({**message, "body": as_chunk(events)})

    def _falsified(self, body: bytes) -> bytes:
        answer = msgspec.json.decode(body)
        falsify(answer, self._faults, was_shortened=self._was_shortened)
        return msgspec.json.encode(answer)


STALL_BEFORE = 4
"""Of a stream's messages: some tokens came, more will."""


class _Whole:
    """Passes an answer on once all of it is there, changed."""

    def __init__(self, send: Send, change: Callable[[bytes], bytes]) -> None:
        self._send = send
        self._change = change
        self._start: Message = {}
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = self._change(self._body)
        kept = [(name, value) for name, value in self._start["headers"] if name != b"content-length"]
        await self._send({**self._start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})


def _closing(send: Send) -> Send:
    """The connection goes with the answer, so that the next request needs another."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return closing


def _first(message: Message, then: Receive) -> Receive:
    """`message`, and after it what comes."""
    waiting = [message]

    async def receive() -> Message:
        return waiting.pop() if waiting else await then()

    return receive


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    data = msgspec.json.encode(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
