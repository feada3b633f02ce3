"""What every Runner promises (core/seams.py): torch (plain and deterministic), simulated, and a fake.

Implementations differ in which tokens they make. All of them make a token from the tokens before it alone,
read back through the page table: the same however the work was cut up and whoever shared the pages.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from prefixlab.core.batch import StepResult
from prefixlab.core.clock import VirtualClock
from prefixlab.core.errors import EngineError
from prefixlab.core.request import Request
from prefixlab.core.seams import Runner
from prefixlab.core.step_time.model import LinearStepTime
from prefixlab.simulator.runner import SimulatedRunner
from tests.engine.harness import Table, make_request, make_runner, random_tokens
from tests.fakes import FakeRunner

NUM_PAGES, PAGE_SIZE, VOCAB_SIZE = 64, 8, 300


def make_torch(deterministic: bool, dtype: torch.dtype) -> Runner:
    return make_runner(dtype=dtype, num_pages=NUM_PAGES, page_size=PAGE_SIZE, deterministic=deterministic)


def make_simulated() -> Runner:
    step_time = LinearStepTime(fixed_s=1.0, prefill_token_s=0.1)
    sizes = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE, "vocab_size": VOCAB_SIZE}
    return SimulatedRunner(step_time, VirtualClock(), first_token_id=200, **sizes)


RUNNERS: dict[str, Callable[[], Runner]] = {
    "fake": lambda: FakeRunner(num_pages=NUM_PAGES, page_size=PAGE_SIZE, vocab_size=VOCAB_SIZE),
    "simulated": make_simulated,
    "torch": lambda: make_torch(False, torch.float32),
    "torch-deterministic": lambda: make_torch(True, torch.float32),
    "torch-deterministic-bfloat16": lambda: make_torch(True, torch.bfloat16),
}


@pytest.mark.parametrize("kind", RUNNERS)
class TestRunner:
    @pytest.fixture(autouse=True)
    def _make(self, kind: str) -> None:
        self.runner = RUNNERS[kind]()
        self.table = Table(NUM_PAGES, PAGE_SIZE)

    def run(self, *entries: tuple[int, int, list[int]], samples: list[bool] | None = None) -> StepResult:
        return self.runner.run(self.table.batch(*entries, samples=samples))

    def token(self, *entries: tuple[int, int, list[int]]) -> int:
        return int(self.run(*entries).token_ids[-1])

    def test_it_answers_one_token_per_row_and_none_where_none_is_asked(self) -> None:
        result = self.run(
            (0, 0, random_tokens(9, 1)), (1, 0, random_tokens(5, 2)), (2, 0, [3]), samples=[True, False, True]
        )
        assert result.token_ids.shape == (3,)
        assert result.token_ids.dtype == np.int32
        assert result.token_ids[1] == -1
        assert self.runner.vocab_size == VOCAB_SIZE
        assert all(0 <= token < VOCAB_SIZE for token in result.token_ids[[0, 2]])
        assert result.duration_s >= 0.0

    def test_a_token_depends_on_the_tokens_long_before_it(self) -> None:
        ending = random_tokens(10, 3)
        seen = {self.token((0, 0, random_tokens(20, 50 + i) + ending)) for i in range(12)}
        assert len(seen) > 6

    def test_chunks_give_the_token_of_the_whole_prompt(self) -> None:
        prompt = random_tokens(40, 4)
        whole = self.token((0, 0, prompt))
        for chunk in (1, 7, 8, 39):
            for start in range(0, 40, chunk):
                token = self.token((1, start, prompt[start : start + chunk]))
            assert token == whole, f"chunks of {chunk}"

    def test_decoding_gives_the_token_of_a_prefill(self) -> None:
        tokens = random_tokens(11, 5)
        tokens.append(self.token((0, 0, tokens)))
        for _ in range(12):
            tokens.append(self.token((0, len(tokens) - 1, tokens[-1:])))
        assert tokens[-1] == self.token((1, 0, tokens[:-1]))

    def test_pages_another_row_computed_serve_as_well(self) -> None:
        shared, own = random_tokens(24, 6), random_tokens(10, 7)
        alone = self.token((0, 0, shared + own))
        self.run((1, 0, shared + random_tokens(3, 8)))
        self.table.share(1, 2, 24)
        assert self.token((2, 24, own)) == alone

    def test_neighbours_do_not_change_a_token(self) -> None:
        prompts = [random_tokens(length, 10 + length) for length in (1, 6, 8, 30)]
        alone = [self.token((0, 0, prompt)) for prompt in prompts]
        together = self.run(*[(row, 0, prompt) for row, prompt in enumerate(prompts)])
        assert together.token_ids.tolist() == alone

    def test_pages_used_before_hold_nothing_over(self) -> None:
        prompt = random_tokens(20, 20)
        fresh = self.token((0, 0, prompt))
        for row in range(1, 8):
            self.run((row, 0, random_tokens(40, 20 + row)))
        for row in range(8):
            self.table.give_back(row)
        assert self.token((3, 0, prompt)) == fresh

    def test_a_request_goes_on_anywhere_since_nothing_of_it_is_kept(self) -> None:
        """Retracted: pages gone, another row, even another object; the next token is the same."""
        prompt = random_tokens(13, 30)
        first = make_request(prompt, request_id="a")
        for start, tokens in ((0, prompt), (13, None), (14, None)):
            now = tokens or first.output_token_ids[-1:]
            result = self.runner.run(self.table.batch((0, start, now), requests=[first]))
            first.output_token_ids.append(int(result.token_ids[0]))
        self.table.give_back(0)
        again = make_request(prompt, request_id="a")
        again.output_token_ids = first.output_token_ids[:2]
        result = self.runner.run(self.table.batch((5, 0, again.token_ids().tolist()), requests=[again]))
        assert result.token_ids[0] == first.output_token_ids[2]

    def test_it_changes_nothing_it_is_given(self) -> None:
        requests: list[Request] = [make_request(random_tokens(9, 40)), make_request([5], request_id="b")]
        entries = [(row, 0, request.prompt_token_ids.tolist()) for row, request in enumerate(requests)]
        batch = self.table.batch(*entries, requests=requests)
        arrays = ("rows", "starts", "lengths", "samples", "input_ids", "page_table")
        before = {name: getattr(batch, name).copy() for name in arrays}
        states = [{name: getattr(request, name) for name in Request.__slots__} for request in requests]
        self.runner.run(batch)
        for name, value in before.items():
            assert np.array_equal(getattr(batch, name), value), name
        for request, state in zip(requests, states, strict=True):
            assert {name: getattr(request, name) for name in Request.__slots__} == state


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_step_torch_cannot_compute_is_an_engine_error(deterministic: bool) -> None:
    runner = make_torch(deterministic, torch.float32)
    table = Table(NUM_PAGES, PAGE_SIZE)
    with pytest.raises(EngineError, match="3 tokens"):
        runner.run(table.batch((0, 0, [1, VOCAB_SIZE, 2])))
    assert runner.run(table.batch((0, 0, [1, 2]))).token_ids[0] >= 0
