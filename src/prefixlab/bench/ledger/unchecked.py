"""Why requests of a point were not checked against the cache: in words, for its verdict and its notes. Pure.

Owns those words. What is expected of a request is `point.py`'s, what is compared `check.py`'s.

Invariant: a reason is given only where requests without an expectation have finished.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from prefixlab.bench.ledger.check import PAGE_SIZE_UNKNOWN, CacheCheck, Verdict
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.console import counted

FORGETS_OTHERWISE = (
    "expected is of requests one after another: with others in flight, a cache that forgets keeps other "
    "parts of what it has seen, so some hit more and some less, which is no fault of it"
)
FINDS_ITSELF = (
    "sessions that had not ended were begun anew in a cache that was not emptied: from their first turns on "
    "they may find what they left there"
)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a point.

    Attributes:
        tokens: of what its prompts consist.
        pages: which part of a prefix can hit.
        is_chat: the server makes tokens of what is said.
        was_emptied: the cache, before its last stretch.
    """

    tokens: bool
    pages: bool
    is_chat: bool
    was_emptied: bool


def explained(check: CacheCheck, table: RecordTable, known: Known) -> tuple[CacheCheck, list[str]]:
    """With the reason in it where nothing was checked; and notes.

    Args:
        table: its segments are stretches, the first one's 0.
    """
    silent = check.verdict in (Verdict.NOT_REPORTED, Verdict.NOTHING_FINISHED)
    if silent or check.num_checked == check.num_finished:
        return check, []
    if not known.tokens:
        return replace(check, detail="prompts are text"), []
    if not known.pages:
        return replace(check, detail=PAGE_SIZE_UNKNOWN), []
    unchecked = table.ok & (table.num_expected_cached_tokens < 0)
    resumed = unchecked & (table.segment > 0)
    talk = unchecked & ~resumed & (table.turn > 0) & known.is_chat
    reasons, notes = [], []
    if resumed.any():
        reasons.append("sent after a resume")
        why = "what was in flight when it stopped was sent twice and can find itself there"
        if known.was_emptied:
            why = "the cache was emptied before it went on, and what was asked before that is gone"
        sent = f"{counted(int(resumed.sum()), 'request')} sent after the run was resumed"
        notes.append(f"{sent}: not checked against the cache, for {why}")
    if talk.any():
        reasons.append("later turns on chat")
        notes.append(
            f"{counted(int(talk.sum()), 'later turn')} on chat: not checked against the cache, for which "
            "tokens a conversation becomes there its server's template decides"
        )
    if (unchecked & ~resumed & ~talk).any():
        reasons.append("what prompts share is not known")
    nothing = check.verdict is Verdict.UNCHECKED
    return (replace(check, detail=", ".join(reasons)) if nothing else check), notes
