"""The verdict, from figures made by hand: what is known on the left, what follows on the right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.ledger.account import Account
from prefixlab.bench.ledger.causes import Cause
from prefixlab.bench.ledger.check import Verdict, check_cache
from prefixlab.bench.ledger.counters import ServerCounts
from prefixlab.bench.ledger.holders import Holders
from prefixlab.bench.ledger.ledger import Ledger, reconcile
from prefixlab.bench.ledger.seen import EventCounts, Seen, sent_tokens
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record

N, PROMPT, SHARED = 20, 100, 80


def account(
    got: int | None = SHARED, *, misses: int = 0, told: int | None = PROMPT, **fields: Any
) -> Account:
    """Twenty prompts of 100 tokens of which the first 80 were to hit; `misses` of them hit nothing."""
    table = RecordTable.of(
        ok_record(
            f"r{row}",
            planned_prompt_tokens=PROMPT,
            num_prompt_tokens=told,
            num_expected_cached_tokens=SHARED,
            num_cached_tokens=0 if row < misses else got,
        )
        for row in range(N)
    )
    known = {"page_size": 16, "holders": Holders.warmed(N, SHARED)}
    return Account(table=table, check=check_cache(table), **{**known, **fields})


def counted(prompt: int = N * PROMPT, cached: int | None = N * SHARED, **more: Any) -> Seen:
    events = more.pop("events", None)
    return Seen(ServerCounts(prompt, None, cached, **more), events, N * PROMPT)


def ready(*tokens: int, distance: int = -1) -> Holders:
    """What had been computed when each was sent: of all rows the last one given, but for the first ones."""
    column = np.array((tokens + (tokens[-1],) * N)[:N], np.int64)
    return replace(
        Holders.warmed(N, SHARED), ready=column, ended=column, distance=np.full(N, distance, np.int64)
    )


FAR_MISSES = replace(Holders.warmed(N, SHARED), distance=np.array([9000] * 8 + [100] * 12))
EVICTING = EventCounts(num_batches=9, num_stored=50, num_evicted=30, num_stored_again=12)
KEEPING = EventCounts(num_batches=9, num_stored=50, num_evicted=30)


@pytest.mark.parametrize(
    ("known", "cause"),
    [
        (account(), None),
        (account(seen=counted()), None),
        (account(seen=counted(events=EVICTING)), None),
        (account(none_expected="forced miss", caching_off="off"), None),
        (account(caching_off="the server says prefix caching is off"), Cause.NO_HITS),
        (account(0, seen=counted(cached=0)), Cause.NO_HITS),
        (account(None, seen=counted()), Cause.NOT_REPORTED),
        (account(None, caching_off="off"), Cause.NO_HITS),
        (account(96, seen=counted()), Cause.MISREPORTED),
        (account(48, seen=counted()), Cause.MISREPORTED),
        (account(96, is_salted=True), Cause.MISREPORTED),
        (account(lie="the flush said yes"), Cause.LYING_RESET),
        (account(96, lie="the flush said yes"), Cause.LYING_RESET),
        (account(told=101), Cause.DRIFT),
        (account(64, told=90), Cause.DRIFT),
        (account(64), Cause.PAGE_SIZE),
        (account(64, page_size=None), Cause.UNKNOWN),
        (account(96), Cause.WARM),
        (account(96, is_cold=True), Cause.UNKNOWN),
        (account(96, capacity_tokens=900, footprint_tokens=2000), Cause.EVICTED),
        (account(misses=3, holders=ready(0, 0, 0, 80)), Cause.OVERLAP),
        (account(misses=3, holders=ready(0, 80)), Cause.UNKNOWN),
        (account(seen=counted(prompt=3000)), Cause.FOREIGN),
        (account(misses=3, seen=counted(prompt=3000, cached=17 * SHARED)), Cause.FOREIGN),
        (account(misses=8, holders=FAR_MISSES), Cause.EVICTED),
        (account(misses=3, seen=counted(cached=17 * SHARED, events=EVICTING)), Cause.EVICTED),
        (account(misses=3, capacity_tokens=900, footprint_tokens=2000), Cause.EVICTED),
        (account(misses=8, holders=FAR_MISSES, capacity_tokens=9000, footprint_tokens=2000), Cause.UNKNOWN),
        (account(misses=3, seen=counted(cached=17 * SHARED, events=KEEPING)), Cause.OTHER_REPLICA),
        (account(misses=3, seen=counted(cached=17 * SHARED, num_evicted=0)), Cause.OTHER_REPLICA),
        (account(misses=3, seen=counted(prompt=1000, cached=800)), Cause.OTHER_REPLICA),
        (account(misses=3, num_servers=2), Cause.UNKNOWN),
        (
            account(
                misses=3,
                num_servers=2,
                holders=replace(ready(80), here=np.array([0] * 3 + [80] * 17)),
            ),
            Cause.OTHER_REPLICA,
        ),
        (account(misses=3), Cause.UNKNOWN),
        (account(misses=3, holders=None), Cause.UNKNOWN),
    ],
)  # fmt: skip
def test_what_is_known_leads_to_one_verdict(known: Account, cause: Cause | None) -> None:
    ledger = reconcile(known)
    found = ledger.finding
    assert (None if found is None else found.cause) is cause, ledger.notes
    assert ledger.is_consistent is (cause is None)
    if found is not None:
        assert found.evidence and found.advice, "no cause without evidence and what to do"
        assert bool(found.candidates) is (cause is Cause.UNKNOWN), "candidates where it is not known"


def test_nothing_that_could_be_known_is_guessed() -> None:
    ledger = reconcile(account(misses=3, holders=None))
    assert ledger.word == "less than expected"
    assert ledger.finding is not None
    names = {Cause.OVERLAP, Cause.EVICTED, Cause.OTHER_REPLICA, Cause.FOREIGN}
    assert set(ledger.finding.candidates) == names
    assert "3 of 20 requests hit less than expected" in ledger.notes[0]


def test_a_run_in_which_nothing_finished_has_no_cause() -> None:
    table = RecordTable.of([Record("r", Outcome.UNSENT, 0.0)])
    ledger = reconcile(Account(table=table, check=check_cache(table), caching_off="off"))
    assert ledger.finding is None and not ledger.is_consistent
    assert ledger.word == Verdict.NOTHING_FINISHED.value


def test_counters_of_some_replicas_only_do_not_make_good_hits_bad() -> None:
    ledger = reconcile(account(seen=counted(prompt=900, cached=700)))
    assert ledger.is_consistent
    assert ledger.notes == ["the server's counters know of 900 of 2,000 prompt tokens that were answered"]


def test_a_server_started_anew_is_a_remark_and_its_counts_prove_nothing() -> None:
    ledger = reconcile(account(seen=counted(prompt=99_999, num_restarts=1)))
    assert ledger.is_consistent and "started anew" in ledger.notes[0]


def test_answers_and_counters_that_differ_are_never_consistent() -> None:
    ledger = reconcile(account(seen=counted(cached=400)))
    assert not ledger.is_consistent
    assert ledger.word == "cause unknown"
    assert "answers add up to 1,600 cached tokens, the server's own counters to 400" in ledger.notes[0]


def test_what_was_cut_off_may_have_hit_too() -> None:
    known = account(seen=counted(cached=N * SHARED + 60))
    seen = replace(known.seen, sent_tokens=N * PROMPT + PROMPT)
    assert reconcile(replace(known, seen=seen)).is_consistent


def test_what_we_sent_is_every_attempt_and_unknown_where_a_length_is() -> None:
    records = [
        ok_record("a", planned_prompt_tokens=10, num_retries=2),
        ok_record("b", planned_prompt_tokens=10, num_prompt_tokens=12),
        Record("c", Outcome.UNSENT, 0.0, planned_prompt_tokens=99),
    ]
    assert sent_tokens(RecordTable.of(records)) == 42
    assert sent_tokens(RecordTable.of([ok_record("text")])) is None


def test_all_sides_stand_in_one_line_and_in_the_results() -> None:
    seen = counted(cached=17 * SHARED, by_tier={"device": 1000, "host": 360}, events=EVICTING)
    ledger = reconcile(account(misses=3, seen=seen))
    assert ledger.line == (
        "expected 80.0 % · answers 68.0 % · server 68.0 % (device 1,000, host 360) · "
        "events 50 stored, 30 evicted → LESS THAN EXPECTED: EVICTED"
    )
    keys = ledger.keys()
    assert (keys["verdict"], keys["cause"], keys["consistent"]) == ("evicted", "evicted", False)
    assert keys["server_hit_rate"] == pytest.approx(0.68)
    assert keys["counts"]["by_tier"] == {"device": 1000, "host": 360}
    assert keys["events"]["num_stored_again"] == 12


def test_a_verdict_reads_the_same_in_a_column_and_in_a_sentence() -> None:
    def said(ledger: Ledger) -> tuple[str, str]:
        return ledger.word, ledger.words

    assert said(reconcile(account())) == ("consistent", "consistent")
    assert said(reconcile(account(None))) == ("not reported", "not reported")
    assert said(reconcile(account(misses=3))) == (
        "less than expected",
        "less than expected: cause unknown",
    )
