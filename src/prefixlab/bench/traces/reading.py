"""Reading a trace, whatever its format: found out by what the file says, never by what it is called.

Owns the table of formats and the choice among them. Lines and columns are each format's.

Invariant: a file that is read twice gives the same trace; nothing is returned of a file that is wrong
anywhere in what was asked of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

from prefixlab.bench.traces.formats import agentic, azure, bailian, burstgpt, lengths, mooncake
from prefixlab.bench.traces.formats.format import DEFAULT_SESSION_INTERVAL_S, Asked, Format
from prefixlab.bench.traces.formats.jsonl import as_object
from prefixlab.bench.traces.formats.source import OnRead, Source
from prefixlab.bench.traces.trace import Trace
from prefixlab.core.config import did_you_mean
from prefixlab.core.errors import ConfigError

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (mooncake, bailian, azure, burstgpt, agentic, lengths)
}


def read_trace(
    path: Path | str,
    *,
    format: str | None = None,  # noqa: A002 - the word of its flag
    num_requests: int = 0,
    block_size: int | None = None,
    session_interval_s: float = DEFAULT_SESSION_INTERVAL_S,
    ignore_fields: Collection[str] = (),
    sort: bool = False,
    on_read: OnRead | None = None,
) -> Trace:
    """Read a trace from a file, plain or gzip, or from standard input (`-`).

    Args:
        format: one of FORMATS; None finds out.
        num_requests: only the first so many, in the order of time; 0 for all. What lies behind them is not
            looked at, where the format's lines are in that order.
        block_size: tokens per hash id, where the file leaves it open or is wrong.
        session_interval_s: between the starts of sessions, in formats whose times count from there.
        ignore_fields: unknown fields to pass over instead of refusing the file.
        sort: order lines by time instead of refusing times that go back.
        on_read: called about once per MiB.

    Raises:
        ConfigError: the file, or a line of it, cannot be used; it names both.
    """
    if num_requests < 0:
        raise ConfigError(f"the number of requests must not be negative, not {num_requests}")
    if block_size is not None and block_size < 1:
        raise ConfigError(f"--block-size must be at least 1, not {block_size}")
    if not 0 <= session_interval_s < math.inf:
        raise ConfigError(f"--session-interval must be a number of seconds, not {session_interval_s}")
    if format is not None and format not in FORMATS:
        raise ConfigError(f"--format {format}: there is {', '.join(FORMATS)}{did_you_mean(format, FORMATS)}")
    asked = Asked(num_requests, block_size, session_interval_s, frozenset(ignore_fields), sort)
    with Source(path, on_read) as source:
        found = detect_format(source) if format is None else FORMATS[format]
        if block_size is not None and found.is_csv:
            raise ConfigError(f"{source.path} is of {found.title}, which has no blocks for --block-size")
        if session_interval_s != DEFAULT_SESSION_INTERVAL_S and not found.lays_out_sessions:
            raise ConfigError(
                f"{source.path} is of {found.title}, whose times leave --session-interval no use"
            )
        return found.read(source, asked)


def detect_format(source: Source) -> Format:
    """By the fields of the first line. Raises ConfigError if they are nobody's."""
    number, text = source.head()
    is_csv = text.lstrip()[:1] not in (b"{", b"[")
    if is_csv:
        fields: Sequence[str] = [name.strip() for name in text.decode().split(",")]
    else:
        fields = list(as_object(source, number, text))
    if "prefixlab_workload" in fields:
        raise ConfigError(
            f"{source.path} is a workload that --save-workload wrote, not a trace: --dataset-name saved "
            "sends it"
        )
    # The format most of whose required fields are there; of several the one that knows most of all fields.
    score = {
        form.name: (
            sum(name in fields for name in form.required) / len(form.required),
            sum(name in form.known for name in fields),
        )
        for form in FORMATS.values()
        if form.is_csv == is_csv
    }
    best = max(score, key=lambda name: score[name])
    if not score[best][1]:
        formats = "; ".join(f"{form.title}: {', '.join(form.known)}" for form in FORMATS.values())
        raise ConfigError(f"{source.at(number)}: not a line of any format there is ({formats})")
    return FORMATS[best]
