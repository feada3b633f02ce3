from __future__ import annotations

from dataclasses import replace

import pytest

from prefixlab.bench.doctor.client_notes import client_notes
from prefixlab.bench.loadgen.health import ClientHealth, NodeClock


def notes_of(health: ClientHealth) -> list[str]:
    """Where the kind of loop makes no difference."""
    notes = client_notes(health, open_loop=True)
    assert client_notes(health, open_loop=False) == notes
    return notes


def test_a_healthy_client_says_nothing() -> None:
    health = ClientHealth(stamps="kernel", num_reads=1000, num_merged_reads=10, peak_in_flight=10, wall_s=11)
    health.send_lag_s.record(0.001, 1000)
    assert notes_of(health) == []


def test_a_target_in_this_process_is_no_clients_fault() -> None:
    health = ClientHealth(stamps="target", peak_in_flight=1, wall_s=1.0)
    health.send_lag_s.record(0.5)
    assert notes_of(health) == []


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (ClientHealth(stamps="process"), "not the kernel's"),
        (ClientHealth(stamps="mixed"), "some arrival times"),
        (ClientHealth(stamps="kernel", num_clock_steps=1), "the wall clock was set"),
        (ClientHealth(stamps="kernel", num_retries=7), "7 attempts were repeats"),
    ],
)
def test_what_may_distort_the_figures_is_one_sentence(health: ClientHealth, words: str) -> None:
    (note,) = notes_of(health)
    assert words in note


@pytest.mark.parametrize(
    ("num_merged", "read_lag_s", "cpu_s", "words"),
    [
        (100, 0.02, 0.1, None),
        (101, 0.02, 0.1, "The client needs more processes"),
        (101, 0.0001, 6.0, "The client needs more processes"),
        (101, None, 6.0, "The client needs more processes"),
        (101, 0.0001, 0.1, "the server or the network sent them together"),
        (101, None, 0.1, "the server or the network sent them together"),
    ],
)
def test_merged_reads_are_the_clients_fault_only_where_it_was_late_or_busy(
    num_merged: int, read_lag_s: float | None, cpu_s: float, words: str | None
) -> None:
    health = ClientHealth(
        stamps="kernel", num_reads=10_000, num_merged_reads=num_merged, cpu_s=cpu_s, wall_s=10.0
    )
    if read_lag_s is not None:
        health.read_lag_s.record(read_lag_s, 1000)
    notes = notes_of(health)
    assert [words in note for note in notes] == [True] if words else not notes


def test_a_few_pieces_that_came_together_in_a_small_run_are_not_worth_a_word() -> None:
    health = ClientHealth(stamps="kernel", num_reads=100, num_merged_reads=60, cpu_s=0.1, wall_s=10.0)
    assert notes_of(health) == []


OPEN = "more than 1% of requests left over 5 ms late"
CLOSED = "for more than 5% of the time fewer requests were in flight than asked for"


@pytest.mark.parametrize(
    ("lags_s", "open_loop", "words"),
    [
        ([0.0001] * 95 + [0.02] * 5, True, OPEN),
        ([0.0001] * 96 + [0.02] * 4, True, None),  # a handful
        ([0.0001] * 4980 + [0.02] * 60, True, OPEN),
        ([0.0001] * 99 + [0.02], True, None),  # the worst hundredth begins there
        ([0.0001] * 98 + [0.02] * 2, False, None),  # 0.05 s of 4 slots x 10 s
        ([0.005] * 399, False, None),
        ([0.005] * 401, False, CLOSED),
        ([0.005] * 401, True, None),
        ([], True, None),
        ([], False, None),
    ],
)
def test_lateness_matters_on_the_schedule_in_open_loop_and_as_idle_slots_in_closed_loop(
    lags_s: list[float], open_loop: bool, words: str | None
) -> None:
    health = ClientHealth(stamps="kernel", num_workers=2, peak_in_flight=4, wall_s=20.0)
    health.send_lag_s.extend(lags_s)
    notes = client_notes(health, open_loop=open_loop)
    assert [note.startswith(words or "") for note in notes] == ([True] if words else [])


@pytest.mark.parametrize(("cpu_s", "words"), [(15.0, "it is overloaded"), (0.6, "it was late, though")])
def test_a_client_whose_core_was_idle_was_late_and_not_overloaded(cpu_s: float, words: str) -> None:
    health = ClientHealth(stamps="kernel", num_workers=1, peak_in_flight=4, wall_s=20.0, cpu_s=cpu_s)
    health.send_lag_s.record(0.02, 1000)
    for open_loop in (True, False):
        (note,) = client_notes(health, open_loop=open_loop)
        assert words in note


def test_machines_whose_clocks_agree_are_not_worth_a_word() -> None:
    nodes = [
        NodeClock("a", 1, -9e5, 0.0004, drift_s=0.006, drift_uncertainty_s=0.002),
        NodeClock("b", 1, 0.0, 0.005),
    ]
    assert notes_of(ClientHealth(stamps="kernel", nodes=nodes)) == []


def test_clocks_that_are_vague_or_moved_and_machines_that_were_lost_are_named_once() -> None:
    vague = NodeClock("b", 1, 0.0, 0.0051, drift_s=0.0)
    moved = NodeClock("c", 1, 0.0, 0.001, drift_s=-0.0085, drift_uncertainty_s=0.002)
    lost = NodeClock("d", 1, 0.0, 0.0, lost="d was lost: power")
    notes = notes_of(ClientHealth(stamps="kernel", nodes=[vague, replace(vague, node="a"), moved, lost] * 2))
    assert [note.partition(":")[0] for note in notes] == [
        "the clock of a and b is known to no better than 5 ms",
        "the clock of c moved by more than 5 ms against ours during the run",
        "d was lost",
    ]
