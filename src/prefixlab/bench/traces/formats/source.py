"""Where a trace comes from: the lines of a file or pipe, compressed or not.

Owns opening, unpacking, line numbers and how far reading has come. What a line means is each format's.

Invariant: lines come one at a time, so a file of any size needs the memory of its longest line; whatever
cannot be read is a ConfigError naming file and line.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from prefixlab.core.errors import ConfigError

GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
STDIN = "-"
PROGRESS_EVERY_BYTES = 1 << 20

OnRead = Callable[[int, "int | None"], None]
"""Bytes read so far, as they lie on disk, and how many there are; None for a pipe."""


def words(error: Exception) -> str:
    """What went wrong, without number and path where the system has words for it."""
    return getattr(error, "strerror", None) or str(error)


class Source:
    """Lines that hold anything, with their numbers from 1. Use as a context manager.

    Attributes:
        name: of the file alone, for reports.
        path: as given, for messages.
    """

    def __init__(self, path: Path | str, on_read: OnRead | None = None) -> None:
        self.path = str(path)
        self.is_pipe = self.path == STDIN
        self.name = "stdin" if self.is_pipe else Path(path).name
        self._number = 0
        self._head: list[tuple[int, bytes]] = []
        try:
            raw = sys.stdin.buffer if self.is_pipe else cast(BinaryIO, Path(path).open("rb"))  # noqa: SIM115 - closed in __exit__
            total = Path(path).stat().st_size if not self.is_pipe and Path(path).is_file() else None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} cannot be read: {words(error)}") from None
        self._raw = raw
        counted = io.BufferedReader(_Counted(raw, total, on_read), 1 << 16)
        try:
            is_packed = counted.peek(2)[:2] == GZIP_MAGIC
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {words(error)}") from None
        self._file = cast(BinaryIO, gzip.GzipFile(fileobj=counted)) if is_packed else cast(BinaryIO, counted)

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_pipe:
            self._raw.close()

    def at(self, number: int) -> str:
        """Names a line: every message about it begins so."""
        return f"{self.path}:{number}"

    def head(self) -> tuple[int, bytes]:
        """The first line, which `lines` gives again. Raises ConfigError if there is none."""
        if not self._head:
            for found in self._read():
                self._head.append(found)
                break
            else:
                raise ConfigError(f"{self.path} holds no request: it is empty")
        return self._head[0]

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """All of them, once."""
        yield from self._head
        yield from self._read()

    def _read(self) -> Iterator[tuple[int, bytes]]:
        try:
            for line in self._file:
                self._number += 1
                if self._number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if not line.isascii():
                    self._check_utf8(line)
                if line.strip():
                    yield self._number, line
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(
                f"{self.at(self._number + 1)}: the file cannot be read on: {words(error)}"
            ) from None

    def _check_utf8(self, line: bytes) -> None:
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{self.at(self._number)}: not UTF-8: byte {error.start + 1} of the line is "
                f"0x{line[error.start]:02x}"
            ) from None


class _Counted(io.RawIOBase):
    """Bytes as they are read, counted for who watches."""

    def __init__(self, file: BinaryIO, total: int | None, on_read: OnRead | None) -> None:
        self._file, self._total, self._on_read = file, total, on_read
        self._done = self._told = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = cast(io.BufferedReader, self._file).readinto1(buffer)
        self._done += count
        if self._on_read is not None and (not count or self._done - self._told >= PROGRESS_EVERY_BYTES):
            self._told = self._done
            self._on_read(self._done, self._total)
        return count
