"""Every line of the doctor, provoked in records made by hand and named rightly; a clean run is clean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.calibrate.store import Calibration, Errors
from prefixlab.bench.doctor.cache import alone_of, others_in_flight
from prefixlab.bench.doctor.checks import diagnose
from prefixlab.bench.doctor.diagnosis import Diagnosis, Status
from prefixlab.bench.doctor.evidence import Alone, Evidence
from prefixlab.bench.loadgen.health import ClientHealth, NodeClock
from prefixlab.bench.metrics.point import ARM
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.table import CODE, RecordTable
from tests.bench.doctor.patients import (
    NUM_REQUESTS,
    a_result,
    examined,
    first_rows,
    healthy_client,
    healthy_table,
    named,
    troubles,
)
from tests.bench.helpers import ok_record
from tests.bench.points import a_run

SLOW_ENOUGH = {"rate": 8.0, "concurrency": 100}
"""An open loop that is carried."""


def only(diagnosis: Diagnosis) -> str:
    """The one thing that is wrong, with its status."""
    (found,) = troubles(diagnosis).items()
    return ": ".join(found)


# Clean. -----------------------------------------------------------------------------------------------------


def test_a_clean_run_is_clean() -> None:
    diagnosis = examined()
    assert (diagnosis.grade, troubles(diagnosis)) == ("A", {})


def test_a_clean_open_loop_is_clean() -> None:
    diagnosis = examined(healthy_table(**SLOW_ENOUGH), open_loop=True)
    assert (diagnosis.grade, troubles(diagnosis)) == ("A", {})


def test_clean_repeats_are_clean_and_known_to_agree() -> None:
    diagnosis = examined(*(healthy_table(seed=seed) for seed in range(3)))
    assert (diagnosis.grade, troubles(diagnosis)) == ("A", {})
    assert named(diagnosis, "repeats").status is Status.FINE


# Answers. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_failed", "found"), [(3, "failures: caution"), (30, "failures: bad")])
def test_failures(num_failed: int, found: str) -> None:
    table = healthy_table()
    failed = RecordTable.of(a_run(num_requests=0, failed=num_failed).to_records())
    diagnosis = examined(RecordTable.concat([table, failed]))
    assert only(diagnosis) == found
    assert f"{num_failed} of {NUM_REQUESTS + num_failed} failed (http status {num_failed})" in (
        named(diagnosis, "failures").figure
    )


def test_a_run_of_which_nothing_succeeded_fails() -> None:
    diagnosis = examined(a_run(num_requests=0, failed=20))
    assert (diagnosis.grade, named(diagnosis, "failures").voids) == ("F", True)


def test_attempts_that_were_repeated() -> None:
    table = healthy_table()
    table = replace(table, num_retries=first_rows(table.num_retries * 0, 7, to=1))
    assert only(examined(table)) == "failures: caution"


@pytest.mark.parametrize("outcome", [Outcome.UNSENT, Outcome.CANCELLED])
def test_requests_that_were_not_sent_or_cut_off(outcome: Outcome) -> None:
    table = healthy_table()
    rest = RecordTable.of(
        [Record(f"u{number}", outcome, intended_s=0.0, sent_s=0.0, last_s=0.0) for number in (1, 2)]
    )
    assert only(examined(RecordTable.concat([table, rest]))) == "completeness: caution"


@pytest.mark.parametrize(
    ("off", "found"),
    [(1, "prompt lengths: caution"), (16, "prompt lengths: bad"), (-16, "prompt lengths: bad")],
)
def test_prompts_of_another_length_than_asked(off: int, found: str) -> None:
    table = healthy_table()
    diagnosis = examined(replace(table, num_prompt_tokens=table.planned_prompt_tokens + off))
    assert only(diagnosis) == found
    assert f"{abs(off)} tokens at most" in named(diagnosis, "prompt lengths").figure


def test_prompts_that_nobody_counted_are_not_known() -> None:
    table = healthy_table()
    diagnosis = examined(replace(table, num_prompt_tokens=np.full(len(table), -1)))
    assert named(diagnosis, "prompt lengths").status is Status.UNKNOWN


@pytest.mark.parametrize(("num", "found"), [(3, "ignore_eos: caution"), (60, "ignore_eos: bad")])
def test_ignore_eos_that_was_ignored(num: int, found: str) -> None:
    table = healthy_table()
    shorter = replace(table, planned_output_tokens=first_rows(table.planned_output_tokens, num, to=50))
    assert only(examined(shorter)) == found
    assert troubles(examined(shorter, ignores_eos=False)) == {}


def test_outputs_longer_than_asked() -> None:
    table = healthy_table()
    longer = replace(table, planned_output_tokens=first_rows(table.planned_output_tokens, 3, to=5))
    for ignores_eos in (True, False, None):
        assert only(examined(longer, ignores_eos=ignores_eos)) == "output lengths: bad"


def test_counts_that_are_spread_evenly_are_estimates() -> None:
    table = healthy_table()
    assert only(examined(replace(table, counts_estimated=~table.counts_estimated))) == "token counts: caution"


def test_counts_that_nobody_named_are_guesses() -> None:
    table = healthy_table()
    nothing = np.full(len(table), -1)
    diagnosis = examined(replace(table, counts_estimated=table.ok, num_prompt_tokens=nothing))
    assert only(diagnosis) == "token counts: bad"


def test_several_tokens_to_an_event() -> None:
    table = healthy_table()
    diagnosis = examined(
        replace(table, counts=table.counts * 3, planned_output_tokens=table.planned_output_tokens * 3)
    )
    assert only(diagnosis) == "bundled chunks: caution"
    assert "3.00 tokens an event" in named(diagnosis, "bundled chunks").figure


def test_tokens_that_one_read_merged_are_no_bundles_of_the_servers() -> None:
    table = healthy_table()
    merged = replace(
        table,
        counts=table.counts * 3,
        planned_output_tokens=table.planned_output_tokens * 3,
        num_merged_reads=np.full(len(table), 1),
    )
    health = healthy_client(num_merged_reads=NUM_REQUESTS)
    diagnosis = examined(merged, health=health)
    assert only(diagnosis) == "merged reads: caution"
    assert named(diagnosis, "bundled chunks").status is Status.UNKNOWN


def test_streams_that_fall_silent_in_their_middle() -> None:
    table = healthy_table()
    arrivals_s, last_s = table.arrivals_s.copy(), table.last_s.copy()
    arrivals_s[5:10] += 1.5  # of the first request, from its sixth token on
    last_s[0] += 1.5
    diagnosis = examined(replace(table, arrivals_s=arrivals_s, last_s=last_s))
    assert only(diagnosis) == "stalls: caution"
    assert "1 of 600 streams" in named(diagnosis, "stalls").figure


def test_the_time_between_two_requests_is_no_stall() -> None:
    records = [
        ok_record(f"r{n}", intended_s=9.0 * n, arrivals_s=[9.0 * n + 0.1, 9.0 * n + 0.2]) for n in range(3)
    ]
    records.insert(1, ok_record("empty", intended_s=5.0, arrivals_s=[]))
    assert named(examined(RecordTable.of(records)), "stalls").status is Status.FINE


# Cache. -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num", "tokens", "found"), [(1, 16, "warm contamination: caution"), (200, 48, "warm contamination: bad")]
)
def test_a_prompt_that_nobody_had_sent_hits(num: int, tokens: int, found: str) -> None:
    table = healthy_table()
    diagnosis = examined(
        replace(table, num_cached_tokens=first_rows(table.num_cached_tokens, num, to=tokens))
    )
    assert only(diagnosis) == found
    assert f"e.g. r0 by {tokens} tokens" in named(diagnosis, "warm contamination").figure


@pytest.mark.parametrize(("cached", "words"), [(0, "600 hit less"), (63, "600 more")])
def test_hits_that_are_not_as_expected(cached: int, words: str) -> None:
    table = healthy_table()
    expected, reported = np.full(len(table), 32), np.full(len(table), cached)
    diagnosis = examined(replace(table, num_expected_cached_tokens=expected, num_cached_tokens=reported))
    assert only(diagnosis) == "expected hits: bad"
    assert words in named(diagnosis, "expected hits").figure


def test_hits_that_nobody_reports_are_not_known() -> None:
    table = healthy_table()
    nothing = np.full(len(table), -1)
    expected = np.where(np.arange(len(table)) < 10, 0, 32)
    diagnosis = examined(replace(table, num_expected_cached_tokens=expected, num_cached_tokens=nothing))
    assert troubles(diagnosis) == {}
    assert named(diagnosis, "warm contamination").status is Status.UNKNOWN
    assert named(diagnosis, "expected hits").status is Status.UNKNOWN


def some_alone_some_not(*, alone_s: float, loaded_s: float) -> RecordTable:
    """Ten prompts by themselves, then ten at one time."""
    records = []
    for number in range(20):
        alone = number < 10
        sent_s = 10.0 * number if alone else 500.0
        first_s = sent_s + (alone_s if alone else loaded_s)
        records.append(
            ok_record(
                f"r{number}", intended_s=sent_s, arrivals_s=[first_s, first_s + 1], planned_prompt_tokens=64
            )
        )
    return RecordTable.of(records)


@pytest.mark.parametrize(
    ("loaded_s", "status"), [(0.2, Status.CAUTION), (0.9, Status.FINE), (3.0, Status.FINE)]
)
def test_a_prompt_faster_under_load_than_alone(loaded_s: float, status: Status) -> None:
    table = some_alone_some_not(alone_s=1.0, loaded_s=loaded_s)
    assert named(examined(table, ignores_eos=False), "faster under load").status is status


def test_a_run_at_concurrency_1_tells_it_of_the_others() -> None:
    alone = alone_of(healthy_table(concurrency=1))
    assert alone is not None and alone.num_computed == 64
    assert named(examined(alone=alone), "faster under load").status is Status.FINE
    slower = Alone(alone.ttft_s * 3, alone.num_computed)
    assert only(examined(alone=slower)) == "faster under load: caution"


def test_others_in_flight_are_those_sent_before_that_had_not_ended() -> None:
    times = [(0.0, 10.0), (1.0, 2.0), (5.0, 6.0), (11.0, 12.0)]
    table = RecordTable.of([ok_record(f"r{a}", intended_s=a, arrivals_s=[b]) for a, b in times])
    assert others_in_flight(table).tolist() == [0, 1, 1, 0]


# Load. ------------------------------------------------------------------------------------------------------


def test_a_server_that_does_not_keep_up() -> None:
    diagnosis = examined(healthy_table(rate=28.0), open_loop=True)
    assert named(diagnosis, "saturation").status is Status.BAD
    assert diagnosis.grade == "C"
    assert set(troubles(diagnosis)) == {"saturation", "schedule lag", "steady state"}


def test_requests_that_leave_after_their_time() -> None:
    table = healthy_table(**SLOW_ENOUGH)
    late = replace(
        table, intended_s=np.where(np.arange(len(table)) % 20, table.intended_s, table.intended_s - 0.1)
    )
    diagnosis = examined(late, open_loop=True)
    assert only(diagnosis) == "schedule lag: caution"
    assert "schedule lag" not in [check.name for check in examined().checks]


@pytest.mark.parametrize(("wait_s", "found"), [(0.03, "connect waits: caution"), (0.2, "connect waits: bad")])
def test_connections_that_users_wait_for(wait_s: float, found: str) -> None:
    table = healthy_table()
    waited = replace(table, connect_started_s=table.sent_s - wait_s, connected_s=table.sent_s)
    assert only(examined(waited)) == found


def test_a_quick_connection_is_none_to_wait_for() -> None:
    table = healthy_table()
    opened = replace(table, connect_started_s=table.sent_s - 0.003, connected_s=table.sent_s)
    assert troubles(examined(opened)) == {}


def test_a_run_that_is_all_ramp() -> None:
    table = healthy_table(concurrency=NUM_REQUESTS)
    assert only(examined(table, calibration=calibrated(1e6))) == "steady state: caution"


def test_latencies_that_drift() -> None:
    table = healthy_table()
    delay_s = np.linspace(0.0, 5.0, len(table))
    drifting = replace(
        table,
        arrivals_s=table.arrivals_s + np.repeat(delay_s, table.num_arrivals),
        last_s=table.last_s + delay_s,
        first_byte_s=table.first_byte_s + delay_s,
    )
    diagnosis = examined(drifting)
    assert only(diagnosis) == "steady state: caution"
    assert "TTFT, E2E" in named(diagnosis, "steady state").figure


def test_too_few_requests_for_the_percentiles_shown() -> None:
    table = healthy_table()
    few = table.select(np.arange(len(table)) < 100)
    diagnosis = examined(few)
    assert only(diagnosis) == "sample size: caution"
    assert "1.0 of 100 requests lie beyond p99" in named(diagnosis, "sample size").figure


@pytest.mark.parametrize(("factor", "found"), [(1.2, "repeats: caution"), (2.0, "repeats: bad")])
def test_repeats_that_disagree(factor: float, found: str) -> None:
    table = healthy_table()
    times = ("intended_s", "sent_s", "first_byte_s", "arrivals_s", "last_s")
    slower = replace(table, **{name: getattr(table, name) * factor for name in times})
    assert only(examined(table, slower)) == found


# Client. ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lag_s", "status"), [(0.02, "caution"), (0.2, "bad")])
def test_a_client_that_sends_late(lag_s: float, status: str) -> None:
    health = ClientHealth(stamps="kernel", wall_s=1.0, peak_in_flight=1)
    health.send_lag_s.record(lag_s, 100)
    diagnosis = examined(healthy_table(**SLOW_ENOUGH), open_loop=True, health=health)
    assert only(diagnosis) == f"client lag: {status}"


@pytest.mark.parametrize(("lag_s", "status"), [(0.05, "caution"), (0.2, "bad")])
def test_a_client_that_leaves_slots_idle(lag_s: float, status: str) -> None:
    health = healthy_client()
    health.send_lag_s.record(lag_s, 400)  # of 4 slots for 40 s
    assert only(examined(health=health)) == f"client lag: {status}"


@pytest.mark.parametrize("stamps", ["process", "mixed"])
def test_stamps_that_are_not_the_kernels(stamps: str) -> None:
    assert only(examined(health=healthy_client(stamps=stamps))) == "arrival stamps: caution"


def test_reads_that_merge() -> None:
    assert only(examined(health=healthy_client(num_merged_reads=600))) == "merged reads: caution"


def test_a_clock_that_is_set() -> None:
    assert only(examined(health=healthy_client(num_clock_steps=1))) == "clock steps: caution"


def test_a_target_in_this_process() -> None:
    assert only(examined(health=ClientHealth(stamps="target"))) == "in-process target: caution"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "fine"),
        ({"uncertainty_s": 0.01}, "caution"),
        ({"drift_s": 0.02}, "caution"),
        ({"lost": "gone"}, "bad"),
    ],
)
def test_other_machines(fields: dict[str, Any], status: str) -> None:
    node = NodeClock(**{"node": "n", "num_workers": 1, "offset_s": 9.0, "uncertainty_s": 0.0001, **fields})
    diagnosis = examined(health=healthy_client(nodes=[node]))
    assert named(diagnosis, "client machines").status.value == status


def calibrated(tokens_per_s: float) -> Calibration:
    errors = Errors(count=1, bias_s=0.0, p50_s=0.0, p99_s=0.00005, max_s=0.0)
    return Calibration(
        machine="m",
        version="v",
        num_workers=1,
        tokens_per_s=tokens_per_s,
        streams=100,
        at_least=False,
        ttft=errors,
        itl=errors,
        stamps="kernel",
        made="today",
    )


def test_a_run_past_what_the_client_was_calibrated_to() -> None:
    assert troubles(examined(calibration=calibrated(10_000.0))) == {}
    assert only(examined(calibration=calibrated(100.0))) == "calibration: caution"


def test_a_client_that_was_never_calibrated_and_is_pressed() -> None:
    diagnosis = examined(health=healthy_client(peak_in_flight=500))
    assert only(diagnosis) == "calibration: caution"
    assert "bench calibrate" in named(diagnosis, "calibration").remedy


def test_a_client_that_left_no_word_is_not_known() -> None:
    diagnosis = examined(knows_client=False)
    assert named(diagnosis, "client health").status is Status.UNKNOWN
    assert diagnosis.grade == "A"


def test_failed_requests_have_no_part_in_other_checks() -> None:
    """Their counts are not made of what the server said."""
    failed = RecordTable.of(
        [
            Record(f"f{n}", Outcome.FAILED, intended_s=0.0, sent_s=0.0, last_s=9.0, failure=Failure.STALLED)
            for n in (1, 2)
        ]
    )
    table = RecordTable.concat([healthy_table(), failed])
    assert (table.outcome == CODE[Outcome.FAILED]).sum() == 2
    assert only(examined(table)) == "failures: caution"


# Of arms that take turns, and of runs that are not all alike. -----------------------------------------------


def _an_arm(*rounds: RecordTable) -> Diagnosis:
    result = a_result(*rounds)
    settings = replace(result.settings, swept={ARM: "hit"}, num_prompts=4)
    return diagnose(Evidence(result=replace(result, settings=settings), ignores_eos=True))


def test_rounds_of_an_arm_are_no_repeats_however_they_differ() -> None:
    fast, slow = (a_run(concurrency=1, num_requests=4, seed=seed) for seed in range(2))
    late = replace(slow, arrivals_s=slow.arrivals_s + 5.0, last_s=slow.last_s + 5.0)
    assert named(examined(fast, late), "repeats").status is Status.BAD
    check = named(_an_arm(fast, late), "repeats")
    assert check.status is Status.UNKNOWN and "too short to be repeats" in check.figure


def test_remedies_are_options_that_the_verb_takes() -> None:
    few = a_run(concurrency=1, num_requests=8)
    assert named(_an_arm(few), "sample size").remedy.startswith("--rounds 125,")
    settings = replace(a_result(few).settings, percentiles=(99.7,))
    result = replace(a_result(few), settings=settings)
    of_a_run = named(diagnose(Evidence(result=result, ignores_eos=True)), "sample size")
    assert of_a_run.remedy.startswith("--num-prompts 1667,"), "without a comma, for the parser"


def test_a_throughput_of_the_whole_run_far_from_the_steady_one_says_which_to_quote() -> None:
    table = a_run(concurrency=4, num_requests=200)
    straggler = ok_record("late", arrivals_s=(0.1, 1.5 * float(table.last_s.max())))
    check = named(examined(RecordTable.of([*table.to_records(), straggler])), "steady state")
    assert check.status is Status.CAUTION
    assert "tok/s over all of it" in check.figure and "quote the steady throughput" in check.distorts
    assert "over all of it" not in named(examined(table), "steady state").figure


def test_what_piled_up_behind_a_stall_is_no_bundling_of_the_server() -> None:
    times = [*np.arange(0.1, 0.2, 0.01).tolist(), 3.0]
    counts = [1] * (len(times) - 1) + [8]
    stalled = RecordTable.of([ok_record(f"r{n}", arrivals_s=times, counts=counts) for n in range(30)])
    assert named(examined(stalled), "stalls").status is Status.CAUTION
    assert named(examined(stalled), "bundled chunks").status is Status.UNKNOWN
