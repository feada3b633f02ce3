"""The ledger: expected hits, those in answers, in the server's counters, in its KV events; one verdict. Pure.

Owns the order in which causes are looked for, and how the verdict reads. What speaks for a cause is
`causes.py`'s; what answers say against what was expected, `check.py`'s.

Invariant: consistent means that every side that can be heard agrees; else there is a cause, a sentence of
evidence for it, and what to do. Where evidence does not suffice the cause is unknown, with its candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prefixlab.bench.ledger import causes
from prefixlab.bench.ledger.account import Account
from prefixlab.bench.ledger.causes import Cause, Finding
from prefixlab.bench.ledger.check import CacheCheck, Verdict
from prefixlab.bench.ledger.seen import Seen

FINDERS: Sequence[Callable[[Account], Finding | None]] = (
    causes.caching_off,
    causes.not_reported,
    causes.misreported,
    causes.lying_reset,
    causes.drift,
    causes.apart,
    causes.page_size,
    causes.more_than_one_could,
    causes.warm,
    causes.overlap,
    causes.foreign,
    causes.evicted,
    causes.no_hits,
    causes.other_replica,
)
"""In this order: what is certain comes before what is concluded."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """See the module.

    Attributes:
        check: the answers against what was expected.
        finding: None where hits are as expected, and where nothing can be compared.
        remarks: what should be known of the sides themselves.
    """

    check: CacheCheck
    seen: Seen
    finding: Finding | None = None
    remarks: tuple[str, ...] = ()

    @property
    def is_consistent(self) -> bool:
        return self.finding is None and self.check.verdict is Verdict.CONSISTENT

    @property
    def word(self) -> str:
        """The verdict, for a column: consistent, a cause, or why there is none."""
        named = self.finding is not None and self.finding.cause is not Cause.UNKNOWN
        if self.finding is None or (not named and self.check.verdict is not Verdict.CONSISTENT):
            return str(self.check.verdict.value)
        return str(self.finding.cause.value)

    @property
    def words(self) -> str:
        """The verdict, and how far it reaches."""
        if self.finding is None:
            return self.check.words
        cause = self.finding.cause.value
        if self.check.verdict in (Verdict.LESS, Verdict.MORE):
            return f"{self.check.words}: {cause}"
        return cause

    @property
    def line(self) -> str:
        """All sides in one line: `expected 41.2 % · answers 41.1 % · server 40.9 % → consistent`."""
        sides = [
            f"expected {_percent(self.check.expected_hit_rate)}",
            f"answers {_percent(self.check.hit_rate)}",
        ]
        counts, events = self.seen.counts, self.seen.events
        if counts is not None and counts.cached_tokens is not None:
            tiers = [f"{tier} {tokens:,}" for tier, tokens in counts.by_tier.items() if tokens]
            told = f" ({', '.join(tiers)})" if len(tiers) > 1 else ""
            sides.append(f"server {_percent(counts.hit_rate)}{told}")
        if events is not None:
            gone = f", all cleared {events.num_cleared:,} times" if events.num_cleared else ""
            sides.append(f"events {events.num_stored:,} stored, {events.num_evicted:,} evicted{gone}")
        return f"{' · '.join(sides)} → {self.words.upper()}"

    @property
    def notes(self) -> list[str]:
        """For people, below the figures."""
        if self.finding is None:
            return list(self.remarks)
        cause = f"{self.finding.cause.value}: " if self.finding.cause is not Cause.UNKNOWN else ""
        return [f"{cause}{'; '.join(self.finding.evidence)}. {_sentence(self.finding.advice)}", *self.remarks]

    def keys(self) -> dict[str, Any]:
        """For results."""
        found = self.finding
        return {
            "verdict": self.word,
            "consistent": self.is_consistent,
            "cause": None if found is None else found.cause.value,
            "evidence": [] if found is None else list(found.evidence),
            "advice": None if found is None else found.advice,
            "candidates": [] if found is None else [cause.value for cause in found.candidates],
            "remarks": list(self.remarks),
            "expected_hit_rate": self.check.expected_hit_rate,
            "answers_hit_rate": self.check.hit_rate,
            "server_hit_rate": None if self.seen.counts is None else self.seen.counts.hit_rate,
            "line": self.line,
            **self.seen.keys(),
        }


def verdict_word(check: CacheCheck, ledger: Ledger | None) -> str:
    """The ledger's where there is one; else what answers alone say. Every report takes it from here."""
    return str(check.verdict.value) if ledger is None else ledger.word


def verdict_words(check: CacheCheck, ledger: Ledger | None) -> str:
    """The same, and how far it reaches."""
    return check.words if ledger is None else ledger.words


def reconcile(account: Account) -> Ledger:
    """See the module."""
    verdict = account.check.verdict
    remarks = tuple(_remarks(account))
    if verdict is Verdict.NOTHING_FINISHED:
        return Ledger(account.check, account.seen, None, remarks)
    found = next((finding for find in FINDERS if (finding := find(account)) is not None), None)
    disagrees = verdict in (Verdict.LESS, Verdict.MORE) or (
        verdict is Verdict.CONSISTENT and bool(account.server_off)
    )
    if found is None and disagrees:
        found = causes.unknown(account)
    return Ledger(account.check, account.seen, found, remarks)


def _remarks(account: Account) -> list[str]:
    counts, events = account.seen.counts, account.seen.events
    remarks = []
    if account.none_expected is not None and account.check.expected_cached_tokens == 0:
        remarks.append(f"no hits were expected: {account.none_expected}")
    if counts is not None and counts.num_restarts:
        remarks.append(
            "the server's counters fell during the run: it was started anew, or another one answered"
        )
    elif account.is_partial and counts is not None:
        remarks.append(
            f"the server's counters know of {counts.prompt_tokens or 0:,} of {account.answered_tokens:,} "
            "prompt tokens that were answered"
        )
    if events is not None and events.num_lost:
        remarks.append(f"KV events: {events.num_lost:,} batches were lost on the way")
    return remarks


def _percent(rate: float | None) -> str:
    return "n/a" if rate is None else f"{100 * rate:.1f} %"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
