from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.traces import fidelity
from prefixlab.bench.traces.fidelity import Fidelity, Lengths, Recorded, fidelity_of, sharing_of
from prefixlab.bench.workloads.prompts import make_prompts
from prefixlab.bench.workloads.sketch import Sketches
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import ChatWording, IdWording, common_prefix
from prefixlab.core.block_hash import TokenIds, as_token_ids
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.bench.helpers import ok_record

WORDING = IdWording(Vocabulary.of_size(64, "test"))
SKETCHES = Sketches.of(
    [[(0, 8), (1, 8), (-1, 4)], [(0, 8), (2, 8)], [(0, 8), (1, 8), (-3, 1)]],
    [3, 4, 5],
    offsets_s=np.array([0.0, 1.0, 3.0]),
)
"""By hand: nothing, 8 of 16, 16 of 17 tokens were there before."""


def tokens_of(sketches: Sketches) -> list[TokenIds]:
    return [prompt.token_ids for prompt in make_prompts(sketches, WORDING, 1)]


def table(late_s: float = 0.0, longer: int = 0, shorter_output: int = 0) -> RecordTable:
    """What became of SKETCHES, sent at twice the speed; the last one as the arguments say."""
    rows = []
    columns = zip(
        SKETCHES.prompt_tokens.tolist(), SKETCHES.output_tokens.tolist(), (0.0, 0.5, 1.5), strict=True
    )
    for number, (prompt, output, offset_s) in enumerate(columns):
        is_last = number == 2
        sent_s = offset_s + is_last * late_s
        rows.append(
            ok_record(
                f"r{number}",
                intended_s=offset_s,
                sent_s=sent_s,
                arrivals_s=[sent_s + 1.0],
                counts=[output - is_last * shorter_output],
                planned_prompt_tokens=prompt,
                planned_output_tokens=output,
                num_prompt_tokens=prompt + is_last * longer,
            )
        )
    return RecordTable.of(rows)


def compare(rows: RecordTable, *, timed: bool = True) -> Fidelity:
    return fidelity_of(Recorded.of(SKETCHES), SKETCHES, tokens_of(SKETCHES), rows, timed=timed)


def test_a_faithful_replay_is_exact_in_every_way() -> None:
    found = compare(table())
    assert found.prompts == Lengths(3, 3, 53, 53, 0)
    assert found.outputs == Lengths(3, 3, 12, 12, 0)
    assert (found.sharing.num_exact, found.sharing.num_checked) == (3, 3)
    assert found.sharing.sent == found.sharing.fitted == found.sharing.recorded == 24 / 53
    assert found.timing is not None
    assert (found.timing.lag_max_s, found.timing.recorded_s) == (0.0, 3.0)
    assert found.timing.scheduled_s == found.timing.realised_s == 1.5
    assert str(found) == (
        "prompts 3 of 3 exact, 53 tokens; outputs 3 of 3 exact, 12 tokens; sharing exact in all 3 prompts, "
        "ideal hit rate 0.45283 for 0.45283 (recorded 0.45283); sent 0/0/0 ms late (p50/p99/max), over "
        "1.50 s for 1.50 (recorded 3.00)"
    )


def test_what_differs_is_counted_and_the_furthest_is_named() -> None:
    found = compare(table(late_s=0.25, longer=2, shorter_output=3))
    assert found.prompts == Lengths(3, 2, 53, 55, 2)
    assert found.outputs == Lengths(3, 2, 12, 9, -3)
    assert found.timing is not None and found.timing.lag_max_s == 0.25 and found.timing.realised_s == 1.75
    shown = str(found)
    assert "prompts 2 of 3 exact, the furthest +2, 55 tokens for 53" in shown
    assert "outputs 2 of 3 exact, the furthest -3, 9 tokens for 12" in shown


def test_in_closed_loop_only_the_order_is_the_traces() -> None:
    found = compare(table(), timed=False)
    assert found.timing is None
    assert "the trace's order only" in str(found)
    assert found.keys()["timing"] is None


