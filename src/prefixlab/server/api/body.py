"""From bytes to typed bodies, and back: reading within the limit, decoding strictly, naming what is wrong.

Owns the one way a JSON body becomes a msgspec Struct. Invariant: whatever the bytes are, the outcome is a
valid body or an error that says where it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from prefixlab.core.errors import InvalidRequestError
from prefixlab.server.api.known_fields import honoured

T = TypeVar("T", bound=msgspec.Struct)

_encode = msgspec.json.Encoder().encode
_PATH = re.compile(r" - at `\$\.?(.*?)`$")


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        HTTPException: 413, it is larger than `max_bytes`.
        InvalidRequestError: it is not a JSON object.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise HTTPException(413, f"the body is larger than {max_bytes} bytes")
        chunks.append(chunk)
    try:
        given = msgspec.json.decode(b"".join(chunks))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return given


def convert(
    given: dict[str, Any],
    kind: type[T],
    scope: str,
    inside: Mapping[str, type[msgspec.Struct]] = MappingProxyType({}),
) -> T:
    """A typed body from a JSON object, by the rules of `known_fields`.

    Args:
        scope: the part of the table for the object itself.
        inside: types of the objects (or lists of them) it holds, by field; the field is their scope.

    Raises:
        InvalidRequestError: a field is unknown, not honoured, or of the wrong type; it is named.
    """
    kept = honoured(given, scope, kind.__struct_fields__)
    for field, inner in inside.items():
        if field in kept:
            kept[field] = _honoured_inside(kept[field], field, inner, field)
    try:
        return msgspec.convert(kept, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        where = _PATH.search(message)
        if where is None:
            raise InvalidRequestError(message) from None
        field = where.group(1)
        raise InvalidRequestError(f"{field}: {message[: where.start()]}", field) from None


def _honoured_inside(value: Any, scope: str, kind: type[msgspec.Struct], path: str) -> Any:
    if isinstance(value, dict):
        return honoured(value, scope, kind.__struct_fields__, path + ".")
    if isinstance(value, list):
        return [_honoured_inside(item, scope, kind, f"{path}[{index}]") for index, item in enumerate(value)]
    return value  # of a wrong type, which the conversion names


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(body), status, headers, "application/json")


def event(body: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(body) + b"\n\n"
