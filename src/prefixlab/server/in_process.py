"""The engine in this process as a Target: a scheduler, a cache and a runner with no socket before them.

Owns the translation of a TargetRequest to a call on the engine loop, spelt as `/generate` would take it, so
that whatever is honoured or refused there is so here. Works with any engine, a simulated one too.

Stamps are taken on the engine's thread as tokens are committed: how late the event loop hears of them changes
no number. (It does share the interpreter with the engine.)

Invariant: one chunk per token, and one that ends the stream; counts are exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from prefixlab.cache.config import CacheConfig
from prefixlab.core.clock import Clock
from prefixlab.core.errors import NotIdleError, PrefixlabError, TargetError
from prefixlab.core.request import FinishReason
from prefixlab.core.target import Chunk, Sent, TargetRequest
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.server.api.admin import info_of
from prefixlab.server.api.native import read_asks, read_body
from prefixlab.server.api.prompts import make_call
from prefixlab.server.calls import Call, Update
from prefixlab.server.config import ServerConfig
from prefixlab.server.launch import Engine, make_worker
from prefixlab.server.worker import Worker

FLUSH_TIMEOUT_S = 30.0


@contextmanager
def engine_target(
    engine: Engine,
    cache_config: CacheConfig,
    scheduler_config: SchedulerConfig,
    clock: Clock,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[EngineTarget]:
    """Run `engine` for as long as the block. `settings` are what `info` tells besides."""
    worker = make_worker(
        engine,
        cache_config=cache_config,
        scheduler_config=scheduler_config,
        server_config=ServerConfig(),
        clock=clock,
        settings=settings,
    )
    target = EngineTarget(worker)
    try:
        yield target
    finally:
        target.close()


class EngineTarget:
    """A `core.seams.Target`, stamping with the clock of its worker.

    May be asked from one event loop after another, as long as nothing is under way while it changes. `flush`,
    `info` and `close` are for a thread that runs no event loop.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def stream(self, request: TargetRequest) -> AsyncIterator[Sent | Chunk]:
        """See `core.seams.Target`. Left early, the request is aborted."""
        worker = self._worker
        worker.loop.start()
        try:
            call = await self._call(request)
            with worker.loop.running(call):
                yield Sent(call.choices[0].arrival_s)
                while not call.is_finished:
                    await call.changed()
                    for chunk in call.take_chunks():
                        yield chunk
            if call.was_aborted:
                raise TargetError("the engine aborted the request")
        except TargetError:
            raise
        except PrefixlabError as error:
            raise TargetError(f"the engine: {error}") from None

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> bool:
        """Empty the cache; False if requests were still under way after `timeout_s`."""

        async def flush() -> bool:
            self._worker.loop.start()
            try:
                await self._worker.loop.flush(timeout_s)
            except NotIdleError:
                return False
            return True

        return asyncio.run(flush())

    def info(self) -> dict[str, Any]:
        """As `/server_info` says it: plain data."""
        info: dict[str, Any] = msgspec.to_builtins(info_of(self._worker))
        return info

    def close(self) -> None:
        """End the engine's thread, once it is through with its step."""
        if self._worker.loop.is_running:
            asyncio.run(self._worker.loop.stop())

    async def _call(self, request: TargetRequest) -> _StampedCall:
        body = read_body(self._body(request))
        asks, is_batch = await read_asks(self._worker, body, request.request_id)
        if is_batch:
            raise TargetError("one request has one prompt and one answer here")
        return _StampedCall(make_call(self._worker, request.request_id, asks, stream=True))

    def _body(self, request: TargetRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "sampling_params": {
                "temperature": request.temperature,
                "max_new_tokens": request.max_new_tokens,
                "ignore_eos": request.ignore_eos,
            }
        }
        if request.prompt_token_ids is not None:
            body["input_ids"] = request.prompt_token_ids.tolist()
        elif request.messages is not None:
            body["text"] = self._worker.tokenizer.apply_chat_template(request.messages)
        else:
            body["text"] = request.prompt_text
        return body | request.extra_body


class _StampedCall(Call):
    """A call of one request that keeps its updates apart, each with its time."""

    def __init__(self, call: Call) -> None:
        super().__init__(call.rid, call.work, stream=True)
        self._chunks: list[Chunk] = []

    def apply(self, update: Update) -> None:
        super().apply(update)
        choice, ended = self.choices[update.index], update.ended
        chunk = Chunk(
            update.time_s,
            update.text,
            carries_tokens=bool(update.token_ids),
            num_output_tokens=len(choice.token_ids),
            num_prompt_tokens=len(choice.prompt_token_ids),
            num_cached_tokens=choice.num_cached_tokens if choice.started else None,
            finish_reason=None if ended is None else ended.reason.value,
            token_ids=list(update.token_ids),
        )
        self._chunks.append(chunk)

    def take_chunks(self) -> list[Chunk]:
        """Those that came since the last time."""
        chunks, self._chunks = self._chunks, []
        return chunks

    @property
    def was_aborted(self) -> bool:
        """By somebody who is not its client: the engine shuts down."""
        ended = self.choices[0].ended
        return ended is not None and ended.reason is FinishReason.ABORT
