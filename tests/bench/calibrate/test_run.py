"""The whole calibration on small loads. Whether this machine is quiet enough to stay within the limit is not
asserted: only that everything was compared, and that the verdict follows from it."""

from __future__ import annotations

import os

import pytest

from prefixlab.bench.calibrate.ladder import Judgement
from prefixlab.bench.config.calibrate import CalibrateConfig
from prefixlab.bench.loadgen.driver import Driver
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.runs.calibrate import CalibrateRun, run_calibrate
from prefixlab.bench.targets.dialects import CompletionsDialect

CONFIG = CalibrateConfig(max_concurrency=4, num_prompts=8, output_len=10, ttft_ms=20, itl_ms=20, quick=True)


def make_driver(url: str) -> Driver:
    return SocketDriver(url, CompletionsDialect())


@pytest.fixture(scope="module")
def run() -> CalibrateRun:
    return run_calibrate(CONFIG, make_driver, lambda line: None, most_streams=5)


def test_every_request_is_compared(run: CalibrateRun) -> None:
    assert (run.asked.num_compared, run.asked.num_not_comparable) == (8, 0)
    assert run.asked.ttft.count == 8
    assert run.asked.itl.count <= 8 * 9
    for rung in run.rungs:
        assert (rung.comparison.num_compared, rung.comparison.num_not_comparable) == (rung.streams, 0)


def test_what_the_server_did_is_what_was_asked_of_it(run: CalibrateRun) -> None:
    assert run.asked.true_ttft_s[0] >= 0.02
    assert 1 <= run.asked.streams <= 4
    assert run.asked.tokens_per_s > 0


def test_the_client_is_not_off_by_as_much_as_it_measures(run: CalibrateRun) -> None:
    assert abs(run.asked.itl.bias_s) < 0.02
    assert run.asked.ttft.p50_s < 1.0


def test_rungs_go_up_to_the_most_there_may_be(run: CalibrateRun) -> None:
    assert all(rung.streams <= 5 for rung in run.rungs)
    assert all(rung.judgement is Judgement.WITHIN for rung in run.rungs[:-1])


def test_there_is_a_ceiling_exactly_where_something_was_within_the_limit(run: CalibrateRun) -> None:
    judgements = [run.asked_judgement, *(rung.judgement for rung in run.rungs)]
    assert (run.calibration is not None) == (Judgement.WITHIN in judgements)
    if run.calibration is not None:
        assert run.calibration.num_workers == 1
        assert run.calibration.streams <= 5


def test_in_open_loop_and_afterwards_the_process_may_run_where_it_could_before() -> None:
    cores = os.sched_getaffinity(0)
    config = CalibrateConfig(
        max_concurrency=50, num_prompts=10, output_len=2, ttft_ms=1, itl_ms=20, request_rate=50.0, quick=True
    )
    run = run_calibrate(config, make_driver, lambda line: None, most_streams=1)
    assert run.asked.num_compared == 10
    assert os.sched_getaffinity(0) == cores
