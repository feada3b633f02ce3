"""Did the cache do it? Expected against measured cached tokens, as one word and one sentence. Pure.

Owns the verdicts, and the notes on what else is odd about a run's answers. Knows nothing of how a point was
made; it reads records.

Invariant: requests are compared one by one, so two mistakes never cancel out; "did not say" is never zero.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.records.table import CODE, IntArray, RecordTable, as_table
from prefixlab.bench.targets.hints import with_hint


class Verdict(enum.Enum):
    CONSISTENT = "consistent"
    NOT_REPORTED = "not reported"
    LESS = "less than expected"
    MORE = "more than expected"
    UNCHECKED = "not checked"
    """Of no request is known what to expect; the check's detail says why."""
    NOTHING_FINISHED = "nothing finished"


PAGE_SIZE_UNKNOWN = "page size unknown"


@dataclass(frozen=True, slots=True)
class CacheCheck:
    """The ledger of one point. *Checked* are finished requests of which is known what to expect.

    Attributes:
        expected_cached_tokens: total over checked requests; None when there are none.
        cached_tokens: total the server reported, of all finished; None when it left any of them out.
        prompt_tokens: total over finished requests.
        detail: what to look at, or why nothing was checked; empty when consistent.
        checked_prompt_tokens: total over checked requests.
        checked_cached_tokens: total the server reported of those; None when it left any of all out.
    """

    verdict: Verdict
    expected_cached_tokens: int | None
    cached_tokens: int | None
    prompt_tokens: int
    detail: str = ""
    num_finished: int = 0
    num_checked: int = 0
    checked_prompt_tokens: int = 0
    checked_cached_tokens: int | None = None

    @property
    def is_consistent(self) -> bool:
        return self.verdict is Verdict.CONSISTENT

    @property
    def words(self) -> str:
        """The verdict, and how far it reaches."""
        verdict: str = self.verdict.value
        if self.verdict is Verdict.UNCHECKED:
            return f"{verdict}: {self.detail}"
        compared = self.verdict in (Verdict.CONSISTENT, Verdict.LESS, Verdict.MORE)
        if compared and self.num_checked < self.num_finished:
            return f"{verdict} ({self.num_checked:,} of {self.num_finished:,} requests checked)"
        return verdict

    @property
    def note(self) -> str:
        """The detail where it stands alone, with what to do about it."""
        if self.verdict is Verdict.UNCHECKED and self.detail == PAGE_SIZE_UNKNOWN:
            return "the page size is unknown: give --page-size to check the hits"
        return self.detail

    @property
    def hit_rate(self) -> float | None:
        """Measured cached tokens over prompt tokens, 0 … 1."""
        return _ratio(self.cached_tokens, self.prompt_tokens)

    @property
    def expected_hit_rate(self) -> float | None:
        """Of the checked requests."""
        return _ratio(self.expected_cached_tokens, self.checked_prompt_tokens)


def check_cache(records: Sequence[Record] | RecordTable) -> CacheCheck:
    """Compare, request by request, those that finished and of which is known what to expect."""
    table = as_table(records)
    ok = np.flatnonzero(table.ok)
    cached = _total(table.num_cached_tokens[ok])
    checked = ok[table.num_expected_cached_tokens[ok] >= 0]
    prompt_tokens = table.prompt_tokens[checked]
    wanted, got = table.num_expected_cached_tokens[checked], table.num_cached_tokens[checked]

    def answer(verdict: Verdict, detail: str = "") -> CacheCheck:
        return CacheCheck(
            verdict,
            int(wanted.sum()) if len(checked) else None,
            cached,
            int(table.prompt_tokens[ok].sum()),
            detail,
            num_finished=len(ok),
            num_checked=len(checked),
            checked_prompt_tokens=int(prompt_tokens.sum()),
            checked_cached_tokens=None if cached is None else int(got.sum()),
        )

    if not len(ok):
        return answer(Verdict.NOTHING_FINISHED)
    if cached is None:
        silent = int((table.num_cached_tokens[ok] < 0).sum())
        return answer(Verdict.NOT_REPORTED, f"{silent} of {len(ok)} answers named no cached tokens")
    if not len(checked):
        return answer(Verdict.UNCHECKED, PAGE_SIZE_UNKNOWN)
    planned = table.planned_prompt_tokens[checked]
    drift = ""
    if (prompt_tokens != planned).any():
        first = int((prompt_tokens != planned).argmax())
        drift = f"the server counted {prompt_tokens[first]} prompt tokens, not {planned[first]}"
    for verdict, wrong in ((Verdict.LESS, got < wanted), (Verdict.MORE, got > wanted)):
        if wrong.any():
            first = int(wrong.argmax())
            where = (
                f"{int(wrong.sum())} of {len(checked)} requests hit {verdict.value}, e.g. "
                f"{table.request_id[checked[first]]} reported {got[first]} cached tokens "
                f"instead of {wanted[first]}"
            )
            return answer(verdict, f"{where}; {drift}" if drift else where)
    return answer(Verdict.CONSISTENT, drift)


