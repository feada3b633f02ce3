"""Whatever a server does, every request ends, as exactly one record, under the right name."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path

import pytest

from prefixlab.bench.loadgen.driver import Drive
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.metrics.summary import summarise
from prefixlab.bench.records.record import Failure, Outcome, Record, check_complete
from prefixlab.bench.targets.dialects import CompletionsDialect
from prefixlab.cli.main import main
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.target import TargetRequest
from tests.bench.misbehaving import BEHAVIOURS, MisbehavingServer, mixed

NUM_TOKENS = 8
STALLING = [name for name, behaviour in BEHAVIOURS.items() if behaviour.stalls]
PROMPT = [name for name, behaviour in BEHAVIOURS.items() if not behaviour.stalls]
REQUESTS_EACH = 3
LONG_S = 60.0
"""Longer than any pause of a busy machine."""


def driver(url: str, *, read_timeout_s: float = LONG_S) -> SocketDriver:
    return SocketDriver(url, CompletionsDialect(), read_timeout_s=read_timeout_s)


def plan(names: Sequence[str], each: int = 1) -> list[Planned]:
    """`each` requests per name, which the server finds in `user`; the first of all names first."""
    ids = as_token_ids([1, 2, 3])
    return [
        Planned(
            TargetRequest(f"{name}-{number}", NUM_TOKENS, prompt_token_ids=ids, extra_body={"user": name}),
            num_prompt_tokens=3,
        )
        for number in range(each)
        for name in names
    ]


def by_behaviour(drive: Drive) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in drive.records:
        record.check()
        found.setdefault(record.request_id.rpartition("-")[0], []).append(record)
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as running:
        yield running


@pytest.fixture(scope="module")
def answered(server: MisbehavingServer) -> dict[str, list[Record]]:
    """Every behaviour that needs no time-out, several times, side by side on the same connections."""
    load = Load(open_loop=False, max_concurrency=10, num_workers=2)
    return by_behaviour(driver(server.url).run(plan(PROMPT, REQUESTS_EACH), load))


@pytest.fixture(scope="module")
def stalled(server: MisbehavingServer) -> dict[str, list[Record]]:
    load = Load(open_loop=False, max_concurrency=100, num_workers=1)
    return by_behaviour(driver(server.url, read_timeout_s=1.0).run(plan(STALLING, REQUESTS_EACH), load))


def test_no_request_is_lost(answered: dict[str, list[Record]], stalled: dict[str, list[Record]]) -> None:
    everything = answered | stalled
    assert set(everything) == set(BEHAVIOURS)
    for records in everything.values():
        check_complete(records, REQUESTS_EACH)


@pytest.mark.parametrize("name", PROMPT)
def test_what_a_server_does_is_counted_under_its_name(answered: dict[str, list[Record]], name: str) -> None:
    expected = BEHAVIOURS[name]
    for record in answered[name]:
        assert record.outcome is expected.outcome, record.error
        assert record.failure is expected.failure, record.error
        assert record.http_status == expected.http_status


@pytest.mark.parametrize("name", STALLING)
def test_a_server_that_falls_silent_is_given_up_after_the_read_time_out(
    stalled: dict[str, list[Record]], name: str
) -> None:
    for record in stalled[name]:
        assert (record.outcome, record.failure) == (Outcome.FAILED, Failure.STALLED)
        assert record.sent_s is not None and record.last_s is not None
        assert record.last_s - record.sent_s >= 1.0


@pytest.mark.parametrize("name", [name for name in PROMPT if BEHAVIOURS[name].failure is None])
def test_tokens_are_counted_however_they_are_wrapped(answered: dict[str, list[Record]], name: str) -> None:
    for record in answered[name]:
        assert record.num_output_tokens == NUM_TOKENS
        assert record.num_prompt_tokens == 3
        assert record.finish_reason == "length"


def test_tokens_bundled_in_an_event_count_as_so_many(answered: dict[str, list[Record]]) -> None:
    for record in answered["bundles_tokens_in_events"]:
        # Events that reached a busy client together are one arrival.
        assert set(accumulate(record.arrival_counts)) <= {3, 6, 8}
        assert not record.counts_estimated


def test_events_that_came_in_one_read_are_one_arrival(answered: dict[str, list[Record]]) -> None:
    for record in answered["bundles_events_in_chunks"]:
        assert record.arrival_counts == (NUM_TOKENS,)


def test_what_came_before_the_fault_is_kept(
    answered: dict[str, list[Record]], stalled: dict[str, list[Record]]
) -> None:
    for record in answered["truncates_between_chunks"] + answered["reports_an_error"]:
        assert record.num_output_tokens == 1
    for record in stalled["stalls_half_way"]:
        assert record.num_output_tokens == NUM_TOKENS // 2


def test_an_error_quotes_the_server(answered: dict[str, list[Record]]) -> None:
    for name, words in {
        "reports_an_error": "out of memory",
        "is_overloaded": "503 Service Unavailable",
        "refuses": "400 Bad Request",
        "is_not_http": "SSH-2.0",
        "is_not_events": "It works!",
        "is_not_json": "not json",
    }.items():
        for record in answered[name]:
            assert record.error is not None and words in record.error


def test_nobody_there_is_a_failure_of_every_request_and_not_of_the_run() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as reserved:
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
    drive = driver(url).run(plan(["behaves"], 5), Load(open_loop=False, max_concurrency=2, num_workers=1))
    check_complete(drive.records, 5)
    assert {record.failure for record in drive.records} == {Failure.CONNECT}


def test_a_server_that_recovers_is_asked_again_if_retries_are_allowed() -> None:
    refusals = iter(["is_overloaded", "is_overloaded"])
    with MisbehavingServer(lambda body: next(refusals, "behaves")) as server:
        load = Load(open_loop=False, max_concurrency=1, num_workers=1, retries=3)
        drive = driver(server.url).run(plan(["any"], 2), load)
        served = [name for name, _ in server.served]
    assert served == ["is_overloaded", "is_overloaded", "behaves", "behaves"]
    assert [record.outcome for record in drive.records] == [Outcome.OK, Outcome.OK]
    assert [record.num_retries for record in drive.records] == [2, 0]
    assert drive.health.num_retries == 2


def test_retries_end_and_the_last_failure_is_what_is_recorded() -> None:
    with MisbehavingServer(lambda body: "is_overloaded") as server:
        load = Load(open_loop=False, max_concurrency=1, num_workers=1, retries=2)
        [record] = driver(server.url).run(plan(["any"]), load).records
        assert len(server.served) == 3
    assert (record.failure, record.http_status, record.num_retries) == (Failure.HTTP_STATUS, 503, 2)


@pytest.mark.parametrize("open_loop", [True, False])
def test_everything_at_random_adds_up(open_loop: bool) -> None:
    names = [name for name in PROMPT if name != "behaves_then_leaves"] + ["behaves"] * 10
    with MisbehavingServer(mixed(11, names)) as server:
        requests = plan([f"request {number}" for number in range(200)])
        load = Load(open_loop=open_loop, max_concurrency=None if open_loop else 20, num_workers=2)
        drive = driver(server.url).run(requests, load)
        behaviour = {user: name for name, user in server.served}
    check_complete(drive.records, 200)
    for record in drive.records:
        name = behaviour[record.request_id.rpartition("-")[0]]
        assert record.failure is BEHAVIOURS[name].failure, (name, record.error)
    metrics = summarise(drive.table, 200, open_loop=open_loop)
    assert metrics.ok + metrics.failed + metrics.cancelled + metrics.unsent == metrics.planned == 200


def test_a_whole_bench_serve_over_such_a_server_ends_and_its_result_adds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with MisbehavingServer(mixed(5)) as server:
        words = ["bench", "serve", "--backend", "openai", "--base-url", server.url, "--model", "misbehaving"]
        words += ["--dataset-name", "random", "--random-input-len", "16", "--random-output-len", "8"]
        words += ["--num-prompts", "80", "--max-concurrency", "40", "--ignore-eos", "--read-timeout-s", "2"]
        words += ["--save-result", "--result-filename", "result.json"]
        assert main(words) == 0
    shown = capsys.readouterr().out
    result = json.loads(Path("result.json").read_text())
    parts = [result[name] for name in ("completed", "failed", "cancelled", "unsent")]
    assert sum(parts) == result["planned"] == 80
    assert sum(result["failures"].values()) == result["failed"] > 10
    assert {"stalled", "truncated", "reset", "dropped", "garbage"} & set(result["failures"])
    assert "Failed requests:" in shown
