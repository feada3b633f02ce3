"""What the simulated runner adds to the contract of runners: time, certainty, and an end now and then."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from prefixlab.core.clock import MonotonicClock, VirtualClock
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.core.step_time.model import LinearStepTime
from prefixlab.simulator.runner import IMPOSSIBLE_LOGPROB, MAX_LAG_S, SimulatedRunner
from tests.engine.harness import Table, make_request, random_tokens

STEP_TIME = LinearStepTime(fixed_s=1.0, prefill_token_s=0.125, decode_row_s=0.5)
EOS = 7


class LateClock:
    """Real time as a test tells it: waiting moves it on, and so does whoever is slow."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    def wait_until(self, time_s: float) -> None:
        self.now_s = max(self.now_s, time_s)


def make(clock: Any = None, **settings: Any) -> SimulatedRunner:
    sizes = {"num_pages": 64, "page_size": 8, "vocab_size": 300, "first_token_id": 200}
    return SimulatedRunner(STEP_TIME, clock or VirtualClock(), **{**sizes, **settings})


def generate(runner: SimulatedRunner, prompt: list[int], count: int, **sampling: Any) -> list[int]:
    """What one request gets, alone, ids of its end included."""
    params = SamplingParams(temperature=0.0, **sampling)
    request = make_request(prompt, params, stop_token_ids=params.stop_ids(frozenset({EOS})))
    table, now, start = Table(64, 8), prompt, 0
    for _ in range(count):
        token = int(runner.run(table.batch((0, start, now), requests=[request])).token_ids[0])
        request.output_token_ids.append(token)
        start, now = start + len(now), [token]
    return request.output_token_ids


def test_a_step_takes_what_its_shape_costs_on_virtual_time() -> None:
    clock = VirtualClock(50.0)
    runner, table = make(clock), Table(64, 8)
    prefill = runner.run(table.batch((0, 0, random_tokens(16, 1))))
    assert prefill.duration_s == 1.0 + 16 * 0.125
    assert clock.now() == 50.0 + prefill.duration_s
    decode = runner.run(table.batch((0, 16, [3])))
    assert decode.duration_s == 1.5
    assert clock.now() == 50.0 + 3.0 + 1.5


@pytest.mark.parametrize(("speedup", "duration_s"), [(4.0, 0.75), (math.inf, 0.0)])
def test_a_speedup_divides_every_duration(speedup: float, duration_s: float) -> None:
    clock = VirtualClock()
    result = make(clock, speedup=speedup).run(Table(64, 8).batch((0, 0, random_tokens(16, 1))))
    assert result.duration_s == clock.now() == duration_s


def test_work_between_steps_is_part_of_them_and_nothing_drifts() -> None:
    clock = LateClock()
    runner, table = make(clock, keeps_pace=True), Table(64, 8)
    clock.now_s += MAX_LAG_S / 2  # a request came at 100, and this is when its step begins
    request = make_request(random_tokens(16, 1), arrival_s=100.0)
    runner.run(table.batch((0, 0, request.prompt_token_ids.tolist()), requests=[request]))
    assert clock.now_s == 103.0
    for step in range(5):
        clock.now_s += MAX_LAG_S / 2  # the scheduler's and the server's time
        runner.run(table.batch((0, 16 + step, [3]), requests=[request]))
        assert clock.now_s == pytest.approx(103.0 + 1.5 * (step + 1))


def test_a_host_that_cannot_keep_up_is_slower_than_its_profile() -> None:
    clock = LateClock()
    runner, table = make(clock, keeps_pace=True), Table(64, 8)
    runner.run(table.batch((0, 0, random_tokens(16, 1))))
    before_s = clock.now_s
    clock.now_s += 10.0
    runner.run(table.batch((0, 16, [3])))
    assert clock.now_s == pytest.approx(before_s + 10.0 + 1.5 - MAX_LAG_S)


def test_a_step_does_not_begin_before_its_request_came() -> None:
    clock = LateClock()
    runner, table = make(clock, keeps_pace=True), Table(64, 8)
    runner.run(table.batch((0, 0, random_tokens(16, 1))))
    clock.now_s += MAX_LAG_S / 4
    came_s = clock.now_s
    clock.now_s += MAX_LAG_S / 4
    request = make_request(random_tokens(8, 2), arrival_s=came_s)
    runner.run(table.batch((1, 0, request.prompt_token_ids.tolist()), requests=[request]))
    assert clock.now_s == pytest.approx(came_s + 2.0)


