"""Runs of sessions on virtual time, against a cache that forgets nothing."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sessions import SessionsConfig
from prefixlab.bench.config.trace import TraceConfig
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.loadgen.driver import Drive, OnProgress
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.metrics.turns import by_turn, of_sessions
from prefixlab.bench.records.line import encode
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.run_dir import RunDir
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.points.keys import result_keys
from prefixlab.bench.runs import files
from prefixlab.bench.runs.point import outline
from prefixlab.bench.runs.serve import ServeRun
from prefixlab.bench.targets.control import FlushAnswer, ServerFacts
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import IdWording, common_prefix
from prefixlab.core.block_hash import TokenIds
from prefixlab.core.errors import ConfigError
from prefixlab.core.hit_oracle import expected_cached_tokens
from tests.bench.virtual_driver import Killed

PAGE_SIZE = 16


@dataclass
class SessionDriver:
    """Sessions one after another, each token 10 ms; implements `loadgen.driver.Driver`.

    Attributes:
        failing: requests that fail.
        output_len: what is answered, however much was asked for; None: as much as that.
        stop_after: requests of the next run that end; the rest are unsent, as at Ctrl-C.
        die_after: requests of the next run whose lines are written before the process is killed.
        runs: the plans it was given.
    """

    failing: frozenset[str] = frozenset()
    output_len: int | None = None
    stop_after: int | None = None
    die_after: int | None = None
    runs: list[list[Planned]] = field(default_factory=list)
    cached: list[TokenIds] = field(default_factory=list)

    def run(
        self,
        plan: Iterable[Planned],
        load: Load,
        *,
        on_progress: OnProgress | None = None,
        folder: Path | None = None,
    ) -> Drive:
        planned = list(plan)
        self.runs.append(planned)
        stop_after, self.stop_after = self.stop_after, None
        die_after, self.die_after = self.die_after, None
        last = stop_after if die_after is None else die_after
        records = self._play(planned, len(planned) if last is None else last)
        if die_after is not None:
            records = records[:die_after]
        if folder is not None:
            (folder / "records-0.jsonl").write_bytes(b"".join(map(encode, records)))
        if die_after is not None:
            raise Killed
        return Drive(RecordTable.of(records), 1.0, ClientHealth(stamps="target"), stop_after is not None)

    def _play(self, planned: list[Planned], num_to_end: int) -> list[Record]:
        now_s, records, whole = 0.0, [], list[TokenIds | None]()
        for one in planned:
            before = None if one.after is None else whole[one.after]
            prompt = one.request.prompt_token_ids
            assert prompt is not None
            if len(records) >= num_to_end or (one.continues and before is None):
                whole.append(None)
                records.append(one.unsent(one.offset_s))
                continue
            if one.continues:
                assert before is not None
                prompt = np.concatenate((before, prompt))
            sent_s = now_s + one.delay_s
            record, answer = self._ask(one, prompt, sent_s)
            assert record.last_s is not None
            now_s = record.last_s
            whole.append(answer)
            records.append(record)
        return records

    def _ask(self, one: Planned, prompt: TokenIds, sent_s: float) -> tuple[Record, TokenIds | None]:
        unsent = replace(one.unsent(sent_s), sent_s=sent_s)
        if one.request.request_id in self.failing:
            broke = replace(unsent, outcome=Outcome.FAILED, failure=Failure.RESET, error="it broke")
            return replace(broke, last_s=sent_s), None
        count = one.request.max_new_tokens if self.output_len is None else self.output_len
        found = max((common_prefix(prompt, other) for other in self.cached), default=0)
        answer = np.random.default_rng(len(prompt)).integers(5_000, 6_000, count, np.int32)
        whole = np.concatenate((prompt, answer))
        self.cached.append(whole[:-1])
        arrivals = tuple(sent_s + 0.01 * (n + 1) for n in range(count))
        record = replace(
            unsent,
            outcome=Outcome.OK,
            first_byte_s=arrivals[0],
            arrivals_s=arrivals,
            arrival_counts=(1,) * count,
            last_s=arrivals[-1],
            num_prompt_tokens=len(prompt),
            num_cached_tokens=expected_cached_tokens(found, len(prompt), PAGE_SIZE),
        )
        return record, whole


class Control:
    def facts(self) -> ServerFacts:
        return FACTS

    def flush(self) -> FlushAnswer:
        return FlushAnswer(True, "asked")

    def metrics_text(self) -> str | None:
        return None


FACTS = ServerFacts("fake", model="m", page_size=PAGE_SIZE, vocab_size=4096)


def endpoint(driver: SessionDriver, **fields: Any) -> Endpoint:
    values: dict[str, Any] = {
        "url": "http://x",
        "backend": "sglang",
        "model": "m",
        "driver": driver,
        "num_workers": None,
        "control": Control(),
        "facts": FACTS,
        "warnings": (),
        "wording": IdWording(Vocabulary.of_size(4096, "for the test")),
        "page_size": PAGE_SIZE,
        "expects_miss": None,
        "ignore_eos": True,
        "extra_body": {},
        **fields,
    }
    return Endpoint(**values)


def settings(num_sessions: int | None = 3, num_turns: int = 4, **load: Any) -> ServeConfig:
    lens = {"turn_len": 40, "first_turn_len": 100, "turn_output_len": 8, "system_len": 50}
    return ServeConfig(
        dataset=DatasetConfig(dataset_name="sessions"),
        sessions=SessionsConfig(num_sessions=num_sessions, num_turns=num_turns, think_time=0.5, **lens),
        load=LoadConfig(**{"max_concurrency": 1, **load}),
    )


def run(
    driver: SessionDriver, config: ServeConfig | None = None, folder: RunDir | None = None
) -> PointResult:
    return ServeRun(endpoint(driver), config or settings(), folder=folder).run()


@pytest.fixture
def run_dir(tmp_path: Path) -> Callable[[], RunDir]:
    path = tmp_path / "run"

    def open_or_create() -> RunDir:
        return RunDir.open(path) if path.exists() else RunDir.create(path, {"verb": "bench serve"})

    return open_or_create


def ids(planned: list[Planned]) -> list[str]:
    return [one.request.request_id for one in planned]


def test_every_turn_hits_exactly_what_was_said_before_it() -> None:
    driver = SessionDriver()
    result = run(driver)
    assert (result.metrics.planned, result.metrics.ok) == (12, 12)
    assert result.check.verdict is Verdict.CONSISTENT
    assert result.check.detail == "", "prompts are as long as planned, too"
    (planned,) = driver.runs
    assert [one.after for one in planned] == [None, 0, 1, 2, None, 4, 5, 6, None, 8, 9, 10]
    assert [one.delay_s for one in planned[:4]] == [0, 0.5, 0.5, 0.5]
    assert [len(one.request.prompt_token_ids) for one in planned[:3]] == [150, 40, 40]  # type: ignore[arg-type]
    assert {one.session_id for one in planned[4:8]} == {"session-1"}


def test_what_is_expected_of_later_turns_follows_what_was_really_answered() -> None:
    result = run(SessionDriver(output_len=3))
    assert result.check.verdict is Verdict.CONSISTENT and result.check.detail == ""
    assert result.table.planned_prompt_tokens.tolist()[:3] == [150, 193, 236]


def test_the_table_of_turns_has_what_records_say() -> None:
    result = run(SessionDriver())
    turns = by_turn(result.table)
    assert [(turn.first, turn.planned, turn.ok) for turn in turns] == [(number, 3, 3) for number in range(4)]
    assert [turn.mean_prompt_tokens for turn in turns] == [150, 198, 246, 294]
    assert turns[0].hit_rate == pytest.approx(2 * 48 / 450), "the system prompt, in two of three"
    assert turns[1].hit_rate == turns[1].expected_hit_rate == pytest.approx(144 / 198)
    assert turns[2].ttft_s.p99 == pytest.approx(0.01)
    sessions = of_sessions(result.table)
    assert (sessions.planned, sessions.begun, sessions.completed, sessions.mean_turns) == (3, 3, 3, 4)
    assert sessions.duration_s.mean == pytest.approx(3 * 0.5 + 4 * 8 * 0.01)


def test_a_session_of_which_a_turn_failed_sends_no_more_and_the_others_go_on() -> None:
    result = run(SessionDriver(failing=frozenset({"5"})))
    assert (result.metrics.ok, result.metrics.failed, result.metrics.unsent) == (9, 1, 2)
    sessions = of_sessions(result.table)
    assert (sessions.begun, sessions.completed) == (3, 2)
    assert "2 later turns not sent, for a turn of its session had failed" in result.notes
    assert not any("--duration" in note for note in result.notes)


def test_a_session_that_had_not_ended_is_begun_anew_as_a_whole(run_dir: Callable[[], RunDir]) -> None:
    driver = SessionDriver(stop_after=6)  # two turns into the second session
    with run_dir() as folder:
        first = run(driver, folder=folder)
    assert first.interrupted and first.metrics.ok == 6
    with run_dir() as folder:
        result = run(driver, folder=folder)
    assert ids(driver.runs[1]) == [str(number) for number in range(4, 12)]
    assert [one.after for one in driver.runs[1]] == [None, 0, 1, 2, None, 4, 5, 6]
    assert (result.metrics.planned, result.metrics.ok, result.interrupted) == (12, 12, False)
    segments = dict(zip(result.table.request_id, result.table.segment.tolist(), strict=True))
    assert [segments[str(number)] for number in range(12)] == [0] * 4 + [1] * 8
    assert "resumed: 4 requests had ended before" in result.notes
    assert of_sessions(result.table).completed == 3
    assert result.check.verdict is Verdict.CONSISTENT, "what was sent before the stop is still checked"


@dataclass
class EmptyingControl(Control):
    driver: SessionDriver

    def flush(self) -> FlushAnswer:
        self.driver.cached.clear()
        return super().flush()


@pytest.mark.parametrize("cold", [False, True])
def test_sessions_begun_anew_find_an_emptied_cache_or_are_said_to_find_themselves(
    run_dir: Callable[[], RunDir], cold: bool
) -> None:
    driver = SessionDriver(stop_after=6)
    with run_dir() as folder:
        run(driver, folder=folder)
    target = endpoint(driver, control=EmptyingControl(driver))
    with run_dir() as folder:
        result = ServeRun(target, settings(), folder=folder, cold=cold).run()
    hits = dict(zip(result.table.request_id, result.table.num_cached_tokens.tolist(), strict=True))
    assert hits["4"] == (0 if cold else 144), "the first turn that was sent again"
    assert any("begun anew in a cache that was not emptied" in note for note in result.notes) is not cold
    (why,) = [note for note in result.notes if note.startswith("8 requests sent after the run was resumed")]
    assert ("the cache was emptied before it went on" in why) is cold


def test_so_it_is_after_a_kill_and_failed_sessions_are_not_sent_again(run_dir: Callable[[], RunDir]) -> None:
    driver = SessionDriver(die_after=9, failing=frozenset({"1"}))
    with run_dir() as folder, pytest.raises(Killed):
        run(driver, folder=folder)
    with run_dir() as folder:
        result = run(driver, folder=folder)
    assert ids(driver.runs[1]) == [str(number) for number in range(8, 12)], "session 0 failed, 1 was whole"
    assert (result.metrics.ok, result.metrics.failed, result.metrics.unsent) == (9, 1, 2)


def test_recorded_sessions_go_on_behind_a_turn_that_failed_and_are_resumed_as_wholes(
    run_dir: Callable[[], RunDir], tmp_path: Path
) -> None:
    rows = [
        {"timestamp": 0, "input_length": 40, "output_length": 4, "hash_ids": [0, 1], "session_id": "a"},
        {"timestamp": 9, "input_length": 40, "output_length": 4, "hash_ids": [0, 2], "session_id": "b"},
        {"timestamp": 20, "input_length": 60, "output_length": 4, "hash_ids": [0, 1, 3], "session_id": "a"},
        {"timestamp": 30, "input_length": 60, "output_length": 4, "hash_ids": [0, 2, 5], "session_id": "b"},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ServeConfig(
        dataset=DatasetConfig(dataset_name="sessions", dataset_path=str(path)),
        trace=TraceConfig(block_size=20),
        load=LoadConfig(max_concurrency=1),
    )
    driver = SessionDriver(failing=frozenset({"0"}), die_after=3)
    with run_dir() as folder, pytest.raises(Killed):
        run(driver, config, folder)
    with run_dir() as folder:
        result = run(driver, config, folder)
    assert ids(driver.runs[1]) == ["2", "3"], "session b had not ended; a had, though a turn of it failed"
    assert (result.metrics.ok, result.metrics.failed, result.metrics.unsent) == (3, 1, 0)
    assert not any("not sent, for a turn" in note for note in result.notes)


@pytest.mark.parametrize("kills", [[2], [5, 1], [6, 2, 3], [3, 3, 3, 3], [1, 6, 2]])
def test_however_often_it_was_killed_every_session_is_of_one_stretch(
    run_dir: Callable[[], RunDir], kills: list[int]
) -> None:
    driver = SessionDriver()
    for die_after in kills:
        driver.die_after = die_after
        with run_dir() as folder, pytest.raises(Killed):
            run(driver, folder=folder)
    with run_dir() as folder:
        result = run(driver, folder=folder)
    assert (result.metrics.planned, result.metrics.ok) == (12, 12)
    for session in range(3):
        rows = result.table.session_id.codes == session
        assert len(set(result.table.segment[rows].tolist())) == 1


def test_with_a_rate_sessions_arrive_and_their_later_turns_wait() -> None:
    config = settings(max_concurrency=None, request_rate=2.0, burstiness=math.inf)
    driver = SessionDriver()
    result = run(driver, config)
    assert [one.offset_s for one in driver.runs[0]] == [0.0] * 4 + [0.5] * 4 + [1.0] * 4
    assert result.settings.open_loop
    timed = settings(num_sessions=None, max_concurrency=None, stage=("2:10",), burstiness=math.inf)
    assert outline(timed).num_requests == 20 * 4, "stages say how many sessions there are"
    assert outline(settings(num_sessions=None)).num_requests == 16 * 4
    assert outline(settings(num_sessions=None, max_concurrency=None, request_rate=9.0)).num_requests == 64


def test_repeats_have_sessions_of_their_own() -> None:
    driver = SessionDriver()
    result = run(driver, settings(repeats=2))
    sessions = of_sessions(result.table)
    assert (sessions.planned, sessions.completed) == (6, 6)
    assert [turn.planned for turn in by_turn(result.table)] == [6] * 4


def test_the_folder_has_the_turns_in_every_form(run_dir: Callable[[], RunDir]) -> None:
    with run_dir() as folder:
        result = run(SessionDriver(output_len=3), folder=folder)
        files.finish(folder, endpoint(SessionDriver()), result, detailed=False)
        path = folder.path
    summary = json.loads((path / "summary.json").read_text())
    assert [turn["mean_prompt_tokens"] for turn in summary["turns"]] == [150, 193, 236, 279]
    assert (summary["num_sessions"], summary["completed_sessions"]) == (3, 3)
    rows = list(csv.DictReader((path / "turns.csv").read_text().splitlines()))
    assert [row["turn"] for row in rows] == ["0", "1", "2", "3"]
    assert [float(row["hit_rate"]) for row in rows] == [turn["hit_rate"] for turn in summary["turns"]]
    lines = [json.loads(line) for line in (path / "requests.jsonl").read_text().splitlines()]
    assert [line["expected_cached_tokens"] for line in lines[:3]] == [0, 144, 192]
    shown = (path / "report.txt").read_text()
    assert "Sessions completed:                      3" in shown
    assert "turn       ok    prompt  TTFT mean" in shown


def test_a_run_without_sessions_says_nothing_of_turns() -> None:
    config = settings(num_turns=1)
    result = run(SessionDriver(), config)
    assert "turns" not in result_keys(result)


def test_options_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="--num-prompts counts requests"):
        DatasetConfig(dataset_name="sessions", num_prompts=5)
    with pytest.raises(ConfigError, match="give --think-time"):
        SessionsConfig(think_time_distribution="lognormal")
    with pytest.raises(ConfigError, match="--num-turns is for --dataset-name sessions, not random"):
        ServeConfig(sessions=SessionsConfig(num_turns=3))
    recorded = DatasetConfig(dataset_name="sessions", dataset_path="x.jsonl")
    with pytest.raises(ConfigError, match="--turn-len is for made-up sessions"):
        outline(ServeConfig(dataset=recorded, sessions=SessionsConfig(turn_len=7)))
