"""Did the cache do it? Expected against measured cached tokens, as one word and one sentence. Pure.

Owns the verdicts, and the notes on what else is odd about a run's answers. Knows nothing of how a point was
made; it reads records.

Invariant: requests are compared one by one, so two mistakes never cancel out; "did not say" is never zero.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prefixlab.bench.records.record import Outcome, Record


class Verdict(enum.Enum):
    CONSISTENT = "consistent"
    NOT_REPORTED = "not reported"
    LESS = "less than expected"
    MORE = "more than expected"
    UNCHECKED = "page size unknown"
    """There is no expectation to compare with: name the page size."""
    NOTHING_FINISHED = "nothing finished"


@dataclass(frozen=True, slots=True)
class CacheCheck:
    """The ledger of one point.

    Attributes:
        expected_cached_tokens: total over finished requests; None when the page size is unknown.
        cached_tokens: total the server reported; None when it left any of them out.
        prompt_tokens: total over finished requests.
        detail: what to look at, empty when consistent.
    """

    verdict: Verdict
    expected_cached_tokens: int | None
    cached_tokens: int | None
    prompt_tokens: int
    detail: str = ""

    @property
    def hit_rate(self) -> float | None:
        """Measured cached tokens over prompt tokens, 0 … 1."""
        return _ratio(self.cached_tokens, self.prompt_tokens)

    @property
    def expected_hit_rate(self) -> float | None:
        return _ratio(self.expected_cached_tokens, self.prompt_tokens)


def check_cache(records: Sequence[Record]) -> CacheCheck:
    """Compare, request by request, over those that finished."""
    ok = [record for record in records if record.outcome is Outcome.OK]
    prompt_tokens = sum(record.prompt_tokens for record in ok)
    expected = _total([record.num_expected_cached_tokens for record in ok])
    cached = _total([record.num_cached_tokens for record in ok])

    def answer(verdict: Verdict, detail: str = "") -> CacheCheck:
        return CacheCheck(verdict, expected, cached, prompt_tokens, detail)

    if not ok:
        return answer(Verdict.NOTHING_FINISHED)
    if cached is None:
        silent = sum(record.num_cached_tokens is None for record in ok)
        return answer(Verdict.NOT_REPORTED, f"{silent} of {len(ok)} answers named no cached tokens")
    if expected is None:
        return answer(Verdict.UNCHECKED, "give --page-size to check the hits")
    ledger = [(r, r.num_cached_tokens or 0, r.num_expected_cached_tokens or 0) for r in ok]
    drift = next(
        (
            f"the server counted {r.prompt_tokens} prompt tokens, not {r.planned_prompt_tokens}"
            for r in ok
            if r.prompt_tokens != r.planned_prompt_tokens
        ),
        "",
    )
    for verdict, wrong in (
        (Verdict.LESS, [(record, got, want) for record, got, want in ledger if got < want]),
        (Verdict.MORE, [(record, got, want) for record, got, want in ledger if got > want]),
    ):
        if wrong:
            record, got, want = wrong[0]
            where = f"{len(wrong)} of {len(ok)} requests, e.g. {record.request_id}: {got} instead of {want}"
            return answer(verdict, f"{where}; {drift}" if drift else where)
    return answer(Verdict.CONSISTENT, drift)


def delivery_notes(records: Sequence[Record], *, ignore_eos: bool) -> list[str]:
    """What is odd about the answers apart from the cache: failures, outputs of another length than asked."""
    notes = []
    ok = [record for record in records if record.outcome is Outcome.OK]
    odd = [r for r in ok if r.num_output_tokens != r.planned_output_tokens] if ignore_eos else []
    if odd:
        notes.append(
            f"{len(odd)} of {len(ok)} outputs are not as long as asked for, e.g. {odd[0].num_output_tokens} "
            f"instead of {odd[0].planned_output_tokens} tokens"
        )
    failed = sum(record.outcome is Outcome.FAILED for record in records)
    if failed:
        notes.append(f"{failed} of {len(records)} requests failed, first: {first_failure(records)}")
    estimated = sum(record.counts_estimated for record in ok)
    if estimated:
        notes.append(
            f"{estimated} of {len(ok)} answers told only their total of tokens, not when each came: "
            "ITL is an estimate"
        )
    return notes


def first_failure(records: Iterable[Record]) -> str | None:
    """What the first request that failed ran into; None if none did."""
    return next((record.error for record in records if record.outcome is Outcome.FAILED), None)


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _ratio(part: int | None, whole: int) -> float | None:
    return None if part is None or not whole else part / whole
