from __future__ import annotations

import signal
from typing import Any

import pytest

from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.loadgen.driver import OnProgress, Progress
from prefixlab.bench.runs.trace import TraceRun, run_trace
from prefixlab.bench.targets.cold_start import Coldness
from prefixlab.bench.targets.endpoint import open_endpoint
from prefixlab.bench.verdict import Verdict
from prefixlab.bench.workloads.trace import Trace, TraceRequest
from prefixlab.core.errors import ConfigError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.bench.fake_server import FakeServer

SHARING = Trace(
    "t.jsonl",
    16,
    (
        TraceRequest(0.0, 40, 4, (0, 1, 2)),
        TraceRequest(0.1, 50, 4, (0, 1, 3, 4)),
        TraceRequest(0.2, 40, 4, (0, 1, 2)),
        TraceRequest(0.3, 20, 4, (9, 10)),
    ),
)
"""By hand at page size 16: nothing, 32 of 50, 32 of 40 (the last, partial block is no page), nothing."""


def replay(
    server: FakeServer,
    *,
    length_scale: float = 1.0,
    max_len: int | None = None,
    speedup: float = 10.0,
    on_progress: OnProgress = lambda progress: None,
    **given: Any,
) -> TraceRun:
    config = TargetConfig(base_url=server.url, **given)
    with open_endpoint(config, server.url, lambda facts: ByteTokenizer()) as endpoint:
        return run_trace(
            endpoint,
            SHARING,
            length_scale=length_scale,
            max_len=max_len,
            speedup=speedup,
            seed=42,
            on_progress=on_progress,
        )


@pytest.mark.parametrize("backend", ["sglang", "vllm", "openai"])
def test_a_trace_is_replayed_with_its_sharing_to_the_token(fake_server: FakeServer, backend: str) -> None:
    fake_server.behaviour.is_vllm = backend == "vllm"
    run = replay(fake_server, backend=backend)
    assert run.check.verdict is Verdict.CONSISTENT
    by_id = {record.request_id: record for record in run.records}
    assert [by_id[f"trace-{i}"].num_cached_tokens for i in range(4)] == [0, 32, 32, 0]
    assert [by_id[f"trace-{i}"].num_prompt_tokens for i in range(4)] == [40, 50, 40, 20]
    assert all(record.num_output_tokens == 4 for record in run.records)
    assert run.cold_start.coldness is Coldness.PROVEN


def test_requests_go_at_their_times_divided_by_the_speedup(fake_server: FakeServer) -> None:
    run = replay(fake_server, speedup=5.0)
    intended = sorted(record.intended_s for record in run.records)
    assert [time - intended[0] for time in intended] == pytest.approx([0.0, 0.02, 0.04, 0.06])


def test_scaling_and_cutting_are_noted(fake_server: FakeServer) -> None:
    run = replay(fake_server, length_scale=0.5, max_len=24)
    assert run.trace.block_size == 8
    assert any("scaled by 0.5" in note for note in run.notes)
    assert any("1 of 4 requests cut to 24 tokens" in note for note in run.notes)
    assert max(record.prompt_tokens for record in run.records) <= 24


def test_the_servers_own_limit_cuts_too(fake_server: FakeServer) -> None:
    fake_server.behaviour.info = {"max_model_len": 45}
    assert replay(fake_server, max_len=1000).fitting == replay(fake_server).fitting
    assert replay(fake_server).fitting.num_cut == 1


def test_a_server_that_cannot_be_emptied_gets_other_tokens_in_the_same_shape(
    fake_server: FakeServer,
) -> None:
    fake_server.behaviour.flush = "missing"
    first, second = replay(fake_server), replay(fake_server)
    assert first.salt != second.salt
    assert first.check.verdict is second.check.verdict is Verdict.CONSISTENT


def test_less_than_the_ideal_is_named_with_what_takes_hits(fake_server: FakeServer) -> None:
    fake_server.behaviour.info = {"force_miss": False}
    fake_server.behaviour.force_miss = True
    run = replay(fake_server)
    assert run.check.verdict is Verdict.LESS
    assert any("overlap and eviction" in note for note in run.notes)


def test_a_miss_that_is_meant_is_consistent(fake_server: FakeServer) -> None:
    fake_server.behaviour.force_miss = True
    assert replay(fake_server).check.verdict is Verdict.CONSISTENT


def test_chat_is_refused(fake_server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="token ids"):
        replay(fake_server, backend="openai-chat")


def test_failures_are_counted_and_named(fake_server: FakeServer) -> None:
    fake_server.fail_prompts_of(length=40, times=2)
    run = replay(fake_server, speedup=2.0)
    assert (run.metrics.ok, run.metrics.failed, run.metrics.planned) == (2, 2, 4)
    assert any("2 of 4 requests failed, first: HTTP 503" in note for note in run.notes)


def test_an_interrupted_replay_tells_what_had_finished(fake_server: FakeServer) -> None:
    times = iter([1])  # once is enough: a second Ctrl-C does not wait for anything

    def interrupt(progress: Progress) -> None:
        if progress.finished and next(times, None):
            signal.raise_signal(signal.SIGINT)

    # The last request is due long after the interrupt.
    run = replay(fake_server, speedup=0.001, on_progress=interrupt)
    assert run.interrupted
    assert (run.metrics.ok, run.metrics.unsent) == (1, 3)
    assert any("interrupted" in note for note in run.notes)


@pytest.mark.usefixtures("calibrated_to_almost_nothing")
def test_a_trace_past_the_clients_calibration_is_told(fake_server: FakeServer) -> None:
    notes = replay(fake_server).notes
    assert sum(note.startswith("past what this client was calibrated to, 0 tokens/s") for note in notes) == 1
