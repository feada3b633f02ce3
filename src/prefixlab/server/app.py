"""The ASGI app: the table of endpoints, keys, errors, and the loop's life inside the app's.

Owns nothing but the composition; `openapi.py` is made from the same table, so it lists what is served.

Invariant: every answer that is not a success has the shape of `errors.ErrorResponse`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from prefixlab.core.errors import PrefixlabError
from prefixlab.server.access import Access, check_access
from prefixlab.server.api import admin, chat, completions, native, openai
from prefixlab.server.api.body import json_response
from prefixlab.server.api.openapi import Endpoint, openapi_document
from prefixlab.server.calls import ClientGoneError
from prefixlab.server.errors import describe
from prefixlab.server.worker import Worker

Handler = Callable[[Request], Awaitable[Response]]


async def index(request: Request) -> Response:
    """What `/v1` offers."""
    paths = [endpoint.path for endpoint in ENDPOINTS if endpoint.path.startswith("/v1/")]
    return json_response(openai.Index(model=request.app.state.worker.model_name, endpoints=paths))


async def openapi(request: Request) -> Response:
    return json_response(openapi_document(ENDPOINTS))


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "/generate",
        native.generate,
        "Generate, SGLang's native API",
        body=native.GenerateRequest,
        answer=native.GenerateResponse,
        event=native.GenerateResponse,
        answers_lists=True,
    ),
    Endpoint("/v1", index, "What the OpenAI API offers here", methods=("GET",), answer=openai.Index),
    Endpoint("/v1/models", openai.list_models, "The model", methods=("GET",), answer=openai.ModelList),
    Endpoint("/v1/models/{model:path}", openai.get_model, "One model", methods=("GET",), answer=openai.Model),
    Endpoint(
        "/v1/completions",
        completions.completions,
        "Complete a prompt",
        body=completions.CompletionRequest,
        answer=completions.Completion,
        event=completions.Completion,
    ),
    Endpoint(
        "/v1/chat/completions",
        chat.chat_completions,
        "Answer a conversation",
        body=chat.ChatRequest,
        answer=chat.ChatCompletion,
        event=chat.ChatCompletionChunk,
    ),
    Endpoint(
        "/server_info", admin.server_info, "Settings and state", methods=("GET",), answer=admin.ServerInfo
    ),
    Endpoint(
        "/flush_cache",
        admin.flush_cache,
        "Forget everything cached, when idle",
        methods=("GET", "POST"),
        access=Access.ADMIN,
        query={"timeout": "seconds to wait for the server to become idle (default 0)"},
        answer=admin.FlushResponse,
    ),
    Endpoint(
        "/abort_request",
        admin.abort_request,
        "Abort requests",
        access=Access.ADMIN,
        body=admin.AbortRequest,
        answer=admin.AbortResponse,
    ),
    Endpoint(
        "/health",
        admin.health,
        "Whether work is taken",
        methods=("GET",),
        access=Access.OPEN,
        answer=admin.Health,
    ),
    Endpoint(
        "/health_generate",
        admin.health_generate,
        "Whether a token can be computed",
        methods=("GET",),
        access=Access.OPEN,
        answer=admin.Health,
    ),
    Endpoint("/metrics", admin.metrics, "For Prometheus", methods=("GET",), access=Access.OPEN),
    Endpoint("/openapi.json", openapi, "This document", methods=("GET",)),
)


def build_app(worker: Worker) -> Starlette:
    """The app of one worker; its lifespan starts and stops the worker's loop."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.loop.start()
        try:
            yield
        finally:
            await worker.loop.stop()

    app = Starlette(
        routes=[
            Route(endpoint.path, _guarded(endpoint), methods=list(endpoint.methods)) for endpoint in ENDPOINTS
        ],
        exception_handlers={
            PrefixlabError: _on_error,
            HTTPException: _on_error,
            ClientGoneError: _on_client_gone,
            ClientDisconnect: _on_client_gone,
            Exception: _on_error,
        },
        lifespan=lifespan,
    )
    app.state.worker = worker
    return app


def _guarded(endpoint: Endpoint) -> Handler:
    async def handler(request: Request) -> Response:
        worker: Worker = request.app.state.worker
        check_access(worker.config, endpoint.access, request.headers.get("authorization"))
        return await endpoint.handler(request)

    return handler


async def _on_error(request: Request, error: Exception) -> Response:
    status, body, headers = describe(error)
    return json_response(body, status, headers)


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
