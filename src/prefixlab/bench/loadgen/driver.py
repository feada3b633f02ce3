"""The driver seam: puts a plan to a target as a load says, and accounts for every request.

Owns the protocol. Implementations: `socket_driver.py` (HTTP, worker processes, kernel stamps) and
`in_process.py` (anything that is a `core.seams.Target`, such as the engine in this process).

Invariant: every planned request ends as exactly one record, interrupted or not, whoever
dies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.records.record import Record
from prefixlab.bench.records.table import RecordTable


@dataclass(frozen=True, slots=True)
class Progress:
    """A run under way, for the screen. Sums over workers; peaks are sums of the workers' peaks."""

    elapsed_s: float
    planned: int
    due: int
    sent: int
    first: int
    """Answers whose first bytes have come: their prefill is done."""
    tokens: int
    """Output tokens, those of answers under way counted as pieces received."""
    finished: int
    failed: int
    in_flight: int
    queued: int
    peak_in_flight: int
    peak_queued: int
    ttft_s: float | None = None
    """Mean over what has finished so far."""
    itl_s: float | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Drive:
    """What came of a run.

    Attributes:
        table: one row per planned request, those of a client process in the order they ended; times from the
            run's start (start = 0).
        duration_s: from the run's start to the end of the last stream.
        interrupted: ended by Ctrl-C or SIGTERM; what was in flight is cancelled, the rest unsent.
        deaths: how client processes ended that did not come to their end; what they still had to do failed
            as the client's, or is cancelled and unsent. Such a run is not finished.
    """

    table: RecordTable
    duration_s: float
    health: ClientHealth = field(default_factory=ClientHealth)
    interrupted: bool = False
    deaths: tuple[str, ...] = ()

    @property
    def records(self) -> list[Record]:
        """The table's rows as objects: for runs of thousands, not of millions."""
        return self.table.to_records()


class Driver(Protocol):
    """See the module."""

    def run(
        self,
        plan: Iterable[Planned],
        load: Load,
        *,
        on_progress: OnProgress | None = None,
        folder: Path | None = None,
    ) -> Drive:
        """Run `plan` to its end; blocks. `plan` is read once, before the run starts.

        Args:
            on_progress: called a few times a second.
            folder: an existing, empty folder in which records appear as requests end (JSON lines, in files
                named `records-*.jsonl`), so that a crash loses none that finished. None: nothing is kept.

        Raises:
            ConfigError: the target cannot carry a request of the plan; too few open files are allowed.
            TargetError: never for what a server does to a request (that is a failed record).
        """
        ...
