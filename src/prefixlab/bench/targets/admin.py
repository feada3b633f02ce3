"""Asking a server about itself: the HTTP client for admin endpoints, never for anything that is measured.

Owns how such a request is sent and what its failures are called. What the answers mean is `control.py`'s.

Invariant: whatever goes wrong on the way is a TargetError that says where and what, in the server's words.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, cast

import httpx
import msgspec

from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.targets.dialects import quote
from prefixlab.bench.targets.hints import with_hint
from prefixlab.core.errors import TargetError

NO_SETTINGS = TargetConfig()
ANSWER_TIMEOUT_S = 40.0
"""Longer than a server is asked to wait for idle before it empties its cache."""


def open_admin(url: str, config: TargetConfig = NO_SETTINGS) -> httpx.Client:
    """A client for the server at `url`, with the keys, headers and time-out of `config`: no proxy, no retry.
    The caller closes it."""
    headers = config.headers()
    api_key = config.admin_api_key or config.api_key
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    return httpx.Client(
        base_url=url,
        headers=headers,
        verify=_trust(check=not config.insecure),
        timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=config.connect_timeout_s),
        trust_env=False,
    )


def _trust(*, check: bool) -> ssl.SSLContext:
    """The system's store, or SSL_CERT_FILE, as of measured requests: not the one httpx brings along."""
    context = ssl.create_default_context()
    if not check:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def request(
    client: httpx.Client, method: str, path: str, *, timeout_s: float = ANSWER_TIMEOUT_S
) -> httpx.Response:
    """One request, whatever the status of its answer. Raises TargetError if no answer came."""
    connect_s = min(client.timeout.connect or timeout_s, timeout_s)
    try:
        return client.request(method, path, timeout=httpx.Timeout(timeout_s, connect=connect_s))
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise TargetError(f"{describe(error)}; is it running at {client.base_url}?") from error
    except httpx.HTTPError as error:
        raise TargetError(describe(error)) from error


def json_object(response: httpx.Response, path: str) -> Mapping[str, Any]:
    """The answer as an object. Raises TargetError for any other, and for a status that is no success."""
    if not response.is_success:
        error = f"HTTP {response.status_code} from {path}: {quote(response.content)}"
        raise TargetError(with_hint(error, str(response.request.url).removesuffix(path)))
    try:
        return msgspec.json.decode(response.content, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError):
        raise TargetError(f"{path} did not answer with a JSON object: {quote(response.content)}") from None


def describe(error: httpx.HTTPError) -> str:
    """What went wrong on the way, in one sentence: httpx leaves some messages empty."""
    sent = cast(httpx.Request | None, getattr(error, "_request", None))
    where = f" ({sent.url})" if sent is not None else ""
    kinds = {
        httpx.ConnectError: "could not connect",
        httpx.ConnectTimeout: "no connection within the time-out",
        httpx.ReadTimeout: "no answer within the time-out",
        httpx.RemoteProtocolError: "the server broke off",
        httpx.ReadError: "the connection was reset",
    }
    kind = next((text for known, text in kinds.items() if isinstance(error, known)), type(error).__name__)
    detail = f": {error}" if str(error) else ""
    return f"{kind}{where}{detail}"
