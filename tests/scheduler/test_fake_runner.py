"""The fake runner catches what it is there to catch: a wrong page, a stale one, a wrong position."""

from __future__ import annotations

import numpy as np
import pytest

from prefixlab.core.batch import Batch
from prefixlab.core.clock import VirtualClock
from tests.fakes import FakeRunner, oracle_tokens
from tests.scheduler.harness import make_request

PROMPT = [3, 1, 4, 1, 5, 9]


def batch_of(starts: list[int], pieces: list[list[int]], pages: list[list[int]]) -> Batch:
    lengths = [len(piece) for piece in pieces]
    return Batch(
        requests=[make_request(str(i), 4) for i in range(len(pieces))],
        rows=np.arange(len(pieces), dtype=np.int32),
        starts=np.array(starts, dtype=np.int32),
        lengths=np.array(lengths, dtype=np.int32),
        samples=np.ones(len(pieces), dtype=np.bool_),
        input_ids=np.array([token for piece in pieces for token in piece], dtype=np.int32),
        page_table=np.array(pages, dtype=np.int32),
        page_size=2,
        num_prefill_rows=len(pieces),
    )


def make_runner() -> FakeRunner:
    return FakeRunner(num_pages=8, page_size=2)


def expected(prompt: list[int], num_tokens: int = 1) -> list[int]:
    return oracle_tokens(prompt, num_tokens, vocab_size=1000)


def test_its_token_is_the_oracles_whole_in_pieces_and_on_any_pages() -> None:
    runner = make_runner()
    assert runner.run(batch_of([0], [PROMPT], [[0, 1, 2]])).token_ids.tolist() == expected(PROMPT)
    runner.run(batch_of([0], [PROMPT[:4]], [[7, 3, 5]]))
    assert runner.run(batch_of([4], [PROMPT[4:]], [[7, 3, 5]])).token_ids.tolist() == expected(PROMPT)
    first, second = expected(PROMPT, 2)
    assert runner.run(batch_of([6], [[first]], [[7, 3, 5, 6]])).token_ids.tolist() == [second]


def test_a_wrong_page_changes_its_token_even_if_it_holds_the_same_tokens_after_others() -> None:
    runner = make_runner()
    # Pages 0 and 1 hold the same two tokens, but after different beginnings.
    runner.run(batch_of([0], [[1, 1, 1, 1]], [[0, 1]]))
    right = runner.run(batch_of([4], [[2]], [[0, 1, 2]])).token_ids.tolist()
    assert right == expected([1, 1, 1, 1, 2])
    assert runner.run(batch_of([4], [[2]], [[1, 0, 2]])).token_ids.tolist() != right
    assert runner.run(batch_of([4], [[2]], [[0, 0, 2]])).token_ids.tolist() != right


def test_a_stale_page_changes_its_token() -> None:
    runner = make_runner()
    runner.run(batch_of([0], [PROMPT], [[0, 1, 2]]))
    runner.run(batch_of([0], [[8, 8]], [[1]]))
    assert runner.run(batch_of([6], [[7]], [[0, 1, 2, 3]])).token_ids.tolist() != expected([*PROMPT, 7])


def test_two_rows_writing_one_page_are_caught() -> None:
    with pytest.raises(AssertionError, match="one place"):
        make_runner().run(batch_of([0, 0], [[1, 2], [3, 4]], [[0], [0]]))


def test_it_takes_a_fixed_time_and_some_per_token() -> None:
    clock = VirtualClock()
    runner = FakeRunner(num_pages=8, page_size=2, fixed_s=1.0, per_token_s=0.5, clock=clock)
    assert runner.run(batch_of([0], [PROMPT], [[0, 1, 2]])).duration_s == 4.0
    assert clock.now() == 4.0
