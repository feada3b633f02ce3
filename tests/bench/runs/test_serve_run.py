from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.config.dataset import DatasetConfig, SamplingConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import RequestConfig, ServeConfig
from prefixlab.bench.config.sharing import HitRateConfig, PrefixRepetitionConfig
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.records.record import Failure, Outcome
from prefixlab.bench.records.run_dir import RunDir
from prefixlab.bench.report.points.block import shown_notes
from prefixlab.bench.runs import files
from prefixlab.bench.runs.remembered import remembered_endpoint
from prefixlab.bench.runs.serve import ServeRun
from prefixlab.bench.targets.control import FlushAnswer, ServerFacts
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import IdWording
from prefixlab.bench.workloads.words import WordWording
from prefixlab.core.errors import ConfigError, TargetError
from tests.bench.virtual_driver import Killed, VirtualDriver

FACTS = ServerFacts("fake", model="m", page_size=16, vocab_size=4096, max_model_len=500)


@dataclass
class FakeControl:
    """A server that can, or cannot, be emptied."""

    can_flush: bool = True
    flushes: int = 0
    gone: bool = False

    def facts(self) -> ServerFacts:
        return FACTS

    def flush(self) -> FlushAnswer:
        self.flushes += 1
        return FlushAnswer(self.can_flush, "asked")

    def metrics_text(self) -> str | None:
        if self.gone:
            raise TargetError("could not connect")
        return f"flushes {self.flushes}\n"


@dataclass
class Server:
    driver: VirtualDriver = field(default_factory=VirtualDriver)
    control: FakeControl = field(default_factory=FakeControl)
    backend: str = "sglang"

    def endpoint(self, **fields: Any) -> Endpoint:
        return Endpoint(
            **{
                "url": "http://x",
                "backend": self.backend,
                "model": "m",
                "driver": self.driver,
                "num_workers": None,
                "control": self.control,
                "facts": FACTS,
                "warnings": (),
                "wording": IdWording(Vocabulary.of_size(4096, "for the test")),
                "page_size": 16,
                "expects_miss": None,
                "ignore_eos": True,
                "extra_body": {},
                **fields,
            }
        )


