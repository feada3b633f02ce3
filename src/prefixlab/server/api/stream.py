"""Answers that wait for the engine: watching the connection meanwhile, and server-sent events.

Owns the two ways a call is answered, whole or as a stream, and what happens when the client goes away: the
call is aborted and its pages come back, other work is cancelled. One write per engine step and stream,
whatever it carries.

Invariant: leaving either way leaves no request of the call running.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from prefixlab.server.api.body import event
from prefixlab.server.calls import Call, Choice, ClientGoneError
from prefixlab.server.errors import describe
from prefixlab.server.worker import Worker

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"

Render = Callable[[list[Choice], bool], bytes]
"""(choices with news, whether that was all) → the events to send."""


async def answer(request: Request, worker: Worker, call: Call) -> list[Choice]:
    """Run the call to its end.

    Raises:
        ClientGoneError: nobody waits any more.
        PrefixlabError: a request could not be queued, or did not succeed.
    """
    with worker.loop.running(call):
        async with _watching(request.receive, call.client_gone):
            return await call.finished()


class EventStream(Response):
    """A call's answer as server-sent events. An error before the first event is an ordinary error response
    (it is raised); a later one is an event, and the stream ends without `[DONE]`."""

    media_type = "text/event-stream"

    def __init__(self, worker: Worker, call: Call, render: Render) -> None:
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._worker = worker
        self._call = call
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._call
        with self._worker.loop.running(call):
            async with _watching(receive, call.client_gone):
                await call.accepted()
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                is_last = False
                while not is_last:
                    try:
                        changed = await call.changed()
                        is_last = call.is_finished
                        payload = self._render(changed, is_last) + (DONE if is_last else b"")
                    except ClientGoneError:
                        return
                    except Exception as error:
                        is_last = True
                        payload = event(describe(error).body)
                    await send({"type": "http.response.body", "body": payload, "more_body": not is_last})


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; it is cancelled when the client leaves.

    Raises:
        ClientGoneError: nobody waits any more.
    """
    task = asyncio.create_task(work)
    try:
        async with _watching(request.receive, task.cancel):
            await asyncio.wait([task])
    finally:
        task.cancel()  # for when we are cancelled ourselves
    if task.cancelled():
        raise ClientGoneError
    return task.result()


@contextlib.asynccontextmanager
async def _watching(receive: Receive, on_gone: Callable[[], object]) -> AsyncIterator[None]:
    """Call `on_gone` when the client disconnects."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        on_gone()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
