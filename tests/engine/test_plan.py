"""The plan of a step against what it means: every token has a row and a slot, every query its own KV."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefixlab.core.batch import Batch
from prefixlab.engine.attention import plan as plan_module
from prefixlab.engine.attention.plan import MAX_PADDING_SHARE, StepPlan, make_plan
from tests.engine.harness import Table

ROWS = st.lists(
    st.tuples(st.integers(0, 150), st.just(1) | st.integers(1, 60)), min_size=1, max_size=8
)  # (start, length)
TILE = 16


def make_batch(rows: list[tuple[int, int]], page_size: int) -> Batch:
    table = Table(2000, page_size)
    entries = [(i, start, list(range(100 * i, 100 * i + length))) for i, (start, length) in enumerate(rows)]
    return table.batch(*entries)


def slot(batch: Batch, i: int, position: int) -> int:
    """Where position `position` of request i lies, by the definition of the page table."""
    page = batch.page_table[batch.rows[i], position // batch.page_size]
    assert page >= 0
    return int(page) * batch.page_size + position % batch.page_size


def tokens_of(batch: Batch) -> list[tuple[int, int]]:
    """(request, position) of every token, in batch order."""
    return [
        (i, int(batch.starts[i]) + j) for i in range(batch.num_rows) for j in range(int(batch.lengths[i]))
    ]


def seen_by(plan: StepPlan) -> dict[int, list[int]]:
    """The slots each row attends to, by row; fails when a row attends twice."""
    seen: dict[int, list[int]] = {}
    for sequence in plan.sequences:
        for block in sequence.blocks:
            for row in range(block.keep_begin, block.keep_end):
                assert row not in seen
                num_visible = block.kv_len - (block.end - 1 - row)
                seen[row] = sequence.slots[:num_visible].tolist()
    for group in plan.groups:
        slots = group.slots.view(len(group.rows), group.kv_len)
        for i, row in enumerate(group.rows.tolist()):
            assert row not in seen
            visible = slice(None) if group.mask is None else group.mask[i, 0, 0]
            seen[row] = slots[i][visible].tolist()
    return seen


@given(rows=ROWS, page_size=st.sampled_from([1, 5, 16]), tiled=st.booleans(), block=st.sampled_from([7, 512]))
def test_every_token_has_a_row_a_slot_and_sees_its_past(
    rows: list[tuple[int, int]], page_size: int, tiled: bool, block: int
) -> None:
    batch = make_batch(rows, page_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "QUERY_BLOCK", block)
        plan = make_plan(batch, TILE if tiled else None)
    tokens = tokens_of(batch)
    assert len(set(plan.token_rows.tolist())) == len(tokens), "a row is one token's"
    seen = seen_by(plan)
    for k, (i, position) in enumerate(tokens):
        row = int(plan.token_rows[k])
        assert plan.token_ids[row] == batch.input_ids[k]
        assert plan.positions[row] == position
        assert plan.write_slots[k] == slot(batch, i, position)
        # In a tile rows also stand for positions nobody computes now; only the wanted ones are kept.
        assert seen[row] == [slot(batch, i, p) for p in range(position + 1)]
    for i, row in enumerate(plan.last_rows.tolist()):
        assert plan.positions[row] == batch.starts[i] + batch.lengths[i] - 1


@given(rows=ROWS)
def test_in_tiles_place_and_shapes_follow_from_the_position_alone(rows: list[tuple[int, int]]) -> None:
    batch = make_batch(rows, 16)
    plan = make_plan(batch, TILE)
    assert plan.num_rows % TILE == 0
    for k, (_, position) in enumerate(tokens_of(batch)):
        assert plan.token_rows[k] % TILE == position % TILE
    for sequence in plan.sequences:
        for block in sequence.blocks:
            assert block.begin % TILE == 0
            assert block.end - block.begin == TILE
            assert block.kv_len % TILE == 0
            for row in range(block.keep_begin, block.keep_end):
                used = row in set(plan.token_rows.tolist())
                assert not used or plan.positions[row] // TILE == block.kv_len // TILE - 1


@given(rows=ROWS, tiled=st.booleans())
def test_padding_is_made_of_a_requests_own_slots(rows: list[tuple[int, int]], tiled: bool) -> None:
    """Masked or not, nobody's KV is multiplied with another's query: a NaN there would get through."""
    batch = make_batch(rows, 5)
    plan = make_plan(batch, TILE if tiled else None)
    own = [{slot(batch, i, p) for p in range(start + length)} for i, (start, length) in enumerate(rows)]
    for sequence in plan.sequences:
        assert any(set(sequence.slots.tolist()) <= slots for slots in own)
    for group in plan.groups:
        for slots in group.slots.view(len(group.rows), group.kv_len).tolist():
            assert any(set(slots) <= one for one in own)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40))
@example([5000] * 40)
@example([100_000, 100_000, 99_999])
def test_decode_groups_are_of_similar_context_and_bounded_size(kv_lens: list[int]) -> None:
    members = np.arange(len(kv_lens))
    lens: Any = np.array(kv_lens)
    groups = plan_module._group_by_context(members, lens)
    assert sorted(np.concatenate(groups).tolist()) == members.tolist()
    for group in groups:
        longest, shortest = lens[group].max(), lens[group].min()
        assert shortest >= (1 - MAX_PADDING_SHARE) * longest
        assert len(group) == 1 or longest * len(group) <= plan_module.MAX_GROUP_SLOTS


def test_rows_at_one_place_of_their_tiles_need_a_tile_each_and_others_share() -> None:
    shared = make_plan(make_batch([(3, 1), (4, 1), (21, 1)], 16), TILE)
    assert shared.num_rows == TILE
    crowded = make_plan(make_batch([(3, 1), (19, 1), (35, 1)], 16), TILE)
    assert crowded.num_rows == 3 * TILE
