from __future__ import annotations

import pytest

from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics.point import evaluate
from prefixlab.bench.metrics.summary import as_result_keys
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.records.table import RecordTable
from tests.bench.helpers import ok_record
from tests.bench.points import a_point, a_run, settings_of


def test_repeats_are_pooled_by_request_and_rated_over_summed_durations() -> None:
    runs = [a_run(seed=seed) for seed in range(3)]
    result = evaluate(settings_of(), runs, ClientHealth(stamps="kernel"))
    assert len(result.runs) == 3
    assert result.metrics.ok == sum(run.ok for run in result.runs)
    assert result.metrics.duration_s == pytest.approx(sum(run.duration_s for run in result.runs))
    assert result.metrics.peak_concurrency == max(run.peak_concurrency for run in result.runs)


def test_with_three_repeats_intervals_of_means_are_over_repeats_and_of_percentiles_over_the_pool() -> None:
    result = a_point(repeats=3)
    assert result.intervals["ttft_s", "mean"].method == "repeats"
    assert result.intervals["output_throughput", ""].num_parts == 3
    assert result.intervals["ttft_s", "p50"].method == "batched order statistics"


def test_within_one_run_intervals_are_batch_means_around_the_figure() -> None:
    result = a_point()
    for key in (("ttft_s", "mean"), ("tpot_s", "mean"), ("itl_s", "mean"), ("e2e_s", "mean")):
        interval = result.intervals[key]
        figure = getattr(result.metrics, key[0]).mean
        assert interval.method == "batch means"
        assert interval.low < figure < interval.high
    assert result.metrics.steady is not None
    steady = result.intervals["steady_output_throughput", ""]
    assert steady.low < result.metrics.steady.output_throughput < steady.high
    assert ("output_throughput", "") not in result.intervals, "ramp and drain are no series"


def test_too_few_requests_have_no_interval() -> None:
    assert not evaluate(settings_of(), [a_run(num_requests=10)], ClientHealth()).intervals


def test_only_open_loop_can_be_saturated_and_says_so_in_a_note() -> None:
    assert a_point().saturation is None
    overloaded = a_point(open_loop=True)
    assert overloaded.saturated
    assert any(note.startswith("saturated: ") for note in overloaded.notes)


def test_a_request_recorded_twice_is_a_bug_within_a_run_and_normal_over_repeats() -> None:
    twice = RecordTable.of([ok_record("a"), ok_record("a")])
    with pytest.raises(AssertionError, match="twice"):
        evaluate(settings_of(), [twice], ClientHealth())
    once = RecordTable.of([ok_record("a")])
    assert evaluate(settings_of(), [once, once], ClientHealth()).metrics.ok == 2


def test_notes_of_the_caller_and_of_the_client_are_there_once() -> None:
    result = evaluate(settings_of(), [a_run()], ClientHealth(stamps="process"), notes=["mine", "mine"])
    assert result.notes[0] == "mine"
    assert len(result.notes) == 2


def test_answers_without_a_token_are_counted_and_noted() -> None:
    some = [ok_record("a"), ok_record("b", arrivals_s=[]), ok_record("c", arrivals_s=[])]
    result = evaluate(settings_of(), [RecordTable.of(some)], ClientHealth())
    assert (result.metrics.ok, result.metrics.num_empty) == (3, 2)
    assert as_result_keys(result.metrics)["completed_empty"] == 2
    assert any(note.startswith("2 of 3 successful requests brought no token") for note in result.notes)
    assert not any("no token" in note for note in a_point().notes)


def test_a_client_is_not_late_for_requests_that_were_refused_at_once() -> None:
    refused = [
        Record(f"r{i}", Outcome.FAILED, 0.0, sent_s=0.0, last_s=0.001, http_status=422, error="no")
        for i in range(50)
    ]
    health = ClientHealth(stamps="kernel", peak_in_flight=4, wall_s=0.05)
    health.send_lag_s.record(0.01, 50)
    assert evaluate(settings_of(), [RecordTable.of(refused)], health).notes == ()
    assert evaluate(settings_of(), [a_run()], health).notes
