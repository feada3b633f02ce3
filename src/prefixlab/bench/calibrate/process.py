"""The metronome from outside: starts the process, knows its address, gets its log when it is over.

Owns the child's life. Invariant: no metronome outlives the block that started it.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator

import msgspec

from prefixlab.bench.calibrate.metronome import Shape, Stream
from prefixlab.core.errors import ConfigError

STOP_TIMEOUT_S = 60.0


class PlayingMetronome:
    """A metronome under way."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> list[Stream]:
        """End it; what it did, one entry per request, in the order they arrived."""
        log, _ = self._process.communicate(timeout=STOP_TIMEOUT_S)
        return msgspec.msgpack.decode(log, type=list[Stream])


@contextlib.contextmanager
def metronome(shape: Shape, *, core: int | None = None) -> Iterator[PlayingMetronome]:
    """A metronome on a free port of this machine, kept on `core` if one is given.

    Raises:
        ConfigError: this system has no epoll.
    """
    if not hasattr(select, "epoll"):
        raise ConfigError("calibrating needs Linux: the metronome is built on epoll")
    command = [
        sys.executable,
        "-m",
        "prefixlab.bench.calibrate.metronome",
        msgspec.json.encode(shape).decode(),
    ]
    command += [] if core is None else ["--core", str(core)]
    # Unbuffered, so that reading its first line takes nothing of the log that follows; in a group of its own,
    # so that Ctrl-C is its parent's alone to answer.
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, process_group=0)
    try:
        assert process.stdout is not None
        yield PlayingMetronome(process, int(process.stdout.readline().split()[1]))
    finally:
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(ValueError):  # its pipes are closed already where it was stopped
            process.communicate()
