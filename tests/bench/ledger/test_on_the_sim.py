"""The simulated server, whose cache is the real one: what befalls it is named, and what is well is well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sharing import GspConfig
from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.ledger.causes import Cause
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.ledger.ledger import Ledger
from prefixlab.bench.runs.serve import ServeRun
from prefixlab.bench.targets.endpoint import open_endpoint
from prefixlab.cli.main import main
from tests.server.test_launch import process
from tests.simulator.faulty import serving_sim


def measured(url: str, *, cold: bool = False, concurrency: int = 1) -> Ledger:
    config = ServeConfig(
        target=TargetConfig(base_url=url),
        dataset=DatasetConfig(dataset_name="generated-shared-prefix", seed=1),
        gsp=GspConfig(
            gsp_num_groups=8,
            gsp_prompts_per_group=6,
            gsp_system_prompt_len=96,
            gsp_question_len=32,
            gsp_output_len=2,
        ),
        load=LoadConfig(max_concurrency=concurrency),
    )
    with open_endpoint(config.target, url, lambda facts: None) as endpoint:
        ledger = ServeRun(endpoint, config, cold=cold).run().ledger
    assert ledger is not None
    return ledger


@pytest.mark.parametrize(
    ("faults", "settings", "cause"),
    [
        ((), {}, None),
        (("null-cached",), {}, Cause.NOT_REPORTED),
        (("lie-cached=+16",), {}, Cause.MISREPORTED),
        (("lie-cached=0.5",), {}, Cause.MISREPORTED),
        (("miscount=3",), {}, Cause.DRIFT),
        (("foreign=200",), {"sim_speedup": 5.0}, Cause.FOREIGN),
        ((), {"num_pages": 40, "max_model_len": 256, "eviction_policy": "lfu"}, Cause.EVICTED),
    ],
)
def test_what_is_wrong_with_a_server_is_named(
    faults: tuple[str, ...], settings: dict[str, Any], cause: Cause | None
) -> None:
    with serving_sim(*faults, **settings) as url:
        ledger = measured(url)
    assert (None if ledger.finding is None else ledger.finding.cause) is cause, ledger.notes
    assert ledger.is_consistent is (cause is None)
    assert ledger.seen.counts is not None and ledger.seen.counts.cached_tokens is not None


def test_a_flush_that_keeps_everything_is_a_lying_reset() -> None:
    with serving_sim("keep-on-flush") as url:
        ledger = measured(url, cold=True)
    assert ledger.finding is not None and ledger.finding.cause is Cause.LYING_RESET
    assert "the flush said yes" in ledger.notes[0]


def test_what_was_sent_before_is_warm_contamination() -> None:
    with serving_sim() as url:
        assert measured(url).is_consistent
        ledger = measured(url)
    assert ledger.finding is not None and ledger.finding.cause is Cause.WARM


def test_what_an_lru_cache_of_known_size_forgets_was_expected() -> None:
    with serving_sim(num_pages=40, max_model_len=256) as url:
        ledger = measured(url)
    assert ledger.check.verdict is Verdict.CONSISTENT and ledger.is_consistent
    assert ledger.seen.counts is not None and ledger.seen.counts.num_evicted


@pytest.mark.service
def test_a_real_server_with_few_pages_evicts_and_says_so_on_every_side(tmp_path: Path) -> None:
    events = '{"publisher": "zmq", "endpoint": "tcp://127.0.0.1:*", "bind": true}'
    few = ["--model", "sim", "--num-pages", "40", "--max-model-len", "256", "--kv-events-config", events]
    words = ["--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "8", "--seed", "1"]
    words += ["--gsp-prompts-per-group", "6", "--gsp-system-prompt-len", "96", "--gsp-question-len", "32"]
    words += ["--gsp-output-len", "2", "--max-concurrency", "1", "--flush-cache", "--no-progress"]
    for policy, cause in (("lfu", "evicted"), ("lru", None)):
        with process(*few, "--eviction-policy", policy) as (_, url):
            folder = tmp_path / policy
            assert main(["bench", "serve", "--base-url", url, *words, "--run-dir", str(folder)]) == 0
        summary = json.loads((folder / "summary.json").read_text())
        ledger = summary["ledger"]
        assert (ledger["cause"], ledger["consistent"]) == (cause, cause is None), ledger
        assert ledger["counts"]["cached_tokens"] == summary["cached_tokens"]
        assert ledger["counts"]["num_evicted"] == ledger["events"]["num_evicted"] > 0
        assert ledger["events"]["num_stored_again"] > 0 and ledger["events"]["num_lost"] == 0
        assert ledger["line"] in (folder / "report.txt").read_text()