def test_on_the_machine_clock_a_step_is_waited_for() -> None:
    clock = MonotonicClock()
    runner = make(clock, speedup=600.0, keeps_pace=True)  # 3 s of steps are 5 ms
    start_s = clock.now()
    request = make_request(random_tokens(16, 1), arrival_s=start_s)
    runner.run(Table(64, 8).batch((0, 0, request.prompt_token_ids.tolist()), requests=[request]))
    assert clock.now() - start_s >= 0.005


def test_another_seed_gives_other_tokens() -> None:
    prompt = random_tokens(20, 1)
    assert generate(make(), prompt, 8) == generate(make(), prompt, 8)
    assert generate(make(), prompt, 8) != generate(make(seed=1), prompt, 8)


def test_only_ids_it_is_allowed_come_out() -> None:
    tokens = generate(make(), random_tokens(20, 1), 200)
    assert 200 <= min(tokens) < 210 and 290 <= max(tokens) < 300


def test_no_choice_of_sampling_changes_a_certain_model() -> None:
    prompt = random_tokens(20, 1)
    hot = SamplingParams(temperature=2.0, top_p=0.5, seed=3, repetition_penalty=1.5)
    request = make_request(prompt, hot)
    token = make().run(Table(64, 8).batch((0, 0, prompt), requests=[request])).token_ids[0]
    assert token == generate(make(), prompt, 1)[0]


def test_an_end_of_sequence_comes_only_where_asked_for() -> None:
    prompt = random_tokens(20, 1)
    assert EOS not in generate(make(eos_token_id=EOS), prompt, 100)
    ending = make(eos_token_id=EOS, eos_rate=0.1)
    tokens = generate(ending, prompt, 100)
    assert 1 <= tokens.count(EOS) <= 30
    assert generate(ending, prompt, 100) == tokens
    assert EOS not in generate(ending, prompt, 100, ignore_eos=True)
    assert EOS not in generate(ending, prompt, 49, min_new_tokens=50, max_new_tokens=100)
    always = make(eos_token_id=EOS, eos_rate=1.0)
    assert generate(always, prompt, 3) == [EOS] * 3


def test_logprobs_are_those_of_a_model_that_is_certain() -> None:
    runner = make()
    [first] = generate(runner, [1, 2, 3], 1)
    prompt = [1, 2, 3, first, 5]
    request = make_request(prompt, SamplingParams(num_logprobs=3), return_prompt_logprobs=True)
    result = runner.run(Table(64, 8).batch((0, 0, prompt), requests=[request]))
    token = int(result.token_ids[0])
    assert (result.logprobs[0].logprob, result.logprobs[0].top) == (0.0, ((token, 0.0),))
    entries = result.prompt_logprobs[0]
    assert [one.token_id for one in entries] == prompt
    assert [one.logprob for one in entries[:1]] == [None]
    assert entries[3].logprob == 0.0 and entries[3].top == ((first, 0.0),)
    assert entries[4].logprob == IMPOSSIBLE_LOGPROB and entries[4].top[0][1] == 0.0


def test_prompt_logprobs_of_chunks_are_those_of_the_whole() -> None:
    prompt = random_tokens(20, 1)
    runner = make()
    request = make_request(prompt, SamplingParams(num_logprobs=0), return_prompt_logprobs=True)
    whole = runner.run(Table(64, 8).batch((0, 0, prompt), requests=[request])).prompt_logprobs[0]
    table, joined = Table(64, 8), []
    for start in range(0, 20, 6):
        chunk = table.batch((0, start, prompt[start : start + 6]), requests=[request])
        joined += runner.run(chunk).prompt_logprobs.get(0, [])
    assert joined == whole


def test_positions_far_out_are_reached() -> None:
    runner = make(num_pages=1200)
    table = Table(1200, 8, max_len=4800)
    tokens = random_tokens(4400, 1)
    whole = int(runner.run(table.batch((0, 0, tokens))).token_ids[0])
    for start in range(0, 4400, 1100):
        result = runner.run(table.batch((1, start, tokens[start : start + 1100])))
    assert result.token_ids.tolist() == [whole]
    assert result.token_ids.dtype == np.int32
