"""Server-sent events, without I/O: bytes in, payloads out. Knows nothing of what the payloads mean.

Follows the event stream format of the HTML standard as far as model servers use it: `data` lines joined by a
newline, comments and other fields dropped, an event ended by a blank line, LF or CRLF.

Invariant: the payloads do not depend on how the bytes were cut.
"""

from __future__ import annotations


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
