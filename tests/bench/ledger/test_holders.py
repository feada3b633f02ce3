"""Who held what, against a slow twin that compares prompts one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.bench.ledger.holders import Holders, holders_of
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.workloads.sketch import Sketches
from tests.bench.helpers import ok_record

SIZES = {0: 7, 1: 5, 2: 3}
"""Of a piece at each depth: keys that others follow have one length."""


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[float], list[float], list[int]]:
    """Paths of keys, when each was sent, when its first token came, and to which server it went."""
    paths = draw(st.lists(st.tuples(*[st.integers(1, 2)] * 3), min_size=1, max_size=8))
    sent = draw(st.lists(st.integers(0, 6).map(float), min_size=len(paths), max_size=len(paths)))
    took = draw(st.lists(st.integers(1, 4).map(float), min_size=len(paths), max_size=len(paths)))
    servers = draw(st.lists(st.integers(0, 1), min_size=len(paths), max_size=len(paths)))
    return paths, sent, [at + more for at, more in zip(sent, took, strict=True)], servers


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    tokens = 0
    for depth, (a, b) in enumerate(zip(one, other, strict=True)):
        if a != b:
            break
        tokens += SIZES[depth]
    return tokens


@given(plans())
def test_what_is_shared_and_ready_and_near_is_what_comparing_prompts_says(
    plan: tuple[list[tuple[int, ...]], list[float], list[float], list[int]],
) -> None:
    paths, sent, done, servers = plan
    pieces = [[(key, SIZES[depth]) for depth, key in enumerate(path)] for path in paths]
    sketches = Sketches.of(pieces, [1] * len(paths))
    records = [
        ok_record(f"r{row}", intended_s=sent[row], arrivals_s=[done[row]]) for row in range(len(paths))
    ]
    shuffled = sorted(range(len(paths)), key=lambda row: (done[row], row))
    table = RecordTable.of(records[row] for row in shuffled)
    ids = [f"r{row}" for row in range(len(paths))]
    found = holders_of(sketches, None, table, ids, np.array(servers))
    for place, row in enumerate(shuffled):
        shared = max((common(paths[row], paths[before]) for before in range(row)), default=0)
        ready = max(
            (
                common(paths[row], paths[other])
                for other in range(len(paths))
                if other != row and done[other] < sent[row]
            ),
            default=0,
        )
        here = max(
            (common(paths[row], paths[at]) for at in range(row) if servers[at] == servers[row]), default=0
        )
        assert found.shared[place] == shared
        assert found.ready[place] == min(ready, shared) == found.ended[place], "one token each"
        assert found.here[place] == here


def test_distance_is_what_was_computed_since_the_prompt_before_that_begins_alike() -> None:
    sketches = Sketches.of([[(1, 10), (-1, 5)], [(2, 10), (-2, 5)], [(1, 10), (-3, 5)]], [1, 1, 1])
    table = RecordTable.of(ok_record(f"r{row}") for row in range(3))
    found = holders_of(sketches, None, table, ["r0", "r1", "r2"])
    assert found.distance.tolist() == [-1, -1, 32]
    assert found.shared.tolist() == [0, 0, 10]


def test_of_a_request_that_is_in_no_plan_nothing_is_known() -> None:
    sketches = Sketches.of([[(1, 10)]], [1])
    found = holders_of(sketches, None, RecordTable.of([ok_record("other")]), ["r0"])
    assert found.shared.tolist() == found.ready.tolist() == found.distance.tolist() == [-1]


def test_holders_of_repeats_lie_one_behind_the_other() -> None:
    both = Holders.concat([Holders.warmed(2, 30), Holders.unknown(1)])
    assert both.shared.tolist() == both.ready.tolist() == [30, 30, -1]
