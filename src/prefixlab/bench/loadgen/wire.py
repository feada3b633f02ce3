"""HTTP/1.1 answers, read without I/O: bytes in, body pieces out, however the bytes were cut.

Owns framing: status line, headers, Content-Length, chunked, and bodies that end when the connection does.
Knows nothing of what a body means. The socket loop asks it where a message ends, the decoder which bytes of
the body came with which read.

Follows RFC 9112. Interim answers (1xx) are skipped; a lone LF ends a line, as the RFC lets a recipient do; a
transfer coding other than chunked is refused.

Invariant: what is returned, joined, and every attribute after the last feed are the same for every way to
cut the same bytes (`num_chunk_ends` summed up). Time is linear in the bytes fed.
"""

from __future__ import annotations

import enum
import functools
import itertools
import re
from collections.abc import Sequence

from prefixlab.core.errors import TargetError

_MAX_HEAD_BYTES = 256 * 1024
_MAX_INTERIM = 100
"""Answers of status 1xx: a server that sends more sends nothing else."""
"""Of status line and headers together, of one size line, and of trailers together."""
_MAX_SIZE_DIGITS = 16
_HEX = b"0123456789abcdefABCDEF"
_HTTP = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: .*)?")
_PLAIN_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,16})\r\n")
_HEADER_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class WireError(TargetError):
    """These bytes are not an HTTP/1 answer; the message says why."""


class _State(enum.Enum):
    STATUS = enum.auto()
    HEADERS = enum.auto()
    CHUNK_SIZE = enum.auto()
    CHUNK_END = enum.auto()
    TRAILERS = enum.auto()
    CONTENT = enum.auto()
    UNTIL_CLOSE = enum.auto()
    DONE = enum.auto()


