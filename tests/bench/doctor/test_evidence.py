from __future__ import annotations

import numpy as np

from prefixlab.bench.doctor.evidence import repeats_of
from prefixlab.bench.records.table import RecordTable
from tests.bench.doctor.patients import healthy_table


def test_pooled_repeats_come_apart_again() -> None:
    repeats = [healthy_table(seed=seed) for seed in range(3)]
    apart = repeats_of(RecordTable.pool(repeats))
    assert [len(table) for table in apart] == [len(table) for table in repeats]
    assert all(np.array_equal(one.sent_s, other.sent_s) for one, other in zip(apart, repeats, strict=True))


def test_stretches_of_a_resumed_repeat_stay_together() -> None:
    table = healthy_table()
    first = np.arange(len(table)) < 100
    resumed = RecordTable.pool([table.select(first), table.select(~first)])
    assert [len(one) for one in repeats_of(resumed)] == [len(table)]


def test_nothing_at_all_is_one_repeat_of_nothing() -> None:
    assert [len(one) for one in repeats_of(RecordTable.of(()))] == [0]
