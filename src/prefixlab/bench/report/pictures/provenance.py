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
from prefixlab.core.clock import wall_time_label

COMMIT_LETTERS = 10


@dataclass(frozen=True, slots=True)
class Provenance:
    """Of a picture, or of a run: all as words, empty where nobody knows.

    Attributes:
        date: YYYYmmdd-HHMMSS, as folders of runs have it.
        machine: the client's.
        commit: of the code, `+` behind it where files differ.
    """

    date: str
    machine: str
    version: str
    commit: str
    command: str

    @classmethod
    def now(cls, words: Sequence[str] | None = None) -> Provenance:
        """Of what this process does. `words` as in sys.argv, which they are unless given."""
        from prefixlab.bench.runs.files import command_line, git_commit

        command = command_line(sys.argv if words is None else words)
        return cls(wall_time_label(), machine_name(), __version__, git_commit() or "", command)

    @property
    def line(self) -> str:
        code = f"prefixlab {self.version}" if self.version else ""
        if self.commit:
            code = f"{code} at {short(self.commit)}".lstrip()
        parts = (readable(self.date), self.machine, code, self.command)
        return " · ".join(part for part in parts if part)


def short(commit: str) -> str:
    """The first letters of a commit, and its `+`."""
    return commit.rstrip("+")[:COMMIT_LETTERS] + ("+" if commit.endswith("+") else "")


def readable(date: str) -> str:
    """`2026-01-31 14:05`; as it is, where it is no such date."""
    day, _, time = date.partition("-")
    if len(day) != 8 or len(time) != 6 or not (day + time).isdigit():
        return date
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {time[:2]}:{time[2:4]}"
