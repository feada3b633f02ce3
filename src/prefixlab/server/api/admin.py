"""What operators and benchmarks ask: health, metrics, what this worker is, to forget, to abort.

Owns these endpoints' types. Health, info and metrics answer from the loop's last state, so they answer at
once even while a long step runs.

Invariant: a flush that says success dropped everything of every namespace; one that could not says so with a
status that is not 200; one whose client left before it could happen never does.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response

import prefixlab
from prefixlab.core.block_hash import Namespace
from prefixlab.core.errors import (
    InvalidRequestError,
    NotIdleError,
    RequestTimeoutError,
    ShuttingDownError,
)
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.server.api import known_fields
from prefixlab.server.api.body import convert, json_response, read_json
from prefixlab.server.api.prompts import Ask, check_token_ids, make_call, new_id
from prefixlab.server.api.stream import answer, while_connected
from prefixlab.server.errors import ErrorDetail, describe
from prefixlab.server.metrics import CONTENT_TYPE
from prefixlab.server.worker import Worker

HEALTH_TIMEOUT_S = 20.0
MAX_FLUSH_WAIT_S = 3600.0
_HEALTH_NAMESPACE = Namespace("prefixlab-health")


class Health(Struct, kw_only=True):
    status: str = "ok"


class FlushResponse(Struct, kw_only=True):
    """What was dropped, over all namespaces and tiers."""

    success: bool
    num_dropped_pages: int
    num_dropped_tokens: int


class FlushRefused(Struct, kw_only=True):
    success: bool
    error: ErrorDetail


class AbortRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """`rid` of a call or of one of its requests; or everything."""

    rid: str | None = None
    abort_all: bool | None = None


class AbortResponse(Struct, kw_only=True):
    num_aborted: int


class TokenStates(Struct, kw_only=True):
    """Tokens the pages can hold: capacity = free + cached + in_use, and cached = evictable + protected."""

    capacity: int
    free: int
    cached: int
    evictable: int
    protected: int
    in_use: int


class ServerInfo(Struct, kw_only=True):
    """Beside these, every setting by its name, secrets masked."""

    prefixlab_version: str
    version: str
    served_model_name: str
    vocab_size: int
    max_model_len: int
    page_size: int
    num_pages: int
    max_total_num_tokens: int
    tokens: TokenStates
    num_waiting: int
    num_running: int
    is_idle: bool
    kv_events: dict[str, Any] | None


async def health(request: Request) -> Response:
    worker: Worker = request.app.state.worker
    if not worker.loop.is_healthy:
        # 503 whatever the reason: it is what those who watch servers look for.
        body = describe(worker.loop.death or ShuttingDownError("the server is shutting down")).body
        return json_response(body, 503)
    return json_response(Health())


async def health_generate(request: Request) -> Response:
    """Whether a token can be computed, not only whether a thread is alive."""
    worker: Worker = request.app.state.worker
    ask = Ask(
        rid=new_id("health-"),
        token_ids=check_token_ids(worker, [0], "prompt"),
        sampling=SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True),
        namespace=_HEALTH_NAMESPACE,
    )
    call = make_call(worker, ask.rid, [ask], stream=False)
    try:
        await asyncio.wait_for(answer(request, worker, call), HEALTH_TIMEOUT_S)
    except TimeoutError:
        raise RequestTimeoutError(f"no token within {HEALTH_TIMEOUT_S:g} s") from None
    return json_response(Health())


async def metrics(request: Request) -> Response:
    worker: Worker = request.app.state.worker
    return Response(worker.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def server_info(request: Request) -> Response:
    return json_response(info_of(request.app.state.worker))


def info_of(worker: Worker) -> dict[str, Any]:
    """What `/server_info` says: every setting, and ServerInfo."""
    stats = worker.loop.stats
    pages, size = stats.cache, worker.page_size
    info = ServerInfo(
        prefixlab_version=prefixlab.__version__,
        version=prefixlab.__version__,
        served_model_name=worker.model_name,
        vocab_size=worker.vocab_size,
        max_model_len=worker.max_model_len,
        page_size=size,
        num_pages=worker.num_pages,
        max_total_num_tokens=worker.max_total_tokens,
        tokens=TokenStates(
            capacity=worker.max_total_tokens,
            free=pages.num_free_pages * size,
            cached=pages.num_cached_pages * size,
            evictable=pages.num_evictable_pages * size,
            protected=pages.num_protected_pages * size,
            in_use=pages.num_in_use_pages * size,
        ),
        num_waiting=stats.num_waiting,
        num_running=stats.num_running,
        is_idle=stats.is_idle,
        kv_events=worker.kv_events,
    )
    return worker.settings | asdict(info)


async def flush_cache(request: Request) -> Response:
    worker: Worker = request.app.state.worker
    try:
        flushed = await while_connected(request, worker.loop.flush(_timeout_s(request)))
    except NotIdleError as error:
        status, body, headers = describe(error)
        return json_response(FlushRefused(success=False, error=body.error), status, headers)
    return json_response(
        FlushResponse(
            success=True,
            num_dropped_pages=flushed.num_dropped_pages,
            num_dropped_tokens=flushed.num_dropped_tokens,
        )
    )


async def abort_request(request: Request) -> Response:
    worker: Worker = request.app.state.worker
    given = await read_json(request, worker.config.max_body_bytes)
    body = convert(given, AbortRequest, known_fields.ABORT)
    if (body.rid is None) == (not body.abort_all):
        raise InvalidRequestError("give either rid or abort_all", "rid")
    return json_response(AbortResponse(num_aborted=worker.loop.abort(body.rid)))


def _timeout_s(request: Request) -> float:
    """`?timeout=` in seconds; 0 asks for now or never."""
    for name in request.query_params:
        if name != "timeout":
            raise InvalidRequestError(f"unknown query parameter {name!r}", name)
    text = request.query_params.get("timeout", "0")
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 <= timeout_s <= MAX_FLUSH_WAIT_S:
        raise InvalidRequestError(
            f"timeout must lie between 0 and {MAX_FLUSH_WAIT_S:g} seconds, not {text!r}", "timeout"
        )
    return timeout_s
