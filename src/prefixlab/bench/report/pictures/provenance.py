"""Where a picture comes from, in one line of small print: when, on what, by which code and command.

Owns that line. Finds nothing out but what this process knows of itself.

Invariant: secrets on a command line are not shown.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from prefixlab import __version__
from prefixlab.bench.report.environment import machine_name
from prefixlab.bench.runs.files import command_line, git_commit
from prefixlab.core.clock import wall_time_label

COMMIT_LETTERS = 10


@dataclass(frozen=True, slots=True)
class Provenance:
    """Of a picture, or of a run: all as words, empty where nobody knows.

    Attributes:
        date: YYYYmmdd-HHMMSS, as folders of runs have it.
        machine: where the client ran.
        client: who measured, with its version.
        commit: of the code, `+` behind it where files differ.
    """

    date: str
    machine: str
    client: str
    commit: str
    command: str

    @classmethod
    def now(cls, words: Sequence[str] | None = None) -> Provenance:
        """Of what this process does. `words` as in sys.argv, which they are unless given."""
        command = command_line(sys.argv if words is None else words)
        return cls(wall_time_label(), machine_name(), f"prefixlab {__version__}", git_commit() or "", command)

    @property
    def code(self) -> str:
        """`prefixlab 0.1.0 at 0123456789`."""
        return f"{self.client} at {short(self.commit)}".lstrip() if self.commit else self.client

    @property
    def line(self) -> str:
        parts = (readable(self.date), self.machine, self.code, self.command)
        return " · ".join(part for part in parts if part)


def joined(sources: Sequence[Provenance]) -> str:
    """Of several together, without their commands: the first and last date, machines, code."""
    dates = sorted({readable(of.date) for of in sources if of.date})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else ""
    machines, codes = (
        list(dict.fromkeys(filter(None, words)))
        for words in ((of.machine for of in sources), (of.code for of in sources))
    )
    return " · ".join(word for word in (span, ", ".join(machines), ", ".join(codes)) if word)


def short(commit: str) -> str:
    """The first letters of a commit, and its `+`."""
    return commit.rstrip("+")[:COMMIT_LETTERS] + ("+" if commit.endswith("+") else "")


def readable(date: str) -> str:
    """`2026-01-31 14:05`; as it is, where it is no such date."""
    day, _, time = date.partition("-")
    if len(day) != 8 or len(time) != 6 or not (day + time).isdigit():
        return date
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {time[:2]}:{time[2:4]}"