class ResponseParser:
    """One answer. After a WireError it must not be fed again.

    Attributes:
        status: of the final answer; None until its status line is read.
        headers: names in lower case; several fields of one name are joined by commas.
        head_complete: status line and headers are read.
        num_chunk_ends: transfer chunks whose last byte of content came with the last feed (the empty one that
            ends a body does not count).
        num_surplus_bytes: bytes after the end of the message.
    """

    __slots__ = (
        "_close",
        "_head_bytes",
        "_last_name",
        "_left",
        "_line",
        "_num_interim",
        "_state",
        "chunked",
        "head_complete",
        "headers",
        "num_chunk_ends",
        "num_surplus_bytes",
        "status",
    )

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.head_complete = False
        self.chunked = False
        self.num_chunk_ends = 0
        self.num_surplus_bytes = 0
        self._state = _State.STATUS
        self._line = bytearray()
        self._head_bytes = 0
        self._last_name = ""
        self._left = 0
        self._close = False
        self._num_interim = 0

    @property
    def complete(self) -> bool:
        """The message is whole."""
        return self._state is _State.DONE

    @property
    def num_left_bytes(self) -> int | None:
        """Bytes of the body still to come, where a Content-Length told; else None."""
        counted = self._state is _State.CONTENT and not self.chunked
        return self._left if counted else None

    @property
    def keep_alive(self) -> bool:
        """The connection can carry another request. Meaningful once the message is complete."""
        return not self._close and self.num_surplus_bytes == 0

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of body in `data`, one per transfer chunk touched (without chunking, one at most).

        Raises:
            WireError: malformed, or too large a head.
        """
        self.num_chunk_ends = 0
        pieces: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            state = self._state
            if state is _State.CONTENT:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._end_of_content()
            elif state is _State.UNTIL_CLOSE:
                pieces.append(data[at:])
                break
            elif state is _State.DONE:
                self.num_surplus_bytes += end - at
                break
            else:
                if state is _State.CHUNK_SIZE and not self._line:
                    at = self._whole_chunks(data, at, pieces)
                at = self._to_line_end(data, at)
        return pieces

    def skip_whole_chunks(self, pieces: Sequence[bytes], first: int) -> int:
        """Take in those of `pieces[first:]`, from the first on, that are each one plain chunk, as most reads
        of a stream are, for a fifth of what `feed` costs; what is in them is not returned.

        Returns:
            How many these are; 0 where no chunk begins next. The rest is to be fed.
        """
        self.num_chunk_ends = 0
        if self._state is not _State.CHUNK_SIZE or self._line:
            return 0
        num_skipped = 0
        for piece in itertools.islice(pieces, first, None):
            if not (piece.startswith(_size_lines(len(piece))) and piece.endswith(b"\r\n")):
                break
            num_skipped += 1
        self.num_chunk_ends = num_skipped
        return num_skipped

    def eof(self) -> bool:
        """The connection was closed: whether that left a whole message."""
        if self._state is _State.UNTIL_CLOSE:
            self._state = _State.DONE
        return self.complete

    def _whole_chunks(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """The short way for plain chunks that lie whole in `data`; where it stops, the long way goes on."""
        first = len(pieces)
        while (match := _PLAIN_SIZE_LINE.match(data, at)) is not None:
            start = match.end()
            stop = start + int(match[1], 16)
            if stop == start or data[stop : stop + 2] != b"\r\n":
                break
            pieces.append(data[start:stop])
            at = stop + 2
        self.num_chunk_ends += len(pieces) - first
        return at

    def _to_line_end(self, data: bytes, at: int) -> int:
        """Take in the line that goes on at `at`, as much of it as there is; returns where it stops."""
        end = data.find(b"\n", at)
        stop = len(data) if end < 0 else end + 1
        self._line += data[at:stop]
        self._head_bytes += stop - at
        if self._state is _State.STATUS and not self._line.startswith(_HTTP[: len(self._line)]):
            raise WireError(f"not an HTTP/1 answer: it begins with {_quote(self._line)}")
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise WireError(f"headers or a chunk's size of more than {_MAX_HEAD_BYTES} bytes")
        if end >= 0:
            line = bytes(self._line[:-1]).removesuffix(b"\r")
            self._line.clear()
            self._take_line(line)
        return stop

    def _take_line(self, line: bytes) -> None:
        state = self._state
        if state is _State.STATUS:
            self._take_status(line)
        elif state is _State.HEADERS:
            if line:
                self._take_header(line)
            else:
                self._end_of_head()
        elif state is _State.CHUNK_SIZE:
            size = line.partition(b";")[0].rstrip(b" \t")
            if not size or len(size) > _MAX_SIZE_DIGITS or size.strip(_HEX):
                raise WireError(f"not the size of a chunk: {_quote(line)}")
            self._left = int(size, 16)
            self._head_bytes = 0
            self._state = _State.CONTENT if self._left else _State.TRAILERS
        elif state is _State.CHUNK_END:
            if line:
                raise WireError(f"a chunk is longer than its size says: {_quote(line)} follows it")
            self._head_bytes = 0
            self._state = _State.CHUNK_SIZE
        elif not line:  # TRAILERS: read, and not kept
            self._state = _State.DONE

    def _take_status(self, line: bytes) -> None:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise WireError(f"not a status line: {_quote(line)}")
        self._close = match[1] == b"0"
        self.status = int(match[2])
        self._state = _State.HEADERS

    def _take_header(self, line: bytes) -> None:
        if line[:1] in (b" ", b"\t"):  # obsolete folding: part of the field before
            if not self._last_name:
                raise WireError(f"a header without a name: {_quote(line)}")
            self.headers[self._last_name] += " " + line.strip(b" \t").decode("latin-1")
            return
        raw_name, colon, raw_value = line.partition(b":")
        if not colon or _HEADER_NAME.fullmatch(raw_name) is None:
            raise WireError(f"not a header: {_quote(line)}")
        name, value = raw_name.decode("ascii").lower(), raw_value.strip(b" \t").decode("latin-1")
        self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
        self._last_name = name

    def _end_of_head(self) -> None:
        assert self.status is not None
        self._head_bytes = 0
        self._last_name = ""
        if self.status == 101:
            raise WireError("101: the server changes to a protocol nobody asked for")
        if self.status < 200:
            self._num_interim += 1
            if self._num_interim > _MAX_INTERIM:
                raise WireError(f"more than {_MAX_INTERIM} interim answers ({self.status}) before any other")
            self.status = None
            self.headers = {}
            self._state = _State.STATUS
            return
        self.head_complete = True
        tokens = {token.strip().lower() for token in self.headers.get("connection", "").split(",")}
        self._close = "close" in tokens or (self._close and "keep-alive" not in tokens)
        coding = self.headers.get("transfer-encoding")
        length = self.headers.get("content-length")
        if self.status in (204, 304):
            self._state = _State.DONE
        elif coding is not None:
            if coding.strip().lower() != "chunked":
                raise WireError(f"transfer coding {coding!r}: only chunked is spoken here")
            self.chunked = True
            self._state = _State.CHUNK_SIZE
        elif length is not None:
            self._left = _content_length(length)
            self._state = _State.CONTENT if self._left else _State.DONE
        else:
            self._close = True
            self._state = _State.UNTIL_CLOSE

    def _end_of_content(self) -> None:
        if self.chunked:
            self.num_chunk_ends += 1
            self._head_bytes = 0
            self._state = _State.CHUNK_END
        else:
            self._state = _State.DONE


@functools.lru_cache(maxsize=4096)
def _size_lines(num_bytes: int) -> tuple[bytes, ...]:
    """How a chunk begins that takes `num_bytes` in all, framing included: there is one size that fits, if any
    does, with digits in either case."""
    for num_digits in range(1, _MAX_SIZE_DIGITS + 1):
        size = num_bytes - num_digits - len(b"\r\n\r\n")
        if size > 0 and len(f"{size:x}") == num_digits:
            return b"%x\r\n" % size, b"%X\r\n" % size
    return ()


def _content_length(value: str) -> int:
    """Of a field that may be repeated, as long as it says the same each time (RFC 9110, 8.6)."""
    lengths = {part.strip() for part in value.split(",")}
    length = lengths.pop()
    if lengths or not (length.isascii() and length.isdigit()) or len(length) > _MAX_SIZE_DIGITS:
        raise WireError(f"not a Content-Length: {value!r}")
    return int(length)


def _quote(data: bytes | bytearray) -> str:
    """The beginning of what came, short enough for a message."""
    text = bytes(data[:60])
    return repr(text)[1:] + ("…" if len(data) > len(text) else "")
