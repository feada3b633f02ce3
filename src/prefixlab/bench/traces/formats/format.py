"""What a format is, and what may be asked of it. One module per format makes one.

Owns the words between `reading.py`, which finds out what a file is, and the formats, which read it.

Invariant: a field a format does not know is refused by name, unless it was named to be ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prefixlab.bench.traces.formats.source import Source
from prefixlab.bench.traces.trace import Trace
from prefixlab.core.config import did_you_mean

DEFAULT_SESSION_INTERVAL_S = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What the reader of a trace may choose.

    Attributes:
        num_requests: the first so many; 0 for all.
        block_size: tokens per hash id; None: what the format says, or what lengths and numbers of ids tell.
        session_interval_s: between the starts of sessions, where the format says only what lies within them.
        ignore_fields: unknown fields that are passed over.
        sort: put lines in the order of their times instead of refusing those that go back.
    """

    num_requests: int = 0
    block_size: int | None = None
    session_interval_s: float = DEFAULT_SESSION_INTERVAL_S
    ignore_fields: frozenset[str] = frozenset()
    sort: bool = False


@dataclass(frozen=True)
class Format:
    """How a format is told from others, and read.

    Attributes:
        title: what its users call it.
        is_csv: columns under a header; otherwise one JSON object per line.
        required: fields every line has.
        optional: fields it may have.
        known_within: fields of the objects within a line.
        lays_out_sessions: times count from each session's start, so --session-interval has a meaning.
        added_by: known fields of other producers, which say nothing that is needed here, and whose they are.
    """

    name: str
    title: str
    is_csv: bool
    required: tuple[str, ...]
    read: Callable[[Source, Asked], Trace]
    optional: tuple[str, ...] = ()
    known_within: tuple[str, ...] = ()
    lays_out_sessions: bool = False
    added_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)

    def problem_with(self, fields: Iterable[str], ignored: frozenset[str]) -> str | None:
        """What is wrong with a line (or header) of these fields; None where nothing is."""
        given = list(fields)
        for name in given:
            if name in self.known or name in ignored:
                continue
            column = "column" if self.is_csv else "field"
            if name in self.added_by:
                return (
                    f"{column} {name!r} is added by {self.added_by[name]} and not used here: "
                    f"--ignore-fields {name} passes it over"
                )
            return (
                f"unknown {column} {name!r}{did_you_mean(name, self.known)} "
                f"({self.title} has {', '.join(self.known)}; --ignore-fields {name} passes it over)"
            )
        missing = [name for name in self.required if name not in given]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            return f"{self.title} needs {' and '.join(missing)}, which {verb} missing"
        return None