def test_of_a_resumed_replay_what_went_again_has_no_lag_and_the_schedule_goes_on_behind_the_break() -> None:
    whole = table()
    broken = replace(whole, sent_s=np.array([0.0, 0.5, np.nan]))
    # the second, cut off, goes again at once; the third was due a second after the break
    rest = replace(whole, intended_s=np.array([np.nan, 0.0, 1.0]), sent_s=np.array([np.nan, 0.7, 1.25]))
    found = fidelity_of(
        Recorded.of(SKETCHES), SKETCHES, tokens_of(SKETCHES), whole, timed=True, stretches=[[broken, rest]]
    ).timing
    assert found is not None
    assert (found.scheduled_s, found.realised_s) == (0.5 + 1.0, 0.5 + 1.25)
    assert (found.lag_max_s, found.num_off_schedule) == (0.25, 1)
    assert "resumed, 1 went again off the schedule" in str(found)


def test_what_failed_or_was_not_counted_is_in_no_figure() -> None:
    unsent = Record("r", Outcome.UNSENT, intended_s=0.0, planned_prompt_tokens=5, planned_output_tokens=5)
    found = compare(RecordTable.of([unsent]))
    assert (found.prompts.num_counted, found.outputs.num_counted, found.timing) == (0, 0, None)
    assert "prompts not counted by the server" in str(found)


def test_prompts_that_share_more_or_less_than_recorded_are_found_in_their_tokens() -> None:
    prompts = tokens_of(SKETCHES)
    prompts[1] = prompts[0].copy()
    sharing = sharing_of(Recorded.of(SKETCHES), SKETCHES, prompts)
    assert (sharing.num_exact, sharing.num_checked) == (2, 3)
    assert "sharing exact in 2 of 3 prompts" in str(sharing)


def test_a_chat_template_is_shared_by_all_and_said_to_be() -> None:
    sketches = Sketches.of([[(0, 90), (-1, 40)], [(-2, 130)], [(0, 90), (-3, 40)]], [1, 1, 1])
    wording = ChatWording(ByteTokenizer())
    prompts = [prompt.token_ids for prompt in make_prompts(sketches, wording, 1)]
    head = wording.num_head_tokens
    sharing = sharing_of(Recorded.of(sketches), sketches, prompts, head)
    assert (sharing.num_exact, sharing.num_checked) == (3, 3)
    assert sharing.sent == (90 + head) / 390 > sharing.fitted == 90 / 390
    assert f"all share a chat template's {head} tokens besides" in str(sharing)


def test_only_so_many_tokens_are_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "MOST_TOKENS", 40)
    sharing = sharing_of(Recorded.of(SKETCHES), SKETCHES, tokens_of(SKETCHES))
    assert (sharing.num_exact, sharing.num_checked) == (2, 2)
    assert sharing.sent == sharing.fitted == 8 / 36


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=12))
def test_sharing_is_what_comparing_every_pair_finds(rows: list[list[int]]) -> None:
    prompts = [as_token_ids(row) for row in rows]
    wanted = [
        max((common_prefix(prompt, earlier) for earlier in prompts[:place]), default=0)
        for place, prompt in enumerate(prompts)
    ]
    found = [shared for shared, _ in fidelity._shared_with_earlier(prompts)]
    assert found == wanted


pieces = st.lists(st.tuples(st.integers(0, 2), st.just(4)), min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(pieces, min_size=1, max_size=12))
def test_prompts_made_of_any_sketches_share_exactly_what_these_say(rows: list[list[tuple[int, int]]]) -> None:
    sketches = Sketches.of(rows, list(itertools.repeat(1, len(rows))))
    sharing = sharing_of(Recorded.of(sketches), sketches, tokens_of(sketches))
    assert sharing.num_exact == sharing.num_checked == len(rows)
