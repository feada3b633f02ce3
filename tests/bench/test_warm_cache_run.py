from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest

from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.config.warm_cache import REMOTE, WarmCacheOptions
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.loadgen.driver import Progress
from prefixlab.bench.runs.warm_cache import PointRun, measuring_order, run_warm_cache
from prefixlab.bench.targets.cold_start import Coldness
from prefixlab.bench.targets.endpoint import MakeTokenizer, open_endpoint
from prefixlab.bench.workloads.warm_cache import PointShape
from prefixlab.core.errors import ConfigError, TargetError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.bench.fake_server import FakeServer

PAST = "past what this client was calibrated to, 0 tokens/s"


class Watching:
    """A Listener that keeps what it sees."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.seen: list[Progress] = []
        self.runs: list[PointRun] = []

    def point_started(self, shape: PointShape, repeat: int, num_requests: int) -> None:
        self.started.append((shape.pct, repeat))

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    def point_done(self, run: PointRun) -> None:
        self.runs.append(run)


SMALL = WarmCacheOptions(
    total_tokens=120, pcts=(0, 50, 90), num_prompts=6, output_len=3, max_concurrency=2, seed=42, repeats=1
)


def sweep(
    server: FakeServer,
    *,
    options: WarmCacheOptions = SMALL,
    make_tokenizer: MakeTokenizer = lambda facts: None,
    listener: Watching | None = None,
    **target: Any,
) -> list[PointRun]:
    config = TargetConfig(base_url=server.url, **target)
    with open_endpoint(config, server.url, make_tokenizer) as endpoint:
        return run_warm_cache(endpoint, options, listener or Watching())


@pytest.mark.parametrize("backend", ["prefixlab", "sglang", "vllm", "openai"])
@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_every_point_is_cold_warmed_and_consistent(
    fake_server: FakeServer, backend: str, page_size: int
) -> None:
    fake_server.behaviour.page_size = page_size
    fake_server.behaviour.is_vllm = backend == "vllm"
    runs = sweep(fake_server, backend=backend)
    assert [run.shape.pct for run in runs] == [0, 50, 90]
    for run in runs:
        assert run.check.verdict is Verdict.CONSISTENT
        assert run.check.expected_cached_tokens == 6 * run.shape.expected_cached_tokens(page_size)
        assert run.cold_start.coldness is (Coldness.PROVEN if page_size < 120 else Coldness.ASSUMED)
        assert run.salt == 0
        assert run.metrics.ok == 6
        assert run.metrics.num_output_tokens == 18
    assert fake_server.peak_in_flight <= 2


def test_chat_is_measured_to_the_token_too(fake_server: FakeServer) -> None:
    options = replace(SMALL, total_tokens=400)
    for page_size in (1, 16):
        fake_server.reset()
        fake_server.behaviour.page_size = page_size
        runs = sweep(
            fake_server, backend="openai-chat", options=options, make_tokenizer=lambda facts: ByteTokenizer()
        )
        assert [run.check.verdict for run in runs] == [Verdict.CONSISTENT] * 3
        assert any("chat template" in note for note in runs[0].notes)


def test_chat_without_the_tokenizer_is_an_error_that_says_why(fake_server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="nobody knows which tokens"):
        sweep(fake_server, backend="openai-chat")


def test_chat_with_another_tokenizer_than_the_servers_is_found_out(fake_server: FakeServer) -> None:
    class Other(ByteTokenizer):
        def apply_chat_template(self, messages: Any) -> str:
            return "Instruction: " + super().apply_chat_template(messages)

    with pytest.raises(TargetError, match="another tokenizer, or another template"):
        sweep(
            fake_server,
            backend="openai-chat",
            options=replace(SMALL, total_tokens=400),
            make_tokenizer=lambda facts: Other(),
        )


@pytest.mark.parametrize("how", ["lies", "missing"])
def test_a_server_that_cannot_be_emptied_gets_prompts_it_has_never_seen(
    fake_server: FakeServer, how: str
) -> None:
    fake_server.behaviour.flush = how
    runs = sweep(fake_server, options=replace(SMALL, repeats=2))
    assert all(run.cold_start.coldness is Coldness.SALTED for run in runs)
    assert all(run.check.verdict is Verdict.CONSISTENT for run in runs)
    assert len({run.salt for run in runs}) == 6, "every point of every repeat is new"
    assert fake_server.num_flushes == 1, "once found out, it is not asked again"


def test_a_server_that_does_not_report_is_named(fake_server: FakeServer) -> None:
    fake_server.behaviour.reports_cached = False
    for run in sweep(fake_server):
        assert run.check.verdict is Verdict.NOT_REPORTED
        assert run.check.cached_tokens is None
        assert run.cold_start.coldness is Coldness.ASSUMED


def test_a_server_that_claims_more_is_named_and_its_cold_start_doubted(fake_server: FakeServer) -> None:
    fake_server.behaviour.extra_cached = 16
    runs = sweep(fake_server)
    assert all(run.check.verdict is Verdict.MORE for run in runs)
    assert all(run.cold_start.coldness is Coldness.SALTED for run in runs)
    assert any("did not start cold" in note for run in runs for note in run.notes)


def test_a_cache_that_never_hits_is_less_than_expected(fake_server: FakeServer) -> None:
    fake_server.behaviour.info = {"force_miss": False}
    fake_server.behaviour.force_miss = True
    runs = sweep(fake_server)
    assert [run.check.verdict for run in runs] == [Verdict.CONSISTENT, Verdict.LESS, Verdict.LESS]
    assert runs[2].check.cached_tokens == 0
    assert runs[2].check.expected_cached_tokens == 6 * 96


def test_a_server_that_says_its_cache_is_off_is_not_thereby_consistent(fake_server: FakeServer) -> None:
    fake_server.behaviour.info = {"force_miss": False, "disable_radix_cache": True}
    fake_server.behaviour.force_miss = True
    runs = sweep(fake_server)
    assert runs[2].check.verdict is Verdict.LESS
    assert all("the server says its prefix cache is off" in run.notes for run in runs)


@pytest.mark.parametrize("told_by", ["server", "flag"])
def test_a_miss_that_is_meant_is_consistent(fake_server: FakeServer, told_by: str) -> None:
    fake_server.behaviour.force_miss = True
    if told_by == "flag":
        fake_server.behaviour.info = {"force_miss": False}
    for run in sweep(fake_server, expect_miss=told_by == "flag"):
        assert run.check.verdict is Verdict.CONSISTENT
        assert run.check.expected_cached_tokens == run.check.cached_tokens == 0


def test_a_page_size_nobody_knows_leaves_hits_unchecked_unless_given(fake_server: FakeServer) -> None:
    fake_server.behaviour.known_endpoints = frozenset({"models"})
    assert {run.check.verdict for run in sweep(fake_server, backend="openai")} == {Verdict.UNCHECKED}
    fake_server.reset()
    fake_server.behaviour.known_endpoints = frozenset({"models"})
    runs = sweep(fake_server, backend="openai", page_size=16)
    assert {run.check.verdict for run in runs} == {Verdict.CONSISTENT}


def test_a_page_size_the_server_contradicts_is_refused(fake_server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="--page-size 64: the server says its pages hold 16"):
        sweep(fake_server, page_size=64)


def test_a_prefix_shorter_than_a_page_is_noted(fake_server: FakeServer) -> None:
    fake_server.behaviour.page_size = 100
    runs = sweep(fake_server)
    assert any("shorter than a page of 100" in note for note in runs[1].notes)
    assert runs[1].check.verdict is Verdict.CONSISTENT


def test_a_cache_too_small_for_the_requests_in_flight_is_noted(fake_server: FakeServer) -> None:
    fake_server.behaviour.info = {"max_total_num_tokens": 200}
    runs = sweep(fake_server)
    assert any(
        "2 requests in flight need 246 tokens of KV and the server holds 200" in n for n in runs[0].notes
    )
    assert not any("tokens of KV" in note for note in runs[2].notes)


def test_prompts_too_long_for_the_server_are_refused_before_anything_is_sent(fake_server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="takes at most 100000 tokens"):
        sweep(fake_server, options=replace(SMALL, total_tokens=99_998))
    assert not fake_server.bodies


def test_failed_requests_are_counted_named_and_not_fatal(fake_server: FakeServer) -> None:
    class FailingTwoOfTheLastPoint(Watching):
        def point_started(self, shape: PointShape, repeat: int, num_requests: int) -> None:
            super().point_started(shape, repeat, num_requests)
            if shape.pct == 90:
                fake_server.fail_prompts_of(length=120, times=2)

    runs = sweep(fake_server, listener=FailingTwoOfTheLastPoint())
    assert [run.metrics.failed for run in runs] == [0, 0, 2]
    assert all(run.metrics.planned == run.metrics.ok + run.metrics.failed == 6 for run in runs)
    assert any("HTTP 503" in note for note in runs[2].notes)
    assert {r.http_status for r in runs[2].records if r.failure} == {503}


def test_an_interrupted_point_is_handed_over_with_what_had_finished(fake_server: FakeServer) -> None:
    class InterruptingTheSecondPoint(Watching):
        interrupted = False

        def progress(self, progress: Progress) -> None:
            if len(self.started) == 2 and progress.finished and not self.interrupted:
                self.interrupted = True
                signal.raise_signal(signal.SIGINT)

        def point_started(self, shape: PointShape, repeat: int, num_requests: int) -> None:
            super().point_started(shape, repeat, num_requests)
            fake_server.behaviour.first_event_s = 0.3 if len(self.started) == 2 else 0.0

    listener = InterruptingTheSecondPoint()
    with pytest.raises(KeyboardInterrupt):
        sweep(fake_server, listener=listener)
    first, second = listener.runs
    assert (first.interrupted, second.interrupted) == (False, True)
    assert second.metrics.ok > 0
    assert second.metrics.cancelled + second.metrics.unsent > 0
    assert any("interrupted" in note for note in second.notes)


def test_a_client_that_is_not_at_its_best_is_noted(fake_server: FakeServer) -> None:
    def stamp_notes(**target: Any) -> list[str]:
        return [note for run in sweep(fake_server, **target) for note in run.notes if "kernel" in note]

    assert not stamp_notes()
    assert len(stamp_notes(kernel_stamps=False)) == 3


def test_several_client_processes_measure_the_same_point(fake_server: FakeServer) -> None:
    options = replace(SMALL, num_prompts=9, max_concurrency=3, pcts=(50,))
    (run,) = sweep(fake_server, options=options, num_workers=2)
    assert run.health.num_workers == 2
    assert {record.client for record in run.records} == {0, 1}
    assert run.check.verdict is Verdict.CONSISTENT
    assert fake_server.peak_in_flight <= 3


def test_a_server_that_fails_the_trial_ends_the_run(fake_server: FakeServer) -> None:
    fake_server.behaviour.fault = "abort"
    with pytest.raises(
        TargetError, match=r"the trial request failed, of random token ids below 4,096 .*: .*no pages left"
    ):
        sweep(fake_server)


def test_outputs_cut_short_are_noted(fake_server: FakeServer) -> None:
    fake_server.behaviour.stop_after = 2
    assert any("2 instead of 3" in note for note in sweep(fake_server)[0].notes)
    fake_server.reset()
    fake_server.behaviour.stop_after = 2
    runs = sweep(fake_server, disable_ignore_eos=True)
    assert not any("instead of" in note for run in runs for note in run.notes)
    assert not fake_server.bodies[-1]["sampling_params"]["ignore_eos"]


def test_a_point_is_the_same_whatever_other_points_run(fake_server: FakeServer) -> None:
    def prompts_at_50(pcts: tuple[int, ...]) -> list[list[int]]:
        fake_server.reset()
        sweep(fake_server, options=replace(SMALL, pcts=pcts))
        measured = [body["input_ids"] for body in fake_server.bodies if len(body["input_ids"]) == 120]
        return sorted(measured[-6:] if pcts[-1] == 50 else measured[-12:-6])

    alone = prompts_at_50((50,))
    assert alone == prompts_at_50((0, 50)) == prompts_at_50((90, 50)) == prompts_at_50((50, 90))


def test_repeats_measure_the_same_prompts_in_another_order_of_points(fake_server: FakeServer) -> None:
    options = replace(SMALL, repeats=3, pcts=(0, 25, 50, 75, 90))
    listener = Watching()
    runs = sweep(fake_server, options=options, listener=listener)
    orders = [[pct for pct, repeat in listener.started if repeat == wanted] for wanted in range(3)]
    assert orders[0] == [0, 25, 50, 75, 90]
    assert sorted(orders[1]) == sorted(orders[2]) == orders[0]
    assert orders == [measuring_order(options, repeat) for repeat in range(3)]
    assert orders[1] != orders[2]
    assert {run.check.verdict for run in runs} == {Verdict.CONSISTENT}
    assert len({record.request_id for run in runs for record in run.records}) == 3 * 5 * 6
    assert listener.runs == runs
    assert [seen.planned for seen in listener.seen if seen.finished == 6] == [6] * 15


def test_the_extra_body_goes_into_every_request(fake_server: FakeServer) -> None:
    sweep(fake_server, extra_request_body='{"priority": 7}')
    assert all(body["priority"] == 7 for body in fake_server.bodies)


def test_the_seeds_defaults_are_for_a_server_at_a_url() -> None:
    assert (
        WarmCacheOptions(
            total_tokens=70_000,
            pcts=(0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 92, 95, 97, 99),
            num_prompts=64,
            output_len=200,
            max_concurrency=4,
            seed=42,
            repeats=1,
        )
        == REMOTE
    )


@pytest.mark.usefixtures("calibrated_to_almost_nothing")
def test_a_sweep_past_the_clients_calibration_says_so_once(fake_server: FakeServer) -> None:
    runs = sweep(fake_server, options=replace(SMALL, pcts=(0, 50), repeats=2))
    told = [sum(note.startswith(PAST) for note in run.notes) for run in runs]
    assert told == [1, 0, 0, 0]
