"""Whether an attempt that ended is made again, and after how long: policy without I/O.

Owns the rule. Whether there is still time for it, the loop decides.

Invariant: a request of whose answer anything came is made again only for a status that asks for it.
"""

from __future__ import annotations

import datetime
from email.utils import parsedate_to_datetime

from prefixlab.bench.loadgen.capture import Answer, Ending
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.loadgen.wire import ResponseParser

_NOTHING_CAME = (Ending.CONNECT, Ending.CONNECT_TIMEOUT, Ending.DROPPED, Ending.RESET)
_COME_AGAIN = (429, 503)
MAX_WAIT_NS = 60_000_000_000
"""A server that asks for more than this does not want the request."""


def retry_wait_ns(
    job: Job, answer: Answer, ending: Ending, parser: ResponseParser, wall_ns: int
) -> int | None:
    """How long to wait before the next attempt; None: this was the last.

    Args:
        answer: of the attempt that ended so.
        wall_ns: the time of day, for a server that names one.
    """
    if answer.num_retries >= job.retries:
        return None
    if ending is Ending.COMPLETE and parser.status in _COME_AGAIN:
        asked_ns = retry_after_ns(parser.headers.get("retry-after", ""), wall_ns)
        return max(job.retry_wait_ns, asked_ns) if asked_ns <= MAX_WAIT_NS else None
    if ending in _NOTHING_CAME and not answer.lengths:
        return job.retry_wait_ns
    return None


def retry_after_ns(value: str, wall_ns: int) -> int:
    """What a Retry-After header asks for (RFC 9110, 10.2.3): seconds or a date. 0 if it makes no sense."""
    value = value.strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return int(value) * 1_000_000_000
    try:
        when = parsedate_to_datetime(value)
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        return max(0, round(when.timestamp() * 1e9) - wall_ns)
    except (ValueError, OverflowError, TypeError):
        return 0
