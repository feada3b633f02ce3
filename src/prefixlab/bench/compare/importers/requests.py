"""Requests as other clients keep them, made into a table of records.

Owns how their few figures per request become times and arrivals. What they mean is the importer's.

Invariant: TTFT, TPOT, E2E and counts of the table are the file's own; ITL is, where every gap brought a
token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefixlab.bench.compare.run import EVENT_GAP, OURS, Definition
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.table import RecordTable


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a file. Seconds; `gaps_s` between its events after the first, None where not kept."""

    request_id: str
    sent_s: float
    ttft_s: float
    e2e_s: float
    prompt_tokens: int
    output_tokens: int
    gaps_s: Sequence[float] | None = None
    ok: bool = True
    error: str = ""

    @property
    def one_by_one(self) -> bool:
        """Every event brought one token."""
        return self.gaps_s is not None and len(self.gaps_s) + 1 == self.output_tokens


def table_of(rows: Iterable[Asked]) -> RecordTable:
    """Times counted from the first that was sent."""
    asked = list(rows)
    start_s = min((row.sent_s for row in asked), default=0.0)
    return RecordTable.of([_record(row, row.sent_s - start_s) for row in asked])


def itl_definition(rows: Iterable[Asked]) -> Definition:
    """Of gaps between events: ours, if each brought one token."""
    if all(row.one_by_one for row in rows if row.ok):
        return Definition(OURS["itl"])
    return Definition(EVENT_GAP, of_records=False)


def numbers_in(data: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Those of `names` that are numbers there."""
    return {
        name: float(data[name])
        for name in names
        if isinstance(data.get(name), (int, float)) and not isinstance(data[name], bool)
    }


def _record(row: Asked, sent_s: float) -> Record:
    if not row.ok:
        return Record(
            row.request_id,
            Outcome.FAILED,
            intended_s=sent_s,
            sent_s=sent_s,
            last_s=sent_s + max(row.e2e_s, 0.0),
            failure=Failure.SERVER_ERROR,
            error=row.error,
            planned_prompt_tokens=row.prompt_tokens,
            planned_output_tokens=row.output_tokens,
        )
    first_s = sent_s + row.ttft_s
    if row.one_by_one and row.gaps_s is not None:
        arrivals = list(itertools.accumulate(row.gaps_s, initial=first_s))
        counts = [1] * len(arrivals)
    elif row.output_tokens > 1 and row.e2e_s > row.ttft_s:
        arrivals, counts = [first_s, sent_s + row.e2e_s], [1, row.output_tokens - 1]
    else:
        arrivals, counts = [first_s], [max(1, row.output_tokens)]
    return Record(
        row.request_id,
        Outcome.OK,
        intended_s=sent_s,
        sent_s=sent_s,
        first_byte_s=first_s,
        arrivals_s=tuple(arrivals),
        arrival_counts=tuple(counts),
        last_s=arrivals[-1],
        planned_prompt_tokens=row.prompt_tokens,
        num_prompt_tokens=row.prompt_tokens,
        planned_output_tokens=row.output_tokens,
    )