def settings(num_prompts: int | None = 20, **load: Any) -> ServeConfig:
    return ServeConfig(
        dataset=DatasetConfig(num_prompts=num_prompts, random_input_len=40, random_output_len=4),
        load=LoadConfig(**{"max_concurrency": 4, **load}),
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Callable[[], RunDir]:
    path = tmp_path / "run"

    def open_or_create() -> RunDir:
        return RunDir.open(path) if path.exists() else RunDir.create(path, {"verb": "bench serve"})

    return open_or_create


def counts(result: PointResult) -> tuple[int, int, int, int, int]:
    metrics = result.metrics
    return metrics.planned, metrics.ok, metrics.failed, metrics.cancelled, metrics.unsent


def prompts_of(server: Server, run: int = -1) -> list[list[int]]:
    planned, _ = server.driver.runs[run]
    found = []
    for one in planned:
        assert one.request.prompt_token_ids is not None
        found.append(one.request.prompt_token_ids.tolist())
    return found


def test_every_planned_request_is_sent_once_and_accounted_for() -> None:
    server = Server(VirtualDriver(failing=frozenset({"3", "7"})))
    result = ServeRun(server.endpoint(), settings()).run()
    assert counts(result) == (20, 18, 2, 0, 0)
    ((planned, load),) = server.driver.runs
    assert [one.request.request_id for one in planned] == [str(number) for number in range(20)]
    assert (load.open_loop, load.max_concurrency) == (False, 4)
    assert "2 of 20 requests failed, first: it broke" in result.notes
    assert result.check.verdict is Verdict.CONSISTENT, "random prompts share nothing"


def test_with_a_rate_requests_go_at_their_times() -> None:
    server = Server()
    config = settings(5, max_concurrency=None, request_rate=10.0, burstiness=math.inf)
    result = ServeRun(server.endpoint(), config).run()
    ((planned, load),) = server.driver.runs
    assert load.open_loop and [one.offset_s for one in planned] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert result.settings.open_loop and result.settings.arrivals == "constant, 10 req/s"


def test_a_run_that_asked_too_much_is_told_in_its_notes() -> None:
    server = Server(VirtualDriver(token_s=0.1))
    config = settings(400, request_rate=20.0)  # of 10 a second: 4 slots, 0.4 s a request
    result = ServeRun(server.endpoint(), config).run()
    assert result.saturated
    assert result.notes[0] == str(result.saturation)


def test_a_shared_prefix_is_expected_to_be_found_by_all_but_the_first() -> None:
    server = Server()
    config = settings()
    config = replace(config, dataset=replace(config.dataset, random_prefix_len=33))
    result = ServeRun(server.endpoint(), config).run()
    planned, _ = server.driver.runs[0]
    assert [one.num_expected_cached_tokens for one in planned] == [0] + [32] * 19
    assert {tuple(prompt[:33]) for prompt in prompts_of(server)} == {tuple(prompts_of(server)[0][:33])}
    assert result.check.verdict is Verdict.LESS
    assert result.ledger is not None and result.ledger.word == "no hits"
    assert any(note.startswith("no hits: not one of 19 requests hit") for note in result.notes)


def test_warm_ups_are_not_measured_and_warm_nothing_that_is() -> None:
    server = Server()
    config = settings(num_warmups=3)
    config = replace(config, dataset=replace(config.dataset, random_prefix_len=16))
    result = ServeRun(server.endpoint(), config).run()
    assert len(result.table) == 20 and len(server.driver.runs) == 2
    firsts = {prompt[0] for prompt in prompts_of(server, 1)}
    assert not firsts & {prompt[0] for prompt in prompts_of(server, 0)}
    assert [len(prompt) for prompt in prompts_of(server, 0)] == [56] * 3


def test_a_failing_warm_up_ends_the_run_before_it_measures() -> None:
    server = Server(VirtualDriver(failing=frozenset({"warm-up-1"})))
    with pytest.raises(TargetError, match="a warm-up request failed: it broke"):
        ServeRun(server.endpoint(), settings(num_warmups=2)).run()
    assert len(server.driver.runs) == 1


def test_repeats_send_other_prompts_each_time_and_are_told_apart() -> None:
    server = Server()
    result = ServeRun(server.endpoint(), settings(repeats=3)).run()
    assert counts(result) == (60, 60, 0, 0, 0)
    assert len(result.runs) == 3 and set(result.table.segment.tolist()) == {0, 1, 2}
    firsts = [{prompt[0] for prompt in prompts_of(server, run)} for run in range(3)]
    assert firsts[0] != firsts[1] != firsts[2]
    assert len(set(result.table.request_id)) == 60 and result.table.request_id[0].startswith("repeat0-")


def test_a_cold_start_empties_the_cache_before_every_repeat() -> None:
    server = Server()
    result = ServeRun(server.endpoint(), settings(repeats=2), cold=True).run()
    assert server.control.flushes == 2
    # The virtual server never reports a hit, so a miss proves nothing.
    assert any(note.startswith("cold start assumed") for note in result.notes)


def test_a_server_that_cannot_be_emptied_gets_prompts_it_never_saw() -> None:
    def prompts() -> list[list[int]]:
        server = Server(control=FakeControl(can_flush=False))
        result = ServeRun(server.endpoint(), settings(), cold=True).run()
        assert any(note.startswith("cold start salted") for note in result.notes)
        return prompts_of(server)

    first, second = prompts(), prompts()
    assert first != second and [len(p) for p in first] == [len(p) for p in second]


def test_prompts_depend_on_the_seed_and_the_points_own_settings() -> None:
    def prompts(config: ServeConfig) -> list[list[int]]:
        server = Server()
        ServeRun(server.endpoint(), config).run()
        return prompts_of(server)

    base = prompts(settings())
    assert prompts(settings()) == base
    assert prompts(settings(num_warmups=2, retries=1)) == base
    assert prompts(settings(10)) == base[:10]
    assert prompts(settings(max_concurrency=5)) != base
    assert prompts(replace(settings(), dataset=replace(settings().dataset, seed=1))) != base


def test_a_run_interrupted_goes_on_and_counts_as_an_unbroken_one(run_dir: Callable[[], RunDir]) -> None:
    server = Server(VirtualDriver(failing=frozenset({"2"}), stop_after=7))
    with run_dir() as folder:
        files.begin(folder, server.endpoint(), 1)
        first = ServeRun(server.endpoint(), settings(), folder=folder).run()
        files.finish(folder, server.endpoint(), first, detailed=False)
    assert first.interrupted and counts(first) == (20, 6, 1, 0, 13)
    with run_dir() as folder:
        second = ServeRun(server.endpoint(), settings(), folder=folder).run()
        files.finish(folder, server.endpoint(), second, detailed=False)
    assert not second.interrupted and counts(second) == (20, 19, 1, 0, 0)
    assert "resumed: 7 requests had ended before" in second.notes
    sent = [{one.request.request_id for one in planned} for planned, _ in server.driver.runs]
    done = {r.request_id for r in first.table.to_records() if r.outcome in (Outcome.OK, Outcome.FAILED)}
    assert sent[1] == sent[0] - done, "what is ok or failed is not sent again"
    assert set(second.table.segment.tolist()) == {0, 1}
    with pytest.raises(ConfigError, match="that run is finished"):
        run_dir()


@pytest.mark.parametrize("die_after", [0, 1, 19, 20])
def test_a_run_killed_at_any_moment_goes_on_with_every_finished_request_kept(
    run_dir: Callable[[], RunDir], die_after: int
) -> None:
    server = Server(VirtualDriver(die_after=die_after))
    config = settings(max_concurrency=None, request_rate=5.0)
    with run_dir() as folder, pytest.raises(Killed):
        ServeRun(server.endpoint(), config, folder=folder).run()
    with run_dir() as folder:
        result = ServeRun(server.endpoint(), config, folder=folder).run()
        files.finish(folder, server.endpoint(), result, detailed=False)
        lines = (folder.path / "requests.jsonl").read_bytes().splitlines()
    assert counts(result) == (20, 20, 0, 0, 0)
    assert len(lines) == 20
    if die_after < 20:
        (whole, _), (rest, _) = server.driver.runs
        assert len(rest) == 20 - die_after
        due_s = whole[die_after - 1].offset_s if die_after else 0.0
        left = [one.offset_s - due_s for one in whole[die_after:]]
        assert [one.offset_s for one in rest] == pytest.approx(left), "the schedule goes on as it was"


def test_a_resumed_open_loop_takes_as_long_as_an_unbroken_one(run_dir: Callable[[], RunDir]) -> None:
    def measured(server: Server, folder: RunDir | None) -> PointResult:
        config = settings(100, max_concurrency=None, request_rate=20.0, burstiness=math.inf)
        return ServeRun(server.endpoint(), config, folder=folder).run()

    unbroken = measured(Server(), None).metrics
    server = Server(VirtualDriver(hanging=frozenset({"0", "40"}), die_after=90))
    with run_dir() as folder, pytest.raises(Killed):
        measured(server, folder)
    with run_dir() as folder:
        result = measured(server, folder)
    resumed, rest = result.metrics, server.driver.runs[1][0]
    assert [one.request.request_id for one in rest] == ["0", "40", *map(str, range(92, 100))]
    assert [one.offset_s for one in rest] == pytest.approx([0, 0, *(0.05 * n for n in range(1, 9))])
    assert counts(result) == (100, 100, 0, 0, 0)
    assert resumed.duration_s == pytest.approx(unbroken.duration_s, abs=0.1)
    assert resumed.request_throughput == pytest.approx(unbroken.request_throughput, rel=0.02)
    assert resumed.steady is not None and unbroken.steady is not None
    assert resumed.steady.duration_s == pytest.approx(unbroken.steady.duration_s, abs=0.1)
    assert not result.interrupted


def test_a_run_broken_off_is_judged_by_all_that_was_sent_in_one_of_its_stretches(
    run_dir: Callable[[], RunDir],
) -> None:
    server = Server(VirtualDriver(failing=frozenset({"3"}), stop_after=40))
    config = settings(100, max_concurrency=None, request_rate=20.0, burstiness=math.inf)
    with run_dir() as folder:
        first = ServeRun(server.endpoint(), config, folder=folder).run()
    server = Server()
    with run_dir() as folder:
        second = ServeRun(server.endpoint(), config, folder=folder).run()
    assert counts(second) == (100, 99, 1, 0, 0)
    assert "1 request of them had failed: not sent again" in second.notes
    assert first.interrupted
    assert second.saturation is not None
    assert second.saturation.num_arrived == 60, "of the longest, whole"


def test_a_resumed_open_loop_sends_all_that_its_duration_holds(run_dir: Callable[[], RunDir]) -> None:
    server = Server(VirtualDriver(token_s=0.5, die_after=20))
    config = settings(None, max_concurrency=None, request_rate=10.0, burstiness=math.inf, duration=5.0)
    with run_dir() as folder, pytest.raises(Killed):
        ServeRun(server.endpoint(), config, folder=folder).run()
    with run_dir() as folder:
        result = ServeRun(server.endpoint(), config, folder=folder).run()
    assert counts(result) == (result.metrics.ok, result.metrics.ok, 0, 0, 0), "the drain is no part of it"


def test_a_resumed_run_of_repeats_says_how_many_they_are(run_dir: Callable[[], RunDir]) -> None:
    server = Server(VirtualDriver(die_after=5))
    with run_dir() as folder, pytest.raises(Killed):
        ServeRun(server.endpoint(), settings(repeats=2), folder=folder).run()
    with run_dir() as folder:
        text = files.as_text(ServeRun(server.endpoint(), settings(repeats=2), folder=folder).run(), "vllm")
    rows = [line.split() for line in text.splitlines()]
    assert ["Repeats:", "2"] in rows
    assert ["Segments", "of", "a", "resumed", "run:", "3"] in rows


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_killed_stretch_tells_where_its_stamps_come_from_and_nothing_else(
    run_dir: Callable[[], RunDir], by_kernel: bool
) -> None:
    server = Server(VirtualDriver(die_after=20, kernel_stamps=by_kernel))
    with run_dir() as folder, pytest.raises(Killed):
        ServeRun(server.endpoint(), settings(), folder=folder).run()
    with run_dir() as folder:
        result = ServeRun(server.endpoint(), settings(), folder=folder).run()
    assert result.health.stamps == ("kernel" if by_kernel else "process")
    assert any(note.startswith("client health of a killed stretch is not known") for note in result.notes)
    assert any("not the kernel's" in note for note in result.notes) is not by_kernel
    assert not any("calibrate" in note for note in result.notes)
    (row,) = (line for line in files.as_text(result, "vllm").splitlines() if "Client processes" in line)
    assert row.split()[-1] == "n/a"


def test_a_salt_survives_a_kill(run_dir: Callable[[], RunDir]) -> None:
    server = Server(VirtualDriver(), FakeControl(can_flush=False))
    with run_dir() as folder, pytest.raises(Killed):
        run = ServeRun(server.endpoint(), settings(), folder=folder, cold=True)
        server.driver.die_after = None
        original = server.driver.run

        def kill_the_measured_run(plan: Any, load: Any, **more: Any) -> Any:
            if more.get("folder") is not None:
                server.driver.die_after = 3
            return original(plan, load, **more)

        server.driver.run = kill_the_measured_run  # type: ignore[method-assign]
        run.run()
    server.driver.run = original  # type: ignore[method-assign]
    killed = prompts_of(server)
    with run_dir() as folder:
        ServeRun(server.endpoint(), settings(), folder=folder, cold=True).run()
    assert len(prompts_of(server)) == 17 and all(prompt in killed for prompt in prompts_of(server))


def test_repeats_that_an_interrupt_never_reached_are_unsent_and_come_later(
    run_dir: Callable[[], RunDir],
) -> None:
    server = Server(VirtualDriver(stop_after=5))
    config = settings(repeats=2)
    with run_dir() as folder:
        first = ServeRun(server.endpoint(), config, folder=folder).run()
    assert counts(first) == (40, 5, 0, 0, 35)
    with run_dir() as folder:
        second = ServeRun(server.endpoint(), config, folder=folder).run()
    assert counts(second) == (40, 40, 0, 0, 0)


def test_nothing_is_sent_after_the_duration_also_when_resumed(run_dir: Callable[[], RunDir]) -> None:
    server = Server(VirtualDriver(token_s=0.1, die_after=8))
    config = settings(20, duration=1.0)
    with run_dir() as folder, pytest.raises(Killed):
        ServeRun(server.endpoint(), config, folder=folder).run()
    with run_dir() as folder:
        result = ServeRun(server.endpoint(), config, folder=folder).run()
    # 4 slots, 0.4 s a request: two rounds took 0.8 s of the one second, one more begins within it.
    assert counts(result) == (20, 12, 0, 0, 8)
    assert any("--duration was over" in note for note in result.notes)


def test_a_server_that_dies_costs_no_report(run_dir: Callable[[], RunDir]) -> None:
    server = Server()
    with run_dir() as folder:
        notes = files.begin(folder, server.endpoint(), 1)
        result = ServeRun(server.endpoint(), settings(), folder=folder).run()
        server.control.gone = True
        result = files.finish(folder, server.endpoint(), result, detailed=False, notes=notes)
        assert "no metrics-after.txt: could not connect" in (folder.path / "report.txt").read_text()
        assert (folder.path / "requests.parquet").exists() and folder.is_finished


def test_a_client_process_that_died_is_named_and_its_run_is_not_finished() -> None:
    server = Server()
    original = server.driver.run

    def lose_a_process(plan: Any, load: Any, **more: Any) -> Any:
        drive = original(plan, load, **more)
        drive.health.stamps = "process"  # as of a client process that left no word
        stamped = replace(drive.table, kernel_stamps=np.ones(len(drive.table), np.bool_))
        return replace(drive, table=stamped, deaths=("client process 1 was killed by SIGKILL",))

    server.driver.run = lose_a_process  # type: ignore[method-assign]
    run = ServeRun(server.endpoint(), settings())
    result = run.run()
    assert result.interrupted and run.gone == "client process 1 was killed by SIGKILL"
    assert f"not all was sent: {run.gone}" in result.notes
    assert result.health.stamps == "kernel"


def test_what_was_measured_before_a_server_died_between_repeats_is_reported() -> None:
    server = Server(VirtualDriver(failing=frozenset({"probe"})))
    server.driver.failing = frozenset()
    run = ServeRun(server.endpoint(), settings(repeats=2), cold=True)
    original = server.driver.run

    def die_after_the_first_repeat(plan: Any, load: Any, **more: Any) -> Any:
        drive = original(plan, load, **more)
        if len(drive.table) == 20:
            server.driver.failing = frozenset({"probe", "cold start", *drive.table.request_id})
            server.driver.run = fail  # type: ignore[method-assign]
        return drive

    def fail(plan: Any, load: Any, **more: Any) -> Any:
        raise TargetError("could not connect")

    server.driver.run = die_after_the_first_repeat  # type: ignore[method-assign]
    result = run.run()
    assert counts(result) == (40, 20, 0, 0, 20)
    assert result.interrupted and run.gone == "could not connect"
    assert "not all was sent: could not connect" in result.notes


def test_a_run_whose_server_is_gone_is_reported_of_what_its_folder_holds(
    run_dir: Callable[[], RunDir],
) -> None:
    server = Server(VirtualDriver(failing=frozenset({"2"}), stop_after=7))
    with run_dir() as folder:
        files.begin(folder, server.endpoint(), 1)
        ServeRun(server.endpoint(), settings(), folder=folder).run()
    with run_dir() as folder:
        endpoint = remembered_endpoint(folder, settings())
        assert (endpoint.backend, endpoint.model, endpoint.page_size) == ("sglang", "m", 16)
        run = ServeRun(endpoint, settings(), folder=folder, gone="could not connect")
        result = files.finish(folder, endpoint, run.run(), detailed=False)
        assert not folder.is_finished and run.gone
    assert counts(result) == (20, 6, 1, 0, 13)
    assert result.check.verdict is Verdict.CONSISTENT


def test_a_server_that_went_away_in_mid_run_is_said_and_what_it_did_not_take_is_sent_again(
    run_dir: Callable[[], RunDir],
) -> None:
    server = Server()
    original = server.driver.run

    def go_away_after_eight(plan: Any, load: Any, **more: Any) -> Any:
        server.driver.failing = frozenset(map(str, range(8, 20)))
        server.driver.failure = Failure.CONNECT
        return original(plan, load, **more)

    with run_dir() as folder:
        files.begin(folder, server.endpoint(), 1)
        server.driver.run = go_away_after_eight  # type: ignore[method-assign]
        run = ServeRun(server.endpoint(), settings(), folder=folder)
        first = files.finish(folder, server.endpoint(), run.run(), detailed=False)
        assert not folder.is_finished
    assert counts(first) == (20, 8, 12, 0, 0)
    assert run.gone == "the server went away: 12 requests at the end found no connection"
    assert f"not all was sent: {run.gone}" in first.notes
    server.driver.run = original  # type: ignore[method-assign]
    server.driver.failing = frozenset()
    with run_dir() as folder:
        run = ServeRun(server.endpoint(), settings(), folder=folder)
        result = files.finish(folder, server.endpoint(), run.run(), detailed=False)
        assert folder.is_finished and run.gone is None
    assert counts(result) == (20, 20, 0, 0, 0)


@pytest.mark.parametrize(("failing", "failure"), [(range(8, 19), "connect"), (range(8, 20), "http_status")])
def test_a_server_that_answers_again_or_refuses_has_not_gone_away(failing: range, failure: str) -> None:
    server = Server(VirtualDriver(failing=frozenset(map(str, failing)), failure=Failure(failure)))
    run = ServeRun(server.endpoint(), settings(max_concurrency=1))
    assert not run.run().interrupted and run.gone is None


def test_a_run_that_only_lacks_its_report_needs_no_server(run_dir: Callable[[], RunDir]) -> None:
    server = Server(VirtualDriver(die_after=20))
    with run_dir() as folder, pytest.raises(Killed):
        files.begin(folder, server.endpoint(), 1)
        ServeRun(server.endpoint(), settings(), folder=folder).run()
    with run_dir() as folder:
        endpoint = remembered_endpoint(folder, settings())
        run = ServeRun(endpoint, settings(), folder=folder, gone="could not connect")
        files.finish(folder, endpoint, run.run(), detailed=False)
        assert run.gone is None and folder.is_finished


def test_what_is_sent_after_a_resume_is_not_held_against_the_cache(run_dir: Callable[[], RunDir]) -> None:
    server = Server(VirtualDriver(stop_after=7))
    with run_dir() as folder:
        first = ServeRun(server.endpoint(), settings(), folder=folder).run()
        segment = json.loads((folder.path / "segments/0000.json").read_text())
    assert first.check.verdict is Verdict.CONSISTENT
    assert segment["health"]["stamps"] == "target", "JSON, not JSON in a string"
    with run_dir() as folder:
        result = ServeRun(server.endpoint(), settings(), folder=folder).run()
    planned, _ = server.driver.runs[1]
    assert {one.num_expected_cached_tokens for one in planned} == {None}
    assert result.check.verdict is Verdict.CONSISTENT
    assert (result.check.num_checked, result.check.prompt_tokens) == (7, 20 * 40)
    assert result.check.words == "consistent (7 of 20 requests checked)"
    assert any(note.startswith("13 requests sent after the run was resumed") for note in result.notes)


def test_a_run_directory_holds_what_the_design_says(run_dir: Callable[[], RunDir]) -> None:
    server = Server()
    with run_dir() as folder:
        files.begin(folder, server.endpoint(), 7)
        result = ServeRun(server.endpoint(), settings(), folder=folder).run()
        files.finish(folder, server.endpoint(), result, detailed=False)
        names = {path.name for path in folder.path.iterdir()}
        assert names >= {
            *("config.json", "environment.json", "summary.json", "health.json", "report.txt", "segments"),
            *("requests.jsonl", "requests.csv", "requests.parquet"),
            *("metrics-before.txt", "metrics-after.txt", "lock"),
        }
        environment = (folder.path / "environment.json").read_text()
        assert '"page_size": 16' in environment and '"seed": 7' in environment


def test_sampling_goes_into_the_body_as_each_api_has_it() -> None:
    sampling = SamplingConfig(temperature=0.5, top_k=3, logprobs=2)
    config = replace(settings(1), sampling=sampling, request=RequestConfig(request_id_prefix="p-"))

    def body(backend: str, **extra: Any) -> dict[str, Any]:
        server = Server(backend=backend)
        wording = WordWording() if backend == "openai-chat" else server.endpoint().wording
        ServeRun(server.endpoint(extra_body=extra, wording=wording), config).run()
        ((request,),) = [[one.request for one in planned] for planned, _ in server.driver.runs]
        assert request.temperature == 0.5 and request.request_id == "p-0"
        return request.extra_body

    assert body("vllm", top_k=9) == {"top_k": 9, "logprobs": 2}
    assert body("openai-chat") == {"top_k": 3, "logprobs": True, "top_logprobs": 2}
    assert body("sglang", sampling_params={"min_p": 0.1}, x=1) == {
        "return_logprob": True,
        "top_logprobs_num": 2,
        "sampling_params": {
            "temperature": 0.5,
            "max_new_tokens": 4,
            "ignore_eos": True,
            "top_k": 3,
            "min_p": 0.1,
        },
        "x": 1,
    }


def test_on_chat_without_a_tokenizer_prompts_are_words_and_the_report_says_so() -> None:
    server = Server(backend="openai-chat")
    result = ServeRun(server.endpoint(wording=WordWording()), settings()).run()
    (planned, _) = server.driver.runs[0]
    messages = planned[0].request.messages
    assert messages is not None and len(messages[0]["content"].split()) == 40
    assert any("the server's count" in note for note in result.notes)
    assert result.check.verdict is Verdict.UNCHECKED
    assert result.check.words == "not checked: prompts are text"
    assert not any("--page-size" in note for note in shown_notes(result))


def test_words_that_are_far_from_the_length_asked_for_are_not_said_to_be_about_it() -> None:
    server = Server(VirtualDriver(tokens_per_word=5), backend="openai-chat")
    notes = ServeRun(server.endpoint(wording=WordWording()), settings()).run().notes
    assert any(note.startswith("prompt lengths: 40.0 tokens asked for on average, 200.0") for note in notes)
    assert not any("about as asked" in note for note in notes)
    assert any("give --tokenizer" in note for note in notes)


def test_a_workload_that_says_itself_why_it_is_smaller_is_not_blamed_on_arrivals() -> None:
    dataset = DatasetConfig(dataset_name="prefix_repetition", num_prompts=10)
    shape = PrefixRepetitionConfig(
        prefix_repetition_num_prefixes=3,
        prefix_repetition_prefix_len=8,
        prefix_repetition_suffix_len=8,
        prefix_repetition_output_len=4,
    )
    config = replace(settings(max_concurrency=None), dataset=dataset, prefix_repetition=shape)
    notes = ServeRun(Server().endpoint(), config).run().notes
    assert any("9 requests rather than 10" in note for note in notes)
    assert not any("--num-prompts" in note for note in notes)


def test_where_the_page_size_is_not_known_the_notes_say_how_to_name_it() -> None:
    result = ServeRun(Server().endpoint(page_size=None), settings()).run()
    assert result.check.words == "not checked: page size unknown"
    assert "the page size is unknown: give --page-size to check the hits" in shown_notes(result)


def test_where_all_that_finished_was_sent_after_a_resume_the_verdict_says_so(
    run_dir: Callable[[], RunDir],
) -> None:
    server = Server(VirtualDriver(stop_after=0))
    for _ in range(2):
        with run_dir() as folder:
            result = ServeRun(server.endpoint(), settings(), folder=folder).run()
    assert counts(result)[:2] == (20, 20)
    assert result.check.words == "not checked: sent after a resume"


def test_a_point_begun_anew_in_an_emptied_cache_is_checked_again_and_knows_how_cold_it_was(
    run_dir: Callable[[], RunDir],
) -> None:
    server = Server(VirtualDriver(stop_after=0))
    for cold in (False, True):  # the first one is stopped before anything is sent
        with run_dir() as folder:
            result = ServeRun(server.endpoint(), settings(), folder=folder, cold=cold).run()
    assert result.check.words == "consistent" and result.check.num_checked == 20
    asked = len(server.driver.runs)
    with run_dir() as folder:
        read = ServeRun(server.endpoint(), settings(), folder=folder, cold=True).run()
    assert len(server.driver.runs) == asked, "it is only read"
    assert result.settings.facts["cold_start"] is not None
    assert read.settings.facts["cold_start"] == result.settings.facts["cold_start"]


def test_a_hit_rate_made_for_a_larger_cache_than_the_servers_is_told() -> None:
    def notes(capacity: int | None) -> list[str]:
        hits = HitRateConfig(hit_rate_capacity=capacity, hit_rate_len=64, hit_rate_output_len=1)
        config = replace(settings(), dataset=DatasetConfig(dataset_name="hit-rate", num_prompts=60))
        endpoint = Server().endpoint(facts=replace(FACTS, capacity_tokens=160))
        return list(ServeRun(endpoint, replace(config, hit_rate=hits)).run().notes)

    remedy = "the server holds 160 tokens: --hit-rate-capacity 160 aims for what it can serve"
    assert f"made for a cache that forgets nothing, {remedy}" in notes(None)
    assert f"made for a cache of 3,200 tokens, {remedy}" in notes(3200)
    assert not any("made for" in note for note in notes(160))


@pytest.mark.parametrize(("concurrency", "is_told"), [(4, True), (1, False)])
def test_more_hits_by_overlap_are_no_fault_of_a_cache_that_forgets(concurrency: int, is_told: bool) -> None:
    hits = HitRateConfig(hit_rate_len=64, hit_rate_output_len=1)
    config = settings(max_concurrency=concurrency)
    config = replace(config, dataset=DatasetConfig(dataset_name="hit-rate", num_prompts=60), hit_rate=hits)
    server = Server(VirtualDriver(num_cached_tokens=63))
    expected = server.endpoint(facts=replace(FACTS, capacity_tokens=160))
    result = ServeRun(expected, config).run()
    assert result.check.verdict is Verdict.MORE
    assert any("no fault of it" in note for note in result.notes) is is_told


def test_fewer_requests_than_asked_for_are_told(tmp_path: Path) -> None:
    path = tmp_path / "times.txt"
    path.write_text("0\n0.1\n0.2\n")
    config = settings(100, schedule=str(path), max_concurrency=None)
    result = ServeRun(Server().endpoint(), config).run()
    assert counts(result) == (3, 3, 0, 0, 0)
    assert f"3 of --num-prompts 100 arrive: times from {path} end before" in result.notes
    enough = ServeRun(Server().endpoint(), settings(3, schedule=str(path), max_concurrency=None)).run()
    assert not any("--num-prompts" in note for note in enough.notes)


def test_prompts_of_a_file_go_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "hello", "output_tokens": 3}\n{"prompt": "there"}\n')
    dataset = DatasetConfig(dataset_name="custom", dataset_path=str(path), shuffle=False)
    server = Server(backend="vllm")
    result = ServeRun(server.endpoint(), replace(settings(), dataset=dataset)).run()
    (planned, _) = server.driver.runs[0]
    assert [(one.request.prompt_text, one.request.max_new_tokens) for one in planned] == [
        ("hello", 3),
        ("there", 256),
    ]
    assert counts(result)[:2] == (2, 2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"random_input_len": 500}, "the server takes at most 500"),
        ({"random_output_len": 470}, "the server takes at most 500"),
    ],
)
def test_requests_longer_than_the_server_takes_are_told_before_anything_is_sent(
    change: dict[str, int], complaint: str
) -> None:
    server = Server()
    with pytest.raises(ConfigError, match=complaint):
        ServeRun(server.endpoint(), replace(settings(), dataset=replace(settings().dataset, **change))).run()
    assert not server.driver.runs


def test_ids_are_refused_where_the_api_takes_text() -> None:
    server = Server(backend="openai-chat")
    config = replace(settings(), dataset=replace(settings().dataset, prompt_form="ids"))
    with pytest.raises(ConfigError, match="--prompt-form ids: chat takes text"):
        ServeRun(server.endpoint(wording=WordWording()), config).run()
