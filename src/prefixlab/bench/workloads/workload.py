"""A workload: what one repeat of a point asks, before any prompt is made.

Owns the seam between those who say what is asked (generators, traces, files) and those who ask it. A workload
of made-up tokens is sketches; one from a file of prompts is rows, and sketches where it is known what they
share. Nothing else is known of it further on, so whatever makes sketches can be served, swept, saved and
checked against the cache.

Invariant: a workload is a pure function of its settings, its seed and the repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefixlab.bench.traces.fidelity import Recorded
from prefixlab.bench.workloads.files.custom import Row
from prefixlab.bench.workloads.sketch import FloatArray, IntArray, Sketches
from prefixlab.core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Workload:
    """Made by a generator; at least one of `sketches` and `rows` is there.

    Attributes:
        sketches: who shares what with whom, how long, and when.
        rows: prompts as a file has them; none where they are made up from the sketches.
        servers: which of several servers each request is for, shape (n,); None: there is one.
        counted: the lengths of prompts in the sketches are known.
        rows_known: the sketches tell what every row shares; else only those that are token ids.
        behind_head: the sketches, and before them one of what a chat template begins with, if anything.
        notes: what a reader of the report should know of it, each a sentence without a full stop.
        length_flags: the flags that decide how long its requests are, for messages.
        recorded: what it is a replay of, which the report is compared with.
        facts: further keys of its results, by name.
    """

    sketches: Sketches | None = None
    rows: Sequence[Row] = field(default=())
    notes: tuple[str, ...] = ()
    length_flags: str = ""
    recorded: Recorded | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    servers: IntArray | None = None
    counted: bool = True
    rows_known: bool = False
    behind_head: Sketches | None = None

    def __post_init__(self) -> None:
        assert self.sketches is not None or self.rows, "a workload is sketches or rows"
        assert self.sketches is None or len(self.rows) in (0, len(self.sketches))

    def __len__(self) -> int:
        return len(self.rows) if self.sketches is None else len(self.sketches)

    @property
    def prompt_tokens(self) -> Sequence[int] | None:
        """Of each request; None where only the server can count."""
        if self.sketches is None or not self.counted:
            return None
        lengths: list[int] = self.sketches.prompt_tokens.tolist()
        return lengths

    @property
    def made_up(self) -> Sketches | None:
        """What prompts are to be made from; None where a file has them."""
        return None if self.rows else self.sketches

    @property
    def rows_in_words(self) -> bool:
        """What its rows share is not known, and could be from the tokens of each. Where a row goes on with
        the answer to another it holds no prompt of its own."""
        continues = None if self.sketches is None else self.sketches.continues
        has_turns = continues is not None and bool(continues.any())
        return len(self.rows) > 0 and not (self.rows_known or has_turns)

    @property
    def output_tokens(self) -> Sequence[int]:
        if self.sketches is None:
            return [row.num_output_tokens for row in self.rows]
        lengths: list[int] = self.sketches.output_tokens.tolist()
        return lengths

    @property
    def offsets_s(self) -> FloatArray | None:
        """Its own times, where it has any."""
        return None if self.sketches is None else self.sketches.offsets_s

    def first(self, count: int) -> Workload:
        """Its first requests. Raises ConfigError if there are fewer."""
        if count > len(self):
            raise ConfigError(f"{count:,} requests are asked for, and the workload has {len(self):,}")
        sketches = None if self.sketches is None else self.sketches.first(count)
        servers = None if self.servers is None else self.servers[:count]
        return replace(self, sketches=sketches, rows=self.rows[:count], servers=servers)
