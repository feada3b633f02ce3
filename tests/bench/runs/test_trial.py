from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.runs.point import Asker, outline
from prefixlab.bench.runs.trial import refuses, try_out
from prefixlab.bench.targets.endpoint import open_endpoint
from prefixlab.core.errors import TargetError
from tests.bench.fake_server import FakeServer

SMALL = DatasetConfig(num_prompts=8, random_input_len=20, random_output_len=4)


def config_of(**dataset: Any) -> ServeConfig:
    return ServeConfig(dataset=replace(SMALL, **dataset), load=LoadConfig(max_concurrency=2))


def try_on(server: FakeServer, config: ServeConfig, backend: str = "openai", **target: Any) -> None:
    settings = TargetConfig(base_url=server.url, backend=backend, **target)
    with open_endpoint(settings, server.url, lambda facts: None) as endpoint:
        try_out(endpoint, config)


@pytest.fixture
def terse_server(fake_server: FakeServer) -> FakeServer:
    """It does not say how many token ids its model knows."""
    fake_server.behaviour.known_endpoints = frozenset({"models"})
    return fake_server


def test_a_server_that_takes_the_ids_is_sent_one_request_for_one_token(terse_server: FakeServer) -> None:
    try_on(terse_server, config_of(), vocab_size=500)
    (body,) = terse_server.bodies
    assert (body["prompt"][-1], body["max_tokens"]) == (499, 1), "the highest id shows whether all are known"


@pytest.mark.parametrize("behaviour", [{"vocab_size": 31_000}, {"takes_ids": False}])
def test_a_server_that_does_not_is_told_of_at_once_with_what_to_do(
    terse_server: FakeServer, behaviour: dict[str, Any]
) -> None:
    for name, value in behaviour.items():
        setattr(terse_server.behaviour, name, value)
    words = r"HTTP 4\d\d .* \(give --vocab-size or --tokenizer, .* or --prompt-form text"
    with pytest.raises(TargetError, match=words) as caught:
        try_on(terse_server, config_of())
    assert "of random token ids below 32,000 (assumed" in str(caught.value)
    assert len(terse_server.bodies) == 1


def test_what_may_pass_is_left_to_the_run(terse_server: FakeServer) -> None:
    for fault in ("status", "stream_error", "cut"):
        terse_server.behaviour.fault = fault
        try_on(terse_server, config_of())
    assert len(terse_server.bodies) == 3


def test_where_there_is_nothing_to_find_out_nothing_is_sent(fake_server: FakeServer) -> None:
    try_on(fake_server, config_of(), backend="sglang")  # it says how many ids it knows
    fake_server.behaviour.known_endpoints = frozenset({"models"})
    try_on(fake_server, config_of(prompt_form="text"))
    try_on(fake_server, config_of(), backend="openai-chat")
    assert not fake_server.bodies


@pytest.mark.parametrize("prefix_len", [0, 7])
@pytest.mark.parametrize("vocab_size", [40, 2_000])
def test_the_trial_warms_nothing_that_is_measured_in_any_repeat(
    terse_server: FakeServer, prefix_len: int, vocab_size: int
) -> None:
    config = config_of(random_prefix_len=prefix_len)
    config = replace(config, load=replace(config.load, repeats=3))
    settings = TargetConfig(base_url=terse_server.url, backend="openai", vocab_size=vocab_size)
    with open_endpoint(settings, terse_server.url, lambda facts: None) as endpoint:
        asker = Asker(endpoint, config)
        trial = asker.trial(outline(config))
        plans = [asker.requests(outline(config, repeat), repeat, 0) for repeat in range(3)]
        firsts = {int(planned.request.prompt_token_ids[0]) for plan in plans for planned in plan}  # type: ignore[index]
    assert trial is not None and trial.request.prompt_token_ids is not None
    first, highest = trial.request.prompt_token_ids.tolist()
    assert first not in firsts and highest == vocab_size - 1


@pytest.mark.parametrize(
    ("failure", "status", "error", "is_refused"),
    [
        (Failure.HTTP_STATUS, 400, "HTTP 400", True),
        (Failure.HTTP_STATUS, 401, "HTTP 401", True),
        (Failure.HTTP_STATUS, 422, "HTTP 422", True),
        (Failure.HTTP_STATUS, 408, "HTTP 408", False),
        (Failure.HTTP_STATUS, 429, "HTTP 429", False),
        (Failure.HTTP_STATUS, 503, "HTTP 503", False),
        (Failure.HTTP_STATUS, 500, "Token id 7 is out of vocabulary", True),
        (Failure.HTTP_STATUS, 500, "('body', 'prompt'): Input should be a valid string", True),
        (Failure.HTTP_STATUS, 500, "out of memory", False),
        (Failure.SERVER_ERROR, None, "token 7 is not in the vocabulary", True),
        (Failure.SERVER_ERROR, None, "out of pages", False),
        (Failure.RESET, None, "the connection was reset", False),
        (None, None, None, False),
    ],
)
def test_only_fault_with_the_request_itself_is_a_refusal(
    failure: Failure | None, status: int | None, error: str | None, is_refused: bool
) -> None:
    outcome = Outcome.OK if failure is None else Outcome.FAILED
    assert refuses(Record("r", outcome, 0.0, failure=failure, http_status=status, error=error)) == is_refused