def delivery_notes(records: Sequence[Record] | RecordTable, *, ignore_eos: bool) -> list[str]:
    """What is odd about the answers apart from the cache: failures, outputs of another length than asked."""
    table = as_table(records)
    notes = []
    num_ok = int(table.ok.sum())
    odd = table.ok & (table.num_output_tokens != table.planned_output_tokens)
    if ignore_eos and odd.any():
        first = int(odd.argmax())
        notes.append(
            f"{int(odd.sum())} of {num_ok} outputs are not as long as asked for, e.g. "
            f"{table.num_output_tokens[first]} instead of {table.planned_output_tokens[first]} tokens"
        )
    longer = table.ok & (table.num_output_tokens > table.planned_output_tokens)
    if longer.any() and not ignore_eos:
        notes.append(
            f"{int(longer.sum())} of {num_ok} outputs are longer than asked for: if the server knows "
            "max_tokens alone, give it by --extra-request-body"
        )
    notes += _prompt_notes(table)
    failed = int((table.outcome == CODE[Outcome.FAILED]).sum())
    if failed:
        notes.append(f"{failed} of {len(table)} requests failed, first: {first_failure(table)}")
    # A server that names totals names both; one that names none leaves us to count events.
    untold = table.counts_estimated & (table.num_prompt_tokens < 0)
    uncounted = int((table.ok & untold).sum())
    if uncounted:
        notes.append(
            f"{uncounted} of {num_ok} answers named no counts of tokens: each event is taken for one token "
            "and prompts for as long as planned, so rates of tokens and ITL are estimates"
        )
    estimated = int((table.ok & table.counts_estimated & ~untold).sum())
    if estimated:
        notes.append(
            f"{estimated} of {num_ok} answers told only their total of tokens, not when each came: "
            "ITL is an estimate"
        )
    return notes


def _prompt_notes(table: RecordTable) -> list[str]:
    """How true prompts are to the plan; those that are as long as planned are not worth a word."""
    counted = table.ok & (table.num_prompt_tokens >= 0) & (table.planned_prompt_tokens > 0)
    planned, actual = table.planned_prompt_tokens[counted], table.num_prompt_tokens[counted]
    off = actual - planned
    num_off = int((off != 0).sum())
    if not num_off:
        return []
    at_most = int(np.abs(off).max())
    return [
        f"prompt lengths: {planned.mean():,.1f} tokens asked for on average, {actual.mean():,.1f} counted by "
        f"the server; {num_off:,} of {int(counted.sum()):,} differ, by {at_most:,} at most"
    ]


def first_failure(records: Iterable[Record] | RecordTable) -> str | None:
    """What the first request that failed ran into, and what to try; None if none did."""
    if isinstance(records, RecordTable):
        error = next((records.errors[row] for row in sorted(records.errors)), None)
    else:
        error = next((record.error for record in records if record.outcome is Outcome.FAILED), None)
    return None if error is None else with_hint(error)


def _total(values: IntArray) -> int | None:
    """None where nobody named one of them: -1 in a table."""
    return None if (values < 0).any() else int(values.sum())


def _ratio(part: int | None, whole: int) -> float | None:
    return None if part is None or not whole else part / whole
