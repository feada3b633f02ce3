"""Writing a trace, in the format that everybody reads: Mooncake's.

Owns the lines and that a file is there whole or not at all. Whatever a Trace says is kept: times to the
nanosecond, ids as they are, sessions as `session_id` and `delay`.

Invariant: what is written here and read again is the same trace, the name and the notes apart, with the
--block-size that `block_size_to_give` names where the lines do not tell it.
"""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import numpy as np

from prefixlab.bench.traces.formats.columns import block_size_told
from prefixlab.bench.traces.formats.mooncake import MooncakeLine
from prefixlab.bench.traces.formats.source import STDIN, words
from prefixlab.bench.traces.trace import Trace
from prefixlab.core.errors import ConfigError

PROGRESS_EVERY = 1000
GZIP_LEVEL = 6


def check_target(source: str, target: str, *, force: bool) -> None:
    """Before anything is read. Raises ConfigError where there is no place for `target`, or where writing it
    would destroy `source`, whichever links lead to it, or, unless `force`, any other file."""
    path = Path(target)
    if target == STDIN:
        return
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ConfigError(f"{target} cannot be written: {why}")
    if not path.is_file():  # devices and pipes lose nothing
        return
    if source != STDIN and Path(source).exists() and path.samefile(source):
        raise ConfigError(f"{target} is {source} itself: it would be lost; write to another file")
    if not force:
        raise ConfigError(f"{target} is there already: --force overwrites it")


def write_mooncake(
    trace: Trace, path: Path | str, on_written: Callable[[int], None] = lambda count: None
) -> None:
    """One line per request; `.gz` in the name compresses, `-` is standard output.

    A trace without ids gets lines without `hash_ids`, one without times lines without `timestamp`.

    Args:
        on_written: called with the number of requests written so far, now and then and at the end.

    Raises:
        ConfigError: the file cannot be written.
    """
    with _open(path) as file:
        for count, line in enumerate(_lines(trace), start=1):
            file.write(line + b"\n")
            if count % PROGRESS_EVERY == 0:
                on_written(count)
        on_written(len(trace))


def block_size_to_give(trace: Trace) -> str | None:
    """What to say where the block size cannot be inferred from the lines of `trace`, or another would be."""
    if not trace.has_ids or block_size_told(trace.prompt_tokens, np.diff(trace.starts)) == trace.block_size:
        return None
    return f"its lines do not tell the size of its blocks: read it with --block-size {trace.block_size}"


def _lines(trace: Trace) -> Iterator[bytes]:
    encoder = msgspec.json.Encoder()
    starts = trace.starts.tolist()
    prompt_tokens, output_tokens = trace.prompt_tokens.tolist(), trace.output_tokens.tolist()
    offsets_s: list[float] = trace.offsets_s.tolist()
    for row in range(len(trace)):
        line = MooncakeLine(
            timestamp=_milliseconds(offsets_s[row]) if trace.has_times else None,
            input_length=prompt_tokens[row],
            output_length=output_tokens[row],
            hash_ids=trace.hash_ids[starts[row] : starts[row + 1]].tolist() if trace.has_ids else None,
        )
        if trace.session_ids is not None:
            line.session_id = trace.session_ids[row]
            if trace.think_s is not None and trace.think_s[row] >= 0:  # NaN where nobody knows
                line.delay = _milliseconds(float(trace.think_s[row]))
        yield encoder.encode(line)


def _milliseconds(seconds: float) -> float | int:
    """To the nanosecond, and as a whole number where it is one."""
    milliseconds = round(seconds * 1e3, 6)
    return int(milliseconds) if milliseconds == int(milliseconds) else milliseconds


@contextmanager
def _open(path: Path | str) -> Iterator[BinaryIO]:
    """Written beside its place and put there when all of it is written."""
    if str(path) == STDIN:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if target.exists() and not target.is_file():  # a device or a pipe has no other name to be put under
        try:
            with target.open("wb") as file:
                yield cast(BinaryIO, file)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {words(error)}") from None
        return
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {words(error)}") from None
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            if target.suffix == ".gz":
                # No time and no name within: the same trace is the same file.
                with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packed:
                    yield cast(BinaryIO, packed)
            else:
                yield cast(BinaryIO, file)
        unfinished.chmod(0o666 & ~_umask())
        unfinished.replace(target)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {words(error)}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
