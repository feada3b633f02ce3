"""What only the ledger sees: others' prompts, answers that are contradicted, a flush that was none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.doctor.diagnosis import Status
from prefixlab.bench.ledger.account import Account
from prefixlab.bench.ledger.check import check_cache
from prefixlab.bench.ledger.counters import ServerCounts
from prefixlab.bench.ledger.ledger import reconcile
from prefixlab.bench.ledger.seen import Seen
from prefixlab.bench.records.table import RecordTable
from tests.bench.doctor.patients import examined, healthy_table, named, troubles


def ledger_of(table: RecordTable, *, counted: int | None, **about: Any) -> dict[str, Any]:
    """Its keys, where the server says to have taken in so many prompt tokens."""
    counts = None if counted is None else ServerCounts(prompt_tokens=counted)
    seen = Seen(counts=counts, sent_tokens=int(table.prompt_tokens.sum()))
    return dict(reconcile(Account(table=table, check=check_cache(table), seen=seen, **about)).keys())


@pytest.mark.parametrize(
    ("foreign_share", "found"), [(0.0, {}), (0.02, {"ledger": "caution"}), (0.92, {"ledger": "bad"})]
)
def test_prompts_of_others_on_the_server(foreign_share: float, found: dict[str, str]) -> None:
    table = healthy_table()
    counted = round(int(table.prompt_tokens.sum()) * (1 + foreign_share))
    diagnosis = examined(table, ledger=ledger_of(table, counted=counted))
    assert troubles(diagnosis) == found
    assert f"{foreign_share:.1%} of ours" in named(diagnosis, "ledger").figure


def test_counters_that_nobody_saw_are_not_known() -> None:
    table = healthy_table()
    for ledger in (None, ledger_of(table, counted=None)):
        assert named(examined(table, ledger=ledger), "ledger").status is Status.UNKNOWN


def test_a_flush_that_lied_is_told_though_other_prompts_were_sent_instead() -> None:
    table = healthy_table()
    sent = int(table.prompt_tokens.sum())
    lied = examined(table, ledger=ledger_of(table, counted=sent, lie="the flush said yes, and did not"))
    assert troubles(lied) == {"ledger": "caution"}
    assert "lying reset: the flush said yes" in named(lied, "ledger").figure


def test_answers_that_misreport_count_once_and_not_as_hits_as_well() -> None:
    table = healthy_table()
    wrong = replace(table, num_cached_tokens=np.full(len(table), 16))
    sent = int(table.prompt_tokens.sum())
    diagnosis = examined(wrong, ledger=ledger_of(wrong, counted=sent, is_salted=True))
    assert troubles(diagnosis) == {"ledger": "bad"}
    assert named(diagnosis, "warm contamination").figure.endswith("see ledger")
