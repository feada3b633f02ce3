"""The ledger where runs keep it: by stretch in their folders, summed over repeats and resumes, in results."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.ledger.account import Account
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.ledger.counters import ServerCounts
from prefixlab.bench.ledger.ledger import Ledger, reconcile
from prefixlab.bench.ledger.seen import Seen
from prefixlab.bench.metrics.point import evaluate
from prefixlab.bench.records.run_dir import RunDir
from prefixlab.bench.report.points.block import point_block
from prefixlab.bench.report.points.keys import result_keys
from prefixlab.bench.report.points.table import point_table
from prefixlab.bench.report.prefix_ratio import QUARTILES, RatioPoint, ratio_table, summary_keys
from prefixlab.bench.runs.serve import ServeRun
from prefixlab.bench.targets.endpoint import Endpoint, open_endpoint
from prefixlab.core.errors import ConfigError
from tests.bench.fake_server import FakeServer
from tests.bench.points import a_point, settings_of


@contextmanager
def endpoint_of(server: FakeServer) -> Iterator[Endpoint]:
    with open_endpoint(TargetConfig(base_url=server.url), server.url, lambda facts: None) as endpoint:
        yield endpoint


def config_of(server: FakeServer, **load: int) -> ServeConfig:
    return ServeConfig(
        target=TargetConfig(base_url=server.url),
        dataset=DatasetConfig(num_prompts=10, random_input_len=40, random_output_len=3, random_prefix_len=32),
        load=LoadConfig(**{"max_concurrency": 1, **load}),
    )


def test_what_was_seen_is_of_measured_requests_alone_and_adds_up_over_repeats(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    fake_server.behaviour.counts = "all"
    config = config_of(fake_server, repeats=2, num_warmups=3)
    with endpoint_of(fake_server) as endpoint, RunDir.create(tmp_path / "run", {}) as folder:
        result = ServeRun(endpoint, config, folder=folder, cold=True).run()
        stretches = [segment.about["seen"] for segment in folder.segments()]
    assert [seen["counts"]["num_requests"] for seen in stretches] == [10, 10]
    assert [seen["sent_tokens"] for seen in stretches] == [720, 720]
    ledger = result.ledger
    assert ledger is not None and ledger.is_consistent and ledger.seen.counts is not None
    assert (ledger.seen.counts.prompt_tokens, ledger.seen.counts.cached_tokens) == (1440, 2 * 9 * 32)
    assert ledger.seen.counts.cached_tokens == result.check.cached_tokens


def ledger_after(server: FakeServer, folder: Path, config: ServeConfig) -> Ledger:
    with endpoint_of(server) as endpoint, RunDir.open(folder) as kept:
        ledger = ServeRun(endpoint, config, folder=kept).run().ledger
    assert ledger is not None
    return ledger


def test_a_resumed_run_knows_what_was_seen_before(fake_server: FakeServer, tmp_path: Path) -> None:
    fake_server.behaviour.counts = "all"
    config = config_of(fake_server, repeats=2)
    path = tmp_path / "run"
    with endpoint_of(fake_server) as endpoint, RunDir.create(path, {}) as folder:
        first = ServeRun(endpoint, replace(config, load=replace(config.load, repeats=1)), folder=folder).run()
    assert first.ledger is not None and first.ledger.seen.counts is not None
    assert first.ledger.seen.counts.num_requests == 10
    ledger = ledger_after(fake_server, path, config)
    assert ledger.is_consistent and ledger.seen.counts is not None
    assert ledger.seen.counts.num_requests == 20


def test_of_a_stretch_that_was_killed_the_servers_side_is_not_known(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    fake_server.behaviour.counts = "all"
    config = config_of(fake_server, repeats=2)
    path = tmp_path / "run"
    with endpoint_of(fake_server) as endpoint, RunDir.create(path, {}) as folder:
        ServeRun(endpoint, replace(config, load=replace(config.load, repeats=1)), folder=folder).run()
        (segment,) = folder.segments()
        about = {name: value for name, value in segment.about.items() if name not in ("seen", "health")}
        folder.write_json("segments/0000.json", about)
    ledger = ledger_after(fake_server, path, config)
    assert ledger.seen.counts is None and ledger.is_consistent, "the answers are there all the same"


def test_all_sides_stand_in_the_block_and_in_the_result(fake_server: FakeServer) -> None:
    fake_server.behaviour.counts = "all"
    with endpoint_of(fake_server) as endpoint:
        result = ServeRun(endpoint, config_of(fake_server)).run()
    line = "expected 40.0 % · answers 40.0 % · server 40.0 % → CONSISTENT"
    assert line in point_block(result).splitlines()
    keys = json.loads(json.dumps(result_keys(result)))
    assert keys["verdict"] == keys["ledger"]["verdict"] == "consistent"
    assert keys["ledger"]["line"] == line
    assert keys["ledger"]["server_hit_rate"] == pytest.approx(0.4)


def test_a_server_that_reports_nothing_but_counts_has_its_figures_in_the_block(
    fake_server: FakeServer,
) -> None:
    fake_server.behaviour.counts = "all"
    fake_server.behaviour.reports_cached = False
    with endpoint_of(fake_server) as endpoint:
        block = point_block(ServeRun(endpoint, config_of(fake_server)).run())
    assert "expected 40.0 % · answers n/a · server 40.0 % → NOT REPORTED" in block.splitlines()


def test_an_address_of_kv_events_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="--kv-events takes tcp"):
        TargetConfig(base_url="http://x", kv_events=("127.0.0.1:5557",))


def test_events_that_do_not_come_are_a_note_and_nothing_else(fake_server: FakeServer) -> None:
    config = config_of(fake_server)
    config = replace(config, target=replace(config.target, kv_events=("tcp://127.0.0.1:1",)))
    with endpoint_of(fake_server) as endpoint:
        result = ServeRun(endpoint, config).run()
    assert result.ledger is not None and result.ledger.is_consistent
    assert "no KV events from tcp://127.0.0.1:1: nobody answers there" in result.notes


def test_a_result_a_table_and_a_list_name_the_ledgers_verdict_where_answers_alone_see_nothing() -> None:
    table = a_point().table
    told = replace(
        table,
        num_expected_cached_tokens=np.zeros(len(table), dtype=np.int64),
        num_cached_tokens=np.zeros(len(table), dtype=np.int64),
    )
    point = evaluate(settings_of(percentiles=(*QUARTILES, 99.0)), [told], a_point().health)
    sent = int(told.prompt_tokens.sum())
    seen = Seen(counts=ServerCounts(prompt_tokens=2 * sent, cached_tokens=0), sent_tokens=sent)
    ledger = reconcile(Account(table=told, check=point.check, seen=seen))
    foreign = replace(point, ledger=ledger)

    assert point.check.verdict is Verdict.CONSISTENT, "answers alone see nothing"
    keys = result_keys(foreign)
    assert keys["verdict"] == keys["ledger"]["verdict"] == "foreign traffic"
    assert "more than this client sent" in keys["verdict_detail"]
    console = Console(file=io.StringIO(), width=140)
    console.print(point_table(foreign))
    assert isinstance(console.file, io.StringIO)
    assert "verdict: foreign traffic" in console.file.getvalue()
    points = [RatioPoint(ServeConfig(), foreign)]
    assert summary_keys(points)["cache_verdicts"] == ["foreign traffic"]
    console.print(ratio_table(points))
    assert "foreign" in console.file.getvalue().rpartition("Prefix ratios")[2]
