"""The one place where errors become HTTP: status, OpenAI's error shape, and what to do while a stream runs.

Owns the table from `core/errors.py`'s tree. Invariant: every error of the tree has exactly one row (the most
specific that fits), and an error outside it is a bug of ours: 500, logged whole, shown without its insides.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import msgspec
from starlette.exceptions import HTTPException

from prefixlab.core import errors

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1


class ErrorDetail(msgspec.Struct, kw_only=True):
    """OpenAI's four fields; `param` is the field at fault, as the client spelt it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(msgspec.Struct):
    """The body of every answer that is not a success, and of an error event in a stream."""

    error: ErrorDetail


class Answer(NamedTuple):
    """An error as HTTP."""

    status: int
    body: ErrorResponse
    headers: dict[str, str]


class _Row(NamedTuple):
    status: int
    type: str
    code: str | None = None


# First match wins, so a class stands before its parents.
_TABLE: tuple[tuple[type[Exception], _Row], ...] = (
    (errors.ContextLengthError, _Row(400, "invalid_request_error", "context_length_exceeded")),
    (errors.ModelNotFoundError, _Row(404, "not_found_error", "model_not_found")),
    (errors.AuthenticationError, _Row(401, "authentication_error", "invalid_api_key")),
    (errors.RequestError, _Row(400, "invalid_request_error")),
    (errors.NotIdleError, _Row(400, "not_idle_error", "not_idle")),
    (errors.QueueFullError, _Row(503, "overloaded_error", "queue_full")),
    (errors.RequestTimeoutError, _Row(504, "timeout_error", "timeout")),
    (errors.ShuttingDownError, _Row(503, "overloaded_error", "shutting_down")),
    (errors.OverloadedError, _Row(503, "overloaded_error")),
    (errors.EngineError, _Row(500, "server_error", "engine_error")),
    (errors.CacheError, _Row(500, "server_error", "cache_error")),
    (errors.PrefixlabError, _Row(500, "server_error")),
)
_HTTP_TYPES = {404: "not_found_error", 405: "invalid_request_error", 413: "invalid_request_error"}


def describe(error: BaseException) -> Answer:
    """What a client is told about `error`, wherever it came from."""
    for kind, row in _TABLE:
        if isinstance(error, kind):
            param = getattr(error, "param", None)
            detail = ErrorDetail(message=str(error), type=row.type, param=param, code=row.code)
            return Answer(row.status, ErrorResponse(detail), _headers(row.status))
    if isinstance(error, HTTPException):
        detail = ErrorDetail(
            message=error.detail, type=_HTTP_TYPES.get(error.status_code, "invalid_request_error")
        )
        return Answer(error.status_code, ErrorResponse(detail), dict(error.headers or {}))
    log.error("a bug of prefixlab", exc_info=error)
    detail = ErrorDetail(message=f"internal error ({type(error).__name__}); see the log", type="server_error")
    return Answer(500, ErrorResponse(detail), {})


def _headers(status: int) -> dict[str, str]:
    if status == 503:
        return {"retry-after": str(RETRY_AFTER_S)}
    if status == 401:
        return {"www-authenticate": "Bearer"}
    return {}
