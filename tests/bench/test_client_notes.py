from __future__ import annotations

from dataclasses import replace

import pytest

from prefixlab.bench.client_notes import client_notes
from prefixlab.bench.loadgen.health import ClientHealth, NodeClock


def test_a_healthy_client_says_nothing() -> None:
    health = ClientHealth(stamps="kernel", num_reads=1000, num_merged_reads=10)
    health.send_lag_s.record(0.001, 1000)
    assert client_notes(health) == []
    assert client_notes(ClientHealth(stamps="target")) == [], "a target in this process stamps itself"


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (ClientHealth(stamps="process"), "not the kernel's"),
        (ClientHealth(stamps="mixed"), "some arrival times"),
        (ClientHealth(stamps="kernel", num_reads=100, num_merged_reads=2), "more than 1% of reads"),
        (ClientHealth(stamps="kernel", num_clock_steps=1), "the wall clock was set"),
        (ClientHealth(stamps="kernel", num_retries=7), "7 attempts were repeats"),
    ],
)
def test_what_may_distort_the_figures_is_one_sentence(health: ClientHealth, words: str) -> None:
    (note,) = client_notes(health)
    assert words in note


def test_requests_that_left_late_through_our_own_fault_are_told_by_the_worst_hundredth() -> None:
    health = ClientHealth(stamps="kernel")
    health.send_lag_s.record(0.0001, 98)
    health.send_lag_s.record(0.02, 2)
    (note,) = client_notes(health)
    assert "over 5 ms late" in note


def test_machines_whose_clocks_agree_are_not_worth_a_word() -> None:
    nodes = [
        NodeClock("a", 1, -9e5, 0.0004, drift_s=0.006, drift_uncertainty_s=0.002),
        NodeClock("b", 1, 0.0, 0.005),
    ]
    assert client_notes(ClientHealth(stamps="kernel", nodes=nodes)) == []


def test_clocks_that_are_vague_or_moved_and_machines_that_were_lost_are_named_once() -> None:
    vague = NodeClock("b", 1, 0.0, 0.0051, drift_s=0.0)
    moved = NodeClock("c", 1, 0.0, 0.001, drift_s=-0.0085, drift_uncertainty_s=0.002)
    lost = NodeClock("d", 1, 0.0, 0.0, lost="d was lost: power")
    notes = client_notes(
        ClientHealth(stamps="kernel", nodes=[vague, replace(vague, node="a"), moved, lost] * 2)
    )
    assert [note.partition(":")[0] for note in notes] == [
        "the clock of a and b is known to no better than 5 ms",
        "the clock of c moved by more than 5 ms against ours during the run",
        "d was lost",
    ]
