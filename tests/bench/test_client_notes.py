from __future__ import annotations

import pytest

from prefixlab.bench.client_notes import client_notes
from prefixlab.bench.loadgen.health import ClientHealth


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
