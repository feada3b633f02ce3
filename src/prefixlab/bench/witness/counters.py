"""The servers' own counters, read right before and right after a stretch of a run.

Owns the moments: warm-ups, probes and the trial lie outside of them, so that growth is of what was measured,
and of what others sent meanwhile. What counters mean is `ledger/counters.py`'s.

Invariant: a server that does not answer leaves the growth unknown, never wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefixlab.bench.ledger.counters import Reading, ServerCounts, growth, read_counters
from prefixlab.bench.targets.control import Control
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.targets.several import SeveralEndpoints
from prefixlab.core.errors import TargetError


class CounterWatch:
    """Implements `witness.Witness`.

    Attributes:
        counts: of the stretch that ended last.
    """

    def __init__(self, servers: Sequence[Control]) -> None:
        self._servers = servers
        self._before: list[Reading | None] = []
        self.counts: ServerCounts | None = None

    @classmethod
    def of(cls, endpoint: Endpoint) -> CounterWatch:
        """Of the server, or the servers, that a run asks."""
        each = endpoint.each if isinstance(endpoint, SeveralEndpoints) else (endpoint,)
        return cls([one.control for one in each])

    def start(self, folder: Path | None) -> None:
        """See Witness. Keeps nothing in the folder: who asked for the growth keeps it."""
        self.counts = None
        self._before = [_read(server) for server in self._servers]

    def stop(self) -> list[str]:
        """See Witness."""
        grown = [
            None if before is None or (after := _read(server)) is None else growth(before, after)
            for server, before in zip(self._servers, self._before, strict=True)
        ]
        known = [counts for counts in grown if counts is not None]
        self.counts = ServerCounts.sum(known) if known and len(known) == len(grown) else None
        return []


def _read(server: Control) -> Reading | None:
    try:
        text = server.metrics_text()
    except TargetError:
        return None
    return None if text is None else read_counters(text)
