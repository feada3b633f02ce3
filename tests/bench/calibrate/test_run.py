"""The whole calibration on small loads. Whether this machine is quiet enough to stay within the limit is not
asserted: only that everything was compared, and that the verdict follows from it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.calibrate.compare import Comparison
from prefixlab.bench.calibrate.ladder import Judgement
from prefixlab.bench.calibrate.run import CalibrateRun, run_calibrate
from prefixlab.bench.config.calibrate import CalibrateConfig
from prefixlab.bench.loadgen.driver import Drive, Driver
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.targets.dialects import CompletionsDialect
from prefixlab.core.errors import TargetError

CONFIG = CalibrateConfig(max_concurrency=4, num_prompts=8, output_len=10, ttft_ms=20, itl_ms=20, quick=True)


def make_driver(url: str) -> Driver:
    return SocketDriver(url, CompletionsDialect())


@pytest.fixture(scope="module")
def run() -> CalibrateRun:
    return run_calibrate(CONFIG, make_driver, lambda line: None, most_streams=5)


def comparisons(run: CalibrateRun) -> list[Comparison]:
    return [run.asked, *(rung.comparison for rung in run.rungs)]


def test_every_request_is_compared(run: CalibrateRun) -> None:
    assert (run.asked.num_compared, run.asked.num_not_comparable) == (8, 0)
    for rung in run.rungs:
        assert (rung.comparison.num_compared, rung.comparison.num_not_comparable) == (rung.streams, 0)


def test_truth_is_matched_token_by_token(run: CalibrateRun) -> None:
    """Tokens that came under the stamp of their request's first have no gap, and only those are left out."""
    for comparison in comparisons(run):
        tokens = comparison.num_compared * (10 if comparison is run.asked else 50)
        merged = round(comparison.merged_share * tokens)
        assert comparison.ttft.count == comparison.num_compared
        assert tokens - comparison.num_compared - merged <= comparison.itl.count
        assert comparison.itl.count <= tokens - comparison.num_compared


def test_what_the_server_did_is_what_was_asked_of_it(run: CalibrateRun) -> None:
    assert run.asked.true_ttft_s[0] >= 0.02
    assert 1 <= run.asked.streams <= 4
    assert run.asked.tokens_per_s > 0


def test_errors_are_numbers_in_order_and_belong_to_one_another(run: CalibrateRun) -> None:
    for comparison in comparisons(run):
        for error in (comparison.ttft, comparison.itl):
            assert np.isfinite([error.bias_s, error.p50_s, error.p99_s, error.max_s]).all()
            assert 0 <= error.p50_s <= error.p99_s <= error.max_s
            assert abs(error.bias_s) <= error.max_s
        assert comparison.health.num_workers == 1
        assert comparison.health.num_reads > 0
        assert comparison.late_p99_s >= 0


def test_the_client_is_never_before_the_truth(run: CalibrateRun) -> None:
    """A token cannot arrive before it is written, nor a request before it is sent; stamps are to a µs."""
    for comparison in comparisons(run):
        assert comparison.ttft.bias_s > -1e-3


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


class _Ended:
    """A driver whose runs are whole, and said to have ended in some other way."""

    def __init__(self, url: str, **how_ended: Any) -> None:
        self._driver = make_driver(url)
        self._how_ended = how_ended

    def run(self, plan: Iterable[Planned], load: Load, **how: Any) -> Drive:
        return dataclasses.replace(self._driver.run(plan, load, **how), **self._how_ended)


def test_an_interrupted_run_is_no_finding_and_ends_it_all() -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_calibrate(CONFIG, lambda url: _Ended(url, interrupted=True), said.append, most_streams=5)
    assert not [line for line in said if "streams," in line], "no rung is tried any more"


def test_a_client_process_that_died_is_no_finding_either() -> None:
    with pytest.raises(TargetError, match="no finding: client process 1 was killed"):
        died = ("client process 1 was killed",)
        run_calibrate(CONFIG, lambda url: _Ended(url, deaths=died), lambda line: None, most_streams=5)
