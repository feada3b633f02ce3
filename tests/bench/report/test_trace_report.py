from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from prefixlab.bench.report.trace import show_analysis
from prefixlab.bench.traces.analyze import analyze
from prefixlab.bench.traces.trace import Trace

TRACE = Trace(
    "t",
    8,
    offsets_s=np.array([0.0, 0.0, 4.0, 4.0]),
    prompt_tokens=np.array([16, 16, 24, 24]),
    output_tokens=np.array([1, 2, 3, 4]),
    starts=np.array([0, 2, 4, 7, 10]),
    hash_ids=np.array([0, 1, 2, 3, 0, 1, 4, 2, 3, 5]),
    session_ids=["a", "b", "a", "b"],
    turns=np.array([0, 0, 1, 1]),
    think_s=np.array([np.nan, np.nan, 2.0, 3.0]),
    notes=("two answers are taken to have 1 token",),
)


def shown(trace: Trace) -> list[str]:
    file = io.StringIO()
    show_analysis(Console(file=file, width=120), analyze(trace))
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_sessions_and_what_reading_noted_are_shown() -> None:
    lines = shown(TRACE)
    assert "Sessions: 2" in lines
    assert "Requests 2.0 0.0 2.0 2.0 2.0 2.0 2.0" in lines
    assert "First to last request, s 4.0 0.0 4.0 4.0 4.0 4.0 4.0" in lines
    assert "Think time, s 2.5 0.5 2.0 2.2 2.5 2.8 3.0" in lines
    assert "Hits on blocks that the same session had used last: 100.0 %" in lines
    assert lines[-1] == "note: two answers are taken to have 1 token"


def test_times_read_off_a_coarse_clock_are_warned_of() -> None:
    assert any(line.startswith("note: 66.7 % of requests came at the very time") for line in shown(TRACE))


def test_what_a_trace_does_not_say_is_not_made_up() -> None:
    no_ids = np.zeros(0, np.int64)
    bare = Trace(
        *("t", 1, np.zeros(1), np.array([5]), np.array([6]), np.zeros(2, np.int64), no_ids), has_times=False
    )
    lines = shown(bare)
    assert lines[0] == "t: 1 request, 5 prompt tokens, 6 output tokens"
    assert "Theoretical Hit Rates, % n/a n/a n/a n/a n/a n/a n/a" in lines
    assert "Arrivals: the trace does not say when its requests came" in lines
    assert "The trace names no blocks, so nothing is known of what its prompts share." in lines
