"""The witness seam: whoever looks at the server from the side while requests are under way.

Owns the protocol and running several together. Implementations: `scrape.py` (the server's Prometheus metrics,
again and again, on the run's time axis) and `events.py` (its KV events).

Invariant: a witness never fails a run and never sends a prompt; what it could not see it says in a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Witness(Protocol):
    """Looks on in a thread of its own."""

    def start(self, folder: Path | None) -> None:
        """Begin, just before the driver starts; what is seen is kept in `folder` (the segment's), if any."""
        ...

    def stop(self) -> list[str]:
        """End, just after the driver returned: what was seen is complete. Returns notes for the reports."""
        ...


@contextmanager
def watched_by(witnesses: Sequence[Witness], folder: Path | None, notes: list[str]) -> Iterator[None]:
    """All of them, around one stretch of a run. Their notes go to `notes`, also where the run fails."""
    started: list[Witness] = []
    try:
        for witness in witnesses:
            witness.start(folder)
            started.append(witness)
        yield
    finally:
        for witness in reversed(started):
            notes.extend(witness.stop())
