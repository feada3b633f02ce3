"""Why hits are not as expected: each cause, and the evidence that tells it from the others. Pure.

Owns the causes, their evidence and their advice. A finder looks at an Account and answers with a Finding, or
with None where its evidence is not there. What is asked first, and what follows from nothing found, is
`ledger.py`'s.

Invariant: a cause is named where figures leave no other; the rest are candidates, and said to be.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.ledger.account import TOLERANCE, Account
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.records.table import BoolArray

MOST = 0.9
"""Of the tokens that did not hit: a cause that explains so many is the one."""
FEWEST_RANKED = 5
"""Hits, and misses, below which their distances tell nothing."""
FAR = 0.8
"""Chance that a miss comes from further back than a hit, from which distance is the reason."""


class Cause(enum.Enum):
    NOT_REPORTED = "not reported"
    NO_HITS = "no hits"
    MISREPORTED = "misreported"
    """Answers contradict the server's own count, and that is as expected."""
    DRIFT = "tokenisation drift"
    PAGE_SIZE = "another page size"
    OVERLAP = "in-flight overlap"
    EVICTED = "evicted"
    OTHER_REPLICA = "other replica"
    FOREIGN = "foreign traffic"
    WARM = "warm contamination"
    LYING_RESET = "lying reset"
    UNKNOWN = "cause unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause, what speaks for it, and what to do.

    Attributes:
        candidates: of an unknown cause, what it may be.
    """

    cause: Cause
    evidence: tuple[str, ...]
    advice: str
    candidates: tuple[Cause, ...] = ()


def caching_off(account: Account) -> Finding | None:
    advice = "start the server with prefix caching on; --expect-miss, if that is what is to be measured"
    if account.none_expected is not None:
        return None
    if account.caching_off is not None:
        told = account.check.cached_tokens
        hits = "answers name no cached tokens" if told is None else f"answers name {told:,} cached tokens"
        return Finding(Cause.NO_HITS, (account.caching_off, hits), advice)
    counts = account.seen.counts
    if counts is None or account.none_expected or account.check.cached_tokens:
        return None
    if counts.looked_up_tokens == 0 and (counts.prompt_tokens or 0) > 0:
        asked = (
            f"the server took in {counts.prompt_tokens:,} prompt tokens and looked none of them up in a cache"
        )
        return Finding(Cause.NO_HITS, (asked, "prefix caching is off"), advice)
    return None


def not_reported(account: Account) -> Finding | None:
    if account.check.verdict is not Verdict.NOT_REPORTED:
        return None
    evidence = [account.check.detail]
    counts, expected = account.seen.counts, account.check.expected_cached_tokens
    if counts is not None and counts.cached_tokens is not None:
        wanted = "" if expected is None else f" for {expected:,} expected"
        evidence.append(f"the server's own counters say {counts.cached_tokens:,} cached tokens{wanted}")
    advice = (
        "let answers name them: vLLM needs --enable-prompt-tokens-details, SGLang's OpenAI API "
        "--enable-cache-report"
    )
    return Finding(Cause.NOT_REPORTED, tuple(evidence), advice)


def misreported(account: Account) -> Finding | None:
    """Answers are contradicted: by counters that are as expected, or by prompts that nobody can have sent."""
    advice = "go by the server's counters; whoever fills in the answers' usage (a proxy, perhaps) is wrong"
    counts, check = account.seen.counts, account.check
    off, expected = account.server_off, check.expected_cached_tokens
    if account.is_salted and check.verdict is Verdict.MORE and _unsent(account).any():
        row = int(_unsent(account).argmax())
        impossible = (
            f"prompts made anew for this run hit, e.g. {account.table.request_id[row]} by "
            f"{account.table.num_cached_tokens[row]:,} tokens: no cache can have held them"
        )
        return Finding(Cause.MISREPORTED, (impossible,), advice)
    if not off or counts is None or counts.cached_tokens is None or expected is None:
        return None
    all_checked = check.num_checked == check.num_finished
    if not all_checked or abs(counts.cached_tokens - expected) > TOLERANCE * max(1, account.answered_tokens):
        return None
    sides = (
        f"answers add up to {check.cached_tokens:,} cached tokens, the server's own counters to "
        f"{counts.cached_tokens:,}; {expected:,} were expected"
    )
    return Finding(Cause.MISREPORTED, (sides,), advice)


def lying_reset(account: Account) -> Finding | None:
    if account.lie is None or account.check.verdict is Verdict.LESS:
        return None  # what was kept makes no hit shorter
    evidence = [account.lie]
    if account.check.verdict is Verdict.CONSISTENT:
        evidence.append("prompts were made anew instead, and their hits are as expected")
    advice = "find the tier that a flush leaves out (host memory, storage), or start the server anew"
    return Finding(Cause.LYING_RESET, tuple(evidence), advice)


def drift(account: Account) -> Finding | None:
    """Prompts are not as long for the server as they were planned: not the tokens that were meant."""
    table, checked = account.table, account.checked
    off = checked & (table.num_prompt_tokens >= 0) & (table.num_prompt_tokens != table.planned_prompt_tokens)
    wrong = account.less | account.more
    among = wrong if wrong.any() else checked
    if not off.any() or (off & among).sum() * 2 <= among.sum():
        return None
    row = int((off & among).argmax())
    evidence = (
        f"the server counted other prompt lengths than planned in {int(off.sum()):,} of "
        f"{int(checked.sum()):,} requests, e.g. {table.num_prompt_tokens[row]:,} tokens and not "
        f"{table.planned_prompt_tokens[row]:,} in {table.request_id[row]}"
    )
    shorter = f"{int(account.less.sum()):,} hits are shorter than expected" if account.less.any() else ""
    advice = "give the model's own --tokenizer (and chat template), or send token ids"
    return Finding(Cause.DRIFT, (evidence, *([shorter] if shorter else [])), advice)


def page_size(account: Account) -> Finding | None:
    """All hits are what pages of another size give."""
    table, known = account.table, account.known
    told = account.checked & (known.ready >= 0) & (known.ready == known.shared)
    hits = table.num_cached_tokens[told & (table.num_cached_tokens > 0)]
    if account.page_size is None or len(hits) < 2:
        return None
    wrong = (account.less | account.more) & told
    if not wrong.any() or _are_hits_of(account, told, account.page_size):
        return None
    divisor = math.gcd(*hits.tolist())
    sizes = [1 << power for power in range(divisor.bit_length()) if divisor % (1 << power) == 0]
    size = next((size for size in sizes if _are_hits_of(account, told, size)), None)
    if size is None:
        return None
    evidence = f"all hits are those of pages of {size} tokens, and none of {account.page_size} was to be"
    return Finding(Cause.PAGE_SIZE, (evidence,), f"give --page-size {size}, or ask whoever runs the server")


def more_than_one_could(account: Account) -> Finding | None:
    """More than expected, where the cache is too small for all: what it keeps depends on the order."""
    if account.check.verdict is not Verdict.MORE or account.fits is not False:
        return None
    evidence = (
        f"{_footprint(account)}: with others in flight it forgets other parts than one request after another "
        "would make it"
    )
    return Finding(Cause.EVICTED, (evidence,), "a smaller workload, or --max-concurrency 1, is predictable")


def warm(account: Account) -> Finding | None:
    """Prompts that nobody had sent before hit, in a cache that nobody had proven empty."""
    if (
        account.check.verdict is not Verdict.MORE
        or account.is_cold
        or account.is_salted
        or account.has_foreign
    ):
        return None
    new = _unsent(account)
    if not new.any():
        return None
    row = int(new.argmax())
    evidence = (
        f"{int(new.sum()):,} prompts that this run had not sent before hit, e.g. "
        f"{account.table.request_id[row]} by {account.table.num_cached_tokens[row]:,} tokens, in a cache not "
        "known to have been empty"
    )
    return Finding(Cause.WARM, (evidence,), "empty it first (--flush-cache), or make other prompts (--seed)")


def apart(account: Account) -> Finding | None:
    """Several URLs: the beginning had gone to another one."""
    if account.num_servers < 2 or not _explains(account, account.apart):
        return None
    evidence = (
        f"{int(account.apart.sum()):,} of {int(account.less.sum()):,} prompts that hit too little begin as "
        "prompts do that went to another of the URLs"
    )
    return Finding(Cause.OTHER_REPLICA, (evidence,), "let requests that share a prefix go to one server")


def overlap(account: Account) -> Finding | None:
    if account.check.verdict is not Verdict.LESS or not _explains(account, account.overlapping):
        return None
    row = int(account.overlapping.argmax())
    evidence = (
        f"{int(account.overlapping.sum()):,} of {int(account.less.sum()):,} prompts that hit too little were "
        f"sent before the first that begins alike had its first token, e.g. {account.table.request_id[row]}"
    )
    advice = "fewer requests at once (--max-concurrency), or further apart (--request-rate)"
    return Finding(Cause.OVERLAP, (evidence, _whole_of(account)), advice)


def foreign(account: Account) -> Finding | None:
    if not account.has_foreign:
        return None
    counts = account.seen.counts
    assert counts is not None and counts.prompt_tokens is not None
    evidence = [
        f"the server took in {counts.prompt_tokens:,} prompt tokens during the run, "
        f"{account.foreign_tokens:,} more than this client sent"
    ]
    if account.check.verdict is Verdict.LESS:
        evidence.append("others' prompts take room in the cache, and push out what was to be hit")
    return Finding(Cause.FOREIGN, tuple(evidence), "measure on a server that nobody else uses")


def evicted(account: Account) -> Finding | None:
    if account.check.verdict is not Verdict.LESS or account.kept_all:
        return None
    counts, events = account.seen.counts, account.seen.events
    evidence = []
    if events is not None and events.num_stored_again:
        cleared = f", everything was dropped {events.num_cleared:,} times" if events.num_cleared else ""
        evidence.append(
            f"KV events: {events.num_stored_again:,} blocks were given up and computed again{cleared}"
        )
    if account.fits is False:
        evidence.append(_footprint(account))
    further = _misses_are_further(account)
    if further is not None:
        evidence.append(further)
    if not evidence:
        return None  # what was evicted may have been of use to nobody
    if counts is not None and counts.num_evicted:
        evidence.append(f"the server counted {counts.num_evicted:,} evictions")
    advice = "a larger cache, a smaller workload, or prompts that share following each other sooner"
    return Finding(Cause.EVICTED, tuple(evidence), advice)


def no_hits(account: Account) -> Finding | None:
    """Not one of several that were to; nothing had been given up, and nothing was still being computed."""
    due = account.checked & (account.table.num_expected_cached_tokens > 0)
    if due.sum() < 2 or account.table.num_cached_tokens[due].any():
        return None
    evidence = (
        f"not one of {int(due.sum()):,} requests hit that were to, though no other cause is in sight: it "
        "looks as if prefix caching were off"
    )
    return Finding(Cause.NO_HITS, (evidence,), "look at the server's settings; --expect-miss, if it is meant")


def other_replica(account: Account) -> Finding | None:
    """By counters that know of a part only; or because every other place to look was looked at."""
    if account.check.verdict is not Verdict.LESS:
        return None
    counts = account.seen.counts
    advice = "a router that knows prefixes in front of the replicas, or one replica alone"
    if account.is_partial:
        assert counts is not None and counts.prompt_tokens is not None
        known = (
            f"the server's counters know of {counts.prompt_tokens:,} of {account.answered_tokens:,} prompt "
            "tokens that were answered: there are several behind this address"
        )
        return Finding(Cause.OTHER_REPLICA, (known,), advice)
    lost = account.less & ~account.may_overlap
    if (
        not account.kept_all
        or account.foreign_tokens is None
        or not lost.any()
        or not _explains(account, lost)
    ):
        return None
    why = (
        f"the cache holds {account.capacity_tokens:,} tokens, enough for all"
        if account.fits
        else "nothing was given up and computed again"
    )
    evidence = (
        f"{int(lost.sum()):,} prompts hit too little though others that begin alike had been answered before",
        f"by elimination: {why}, nobody else sent anything, prompts are as long as planned",
    )
    return Finding(Cause.OTHER_REPLICA, evidence, advice)


def unknown(account: Account) -> Finding:
    """What is left, as candidates."""
    candidates = []
    if account.check.verdict is Verdict.LESS:
        if account.may_overlap.any():
            candidates.append(Cause.OVERLAP)
        if not account.kept_all:
            candidates.append(Cause.EVICTED)
        candidates.append(Cause.OTHER_REPLICA)
    elif account.check.verdict is Verdict.MORE:
        candidates.append(Cause.MISREPORTED)
        if not (account.is_cold or account.is_salted):
            candidates.append(Cause.WARM)
    if account.foreign_tokens is None:
        candidates.append(Cause.FOREIGN)
    names = ", ".join(cause.value for cause in candidates)
    lines = [account.check.detail] if account.check.detail else []
    if account.server_off:
        assert account.seen.counts is not None
        lines.append(
            f"answers add up to {account.check.cached_tokens:,} cached tokens, the server's own counters to "
            f"{account.seen.counts.cached_tokens:,}"
        )
    if names:
        lines.append(f"what is known does not tell which: {names}")
    advice = "KV events (--kv-events tcp://HOST:PORT), the server's /metrics or its capacity would tell more"
    return Finding(Cause.UNKNOWN, tuple(lines), advice, tuple(candidates))


def _explains(account: Account, rows: BoolArray) -> bool:
    missing = account.missing.sum()
    return bool(missing) and bool(account.missing[rows].sum() >= MOST * missing)


def _misses_are_further(account: Account) -> str | None:
    """By rank: how often a miss comes from further back than a hit does."""
    distance = account.known.distance
    due = account.checked & (account.table.num_expected_cached_tokens > 0) & (distance >= 0)
    misses, hits = distance[due & account.less & ~account.overlapping], distance[due & ~account.less]
    if min(len(misses), len(hits)) < FEWEST_RANKED:
        return None
    hits = np.sort(hits)
    below = np.searchsorted(hits, misses, "left") + np.searchsorted(hits, misses, "right")
    share = float(below.sum() / (2 * len(hits) * len(misses)))
    if share < FAR:
        return None
    return (
        f"misses come from further back: {int(np.median(misses)):,} tokens since the prompt before that "
        f"begins alike, {int(np.median(hits)):,} of those that hit (medians)"
    )


def _footprint(account: Account) -> str:
    return (
        f"the cache holds {account.capacity_tokens:,} tokens, and {account.footprint_tokens:,} are needed to "
        "forget nothing"
    )


def _whole_of(account: Account) -> str:
    return (
        f"that is {account.missing[account.overlapping].sum():,} of the {account.missing.sum():,} tokens "
        "that did not hit"
    )


def _are_hits_of(account: Account, told: BoolArray, size: int) -> bool:
    paged = account.paged(account.known.shared, size)
    return bool((paged[told] == account.table.num_cached_tokens[told]).all())


def _unsent(account: Account) -> BoolArray:
    """Hits beyond all that this run had sent before, shape (n,)."""
    shared, table = account.known.shared, account.table
    beyond = (shared >= 0) & (table.num_cached_tokens > account.paged(shared, 1))
    unsent: BoolArray = account.more & (beyond | (table.num_expected_cached_tokens == 0))
    return unsent
