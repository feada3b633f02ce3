"""A request as the bytes that go on the wire. No I/O.

Owns the HTTP head: which headers are sent, and that nothing a user gives can break out of its line. The body
is the dialect's.

Invariant: every request is complete in itself, with the length of its body named.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

import msgspec

from prefixlab.bench.targets.dialects import Dialect
from prefixlab.core.errors import ConfigError
from prefixlab.core.target import TargetRequest

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BREAKS_OUT = re.compile(r"[\r\n\0]")
_OURS = frozenset({"content-length", "transfer-encoding"})


class Address:
    """Where a base URL and a path under it lead.

    Raises:
        ConfigError: it is no http or https URL.
    """

    def __init__(self, url: str, path: str) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url} is not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url} is not the URL of a server: http://host:port is")
        if parts.query or parts.fragment or parts.username is not None:
            raise ConfigError(f"{url}: a base URL has neither user, query nor fragment; --header sends a key")
        self.tls = parts.scheme == "https"
        self.host = parts.hostname
        self.port = port or (443 if self.tls else 80)
        self.netloc = parts.netloc
        self.path = quote(parts.path.rstrip("/") + "/" + path.lstrip("/"), safe="/%?&=:@!$'()*+,;~-._")


class WriterState(msgspec.Struct, frozen=True):
    """What makes a RequestWriter beside its dialect: for another process of the same run. Holds the key."""

    head: bytes
    model: str | None
    run_id: bytes
    names_requests: bool


class RequestWriter:
    """Makes the bytes of requests of one run.

    Args:
        headers: sent with each; they win over ours of the same name.

    Raises:
        ConfigError: a header cannot be sent.
    """

    def __init__(
        self,
        address: Address,
        dialect: Dialect,
        *,
        model: str | None,
        headers: Mapping[str, str],
        api_key: str | None,
        reuse_connections: bool,
    ) -> None:
        fields = {
            "Host": address.netloc,
            "User-Agent": "prefixlab",
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        if not reuse_connections:
            fields["Connection"] = "close"
        if api_key is not None:
            fields["Authorization"] = f"Bearer {api_key}"
        given = {name.lower() for name in headers}
        fields = {name: value for name, value in fields.items() if name.lower() not in given} | dict(headers)
        lines = [f"POST {address.path} HTTP/1.1", *(_header(*field) for field in fields.items())]
        self._dialect = dialect
        self.state = WriterState(
            head=("\r\n".join(lines) + "\r\n").encode("latin-1"),
            model=model,
            # Ids repeat from run to run, and a server may refuse one it still knows.
            run_id=secrets.token_bytes(16),
            names_requests="x-request-id" not in given,
        )

    @classmethod
    def of(cls, state: WriterState, dialect: Dialect) -> RequestWriter:
        """One that writes as the one did which has this state."""
        writer = cls.__new__(cls)
        writer._dialect, writer.state = dialect, state
        return writer

    def __call__(self, request: TargetRequest, *, names_tokens: bool = False) -> bytes:
        """Head and body.

        Args:
            names_tokens: ask for the ids of the tokens that are generated.

        Raises:
            ConfigError: this API cannot carry the request.
        """
        fields = self._dialect.body(request, self.state.model)
        if names_tokens:
            fields = {**self._dialect.names_tokens, **fields}
        body = msgspec.json.encode(fields)
        head = self.state.head + b"Content-Length: %d\r\n" % len(body)
        if self.state.names_requests:
            head += b"X-Request-Id: %s\r\n" % self._name(request).encode()
        return head + b"\r\n" + body

    def _name(self, request: TargetRequest) -> str:
        """A UUID, for some servers (llama-cpp-python's) refuse any other name with a bare 400."""
        digest = hashlib.sha256(self.state.run_id + request.request_id.encode()).digest()
        return str(uuid.UUID(bytes=digest[:16], version=4))


def _header(name: str, value: str) -> str:
    if not _NAME.fullmatch(name) or name.lower() in _OURS:
        raise ConfigError(f"--header {name}: not a name of a header that can be given")
    if _BREAKS_OUT.search(value) or any(ord(character) > 255 for character in value):
        raise ConfigError(f"--header {name}: its value cannot be sent in a header")
    return f"{name}: {value}"
