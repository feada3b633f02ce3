"""Log-probabilities of the prompt: one per token however it comes in, and those of the logits."""

from __future__ import annotations

import pytest
import torch

from prefixlab.core.batch import TokenLogprobs
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.engine.runner import TorchRunner
from tests.engine.harness import Table, make_request, make_runner, random_tokens

PROMPT = random_tokens(50, 1)


def prompt_logprobs(
    runner: TorchRunner, chunks: list[int], num_top: int | None = None
) -> list[TokenLogprobs]:
    sampling = SamplingParams(temperature=0.0, num_logprobs=num_top)
    request = make_request(PROMPT, sampling, return_prompt_logprobs=True)
    table, start = Table.of(runner), 0
    entries: list[TokenLogprobs] = []
    for length in chunks:
        is_last = start + length == len(PROMPT)
        # Beside a request that did not ask.
        batch = table.batch(
            (3, 0, [1, 2, 3]),
            (0, start, PROMPT[start : start + length]),
            requests=[make_request([1, 2, 3], request_id="other"), request],
            samples=[True, is_last],
        )
        result = runner.run(batch)
        assert 0 not in result.prompt_logprobs
        entries += result.prompt_logprobs[1]
        start += length
    return entries


@pytest.mark.parametrize("chunks", [[50], [1, 49], [49, 1], [16, 16, 18], [1] * 50])
def test_every_prompt_token_has_one_entry_whatever_the_chunks(chunks: list[int]) -> None:
    runner = make_runner(deterministic=True)
    entries = prompt_logprobs(runner, chunks)
    assert [entry.token_id for entry in entries] == PROMPT
    logprobs = runner.logits(Table.of(runner).batch((0, 0, PROMPT))).log_softmax(dim=1)
    assert entries[0].logprob is None
    for position, entry in enumerate(entries[1:], start=1):
        assert entry.logprob == pytest.approx(logprobs[position - 1, entry.token_id].item(), abs=1e-5)
    assert entries == prompt_logprobs(runner, [50]), "deterministic: bit for bit"


def test_the_likeliest_tokens_come_with_them_on_request() -> None:
    runner = make_runner()
    entries = prompt_logprobs(runner, [20, 30], num_top=3)
    logprobs = runner.logits(Table.of(runner).batch((0, 0, PROMPT))).log_softmax(dim=1)
    values, ids = logprobs.topk(3, dim=1)
    for position, entry in enumerate(entries[1:], start=1):
        assert [token for token, _ in entry.top] == ids[position - 1].tolist()
        assert [value for _, value in entry.top] == pytest.approx(values[position - 1].tolist(), abs=1e-5)


def test_many_rows_of_logits_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner()
    expected = prompt_logprobs(runner, [50])
    monkeypatch.setattr("prefixlab.engine.runner._LOGIT_ROWS", 7)
    parts = prompt_logprobs(runner, [50])
    assert [entry.logprob for entry in parts[1:]] == pytest.approx(
        [entry.logprob for entry in expected[1:]], abs=1e-5
    )


def test_a_request_computed_again_after_its_first_tokens_gets_its_prompts_entries_only() -> None:
    """Retracted: prompt and output are computed from the start; outputs are no prompt."""
    runner = make_runner()
    request = make_request(PROMPT[:10], return_prompt_logprobs=True)
    request.output_token_ids = [7, 8]
    tokens = request.token_ids().tolist()
    result = runner.run(Table.of(runner).batch((0, 0, tokens), requests=[request]))
    assert [entry.token_id for entry in result.prompt_logprobs[0]] == PROMPT[:10]
    decoded = runner.run(Table.of(runner).batch((0, 11, [8]), requests=[request]))
    assert decoded.prompt_logprobs == {}


def test_what_a_token_scores_as_sampled_it_scores_as_prompt() -> None:
    runner = make_runner(deterministic=True)
    sampling = SamplingParams(temperature=0.7, seed=3, num_logprobs=0)
    request = make_request(PROMPT[:10], sampling)
    result = runner.run(Table.of(runner).batch((0, 0, PROMPT[:10]), requests=[request]))
    token_id = int(result.token_ids[0])
    longer = make_request([*PROMPT[:10], token_id], return_prompt_logprobs=True)
    scored = runner.run(Table.of(runner).batch((0, 0, [*PROMPT[:10], token_id]), requests=[longer]))
    assert scored.prompt_logprobs[0][-1] == result.logprobs[0]


@pytest.mark.parametrize("deterministic", [False, True])
def test_nothing_is_scored_unasked(deterministic: bool) -> None:
    runner = make_runner(deterministic=deterministic)
    result = runner.run(Table.of(runner).batch((0, 0, PROMPT), samples=[False]))
    assert result.token_ids.tolist() == [-1]
    assert not result.logprobs
    assert not result.prompt_logprobs
    assert isinstance(runner.pool.keys[0], torch.Tensor)
