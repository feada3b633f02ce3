from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.metrics import latencies
from prefixlab.bench.records.table import RecordTable
from prefixlab.cli.main import main
from tests.bench.fake_server import FakeServer, running

SMALL = ["--isl", "60", "--osl", "4", "--requests", "12", "--num-prefix-prompts", "2", "--no-progress"]


@pytest.fixture(scope="module")
def one_other_server() -> Iterator[FakeServer]:
    with running(FakeServer()) as server:
        yield server


@pytest.fixture
def other_server(one_other_server: FakeServer) -> FakeServer:
    one_other_server.reset()
    return one_other_server


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prefix_ratio(*words: str) -> int:
    return main(["bench", "prefix-ratio", *words])


def summary(folder: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "results_summary.json").read_text())
    return found


def measured_prompts(server: FakeServer) -> list[tuple[int, ...]]:
    """Probes are longer."""
    return [tuple(body["input_ids"]) for body in server.bodies if len(body["input_ids"]) in (60, 59)]


def test_every_ratio_stands_beside_its_hit_rates_in_table_summary_and_picture(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--concurrency", "1", "--prefix-ratios", "0", "0.3", "0.6", "1", "--output-dir", "out"]
    assert prefix_ratio("--url", fake_server.url, *SMALL, *words) == 0
    shown = capsys.readouterr().out
    assert "hit rate" in shown and shown.count("consistent") == 4
    assert fake_server.num_flushes == 4, "every ratio starts cold"
    found = summary()
    assert found["prefix_ratios"] == [0.0, 0.3, 0.6, 1.0]
    # 18, 36 and 60 tokens of prefix are 1, 2 and, as one token is always computed, 3 pages of 16.
    assert found["expected_hit_rates"] == pytest.approx([0, *(10 * n * 16 / 720 for n in (1, 2, 3))])
    assert found["measured_hit_rates"] == found["expected_hit_rates"]
    for name in ("ttft_values", "throughput_values", "ttft_p25_values", "ttft_p50_values", "ttft_p75_values"):
        assert all(value > 0 for value in found[name]), name
    assert all(len(found[f"itl_p{percent}_values"]) == 4 for percent in (25, 50, 75))
    config = found["config"]
    assert {name: config[name] for name in ("isl", "osl", "requests", "concurrency", "initial_seed")} == {
        "isl": 60,
        "osl": 4,
        "requests": 12,
        "concurrency": 1,
        "initial_seed": 0,
    }
    assert {"model", "tokenizer"} <= set(config) and found["failures"] == {}
    assert (Path("out") / "prefix_ratio_performance.png").read_bytes().startswith(b"\x89PNG")
    seeds = [
        json.loads((path / "config.json").read_text())["dataset"]["seed"]
        for path in sorted(Path("out").glob("0*"))
    ]
    assert seeds == [0, 1, 2, 3]


def test_several_servers_share_requests_and_slots_and_percentiles_are_of_all(
    fake_server: FakeServer, other_server: FakeServer
) -> None:
    other_server.behaviour.first_event_s = 0.05
    words = ["--concurrency", "3", "--prefix-ratios", "0.6", "--output-dir", "out"]
    urls = ["--url", fake_server.url, other_server.url]
    assert prefix_ratio(*urls, *SMALL, "--requests", "13", *words) == 0
    ours, theirs = measured_prompts(fake_server), measured_prompts(other_server)
    assert (len(ours), len(theirs)) == (7, 6), "what is left over goes to the first"
    assert not {prompt[:36] for prompt in ours} & {prompt[:36] for prompt in theirs}
    assert (fake_server.peak_in_flight, other_server.peak_in_flight) == (1, 1)
    assert (fake_server.num_flushes, other_server.num_flushes) == (1, 1)
    found = summary()
    assert found["measured_hit_rates"] == found["expected_hit_rates"] and found["cache_verdicts"] == [
        "consistent"
    ]
    assert found["config"]["urls"] == urls[1:]
    folder = Path("out") / "000-prefix-ratio=0.6"
    table = RecordTable.read(sorted(folder.rglob("records-*.jsonl")))
    pooled = np.percentile(latencies.ttft_s(table), [25, 50, 75]) * 1e3
    assert len(table) == 13 and pooled[0] < 50 < pooled[2], (
        "one is fast, one slow: the average would be neither"
    )
    assert [found[f"ttft_p{percent}_values"][0] for percent in (25, 50, 75)] == pytest.approx(pooled.tolist())


def test_a_ratio_that_fails_is_null_and_named(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.fail_prompts_of(length=59, times=12)  # int(60 * 0.9) and int(60 * 0.1) tokens
    words = ["--prefix-ratios", "0.5", "0.9", "1", "--output-dir", "out"]
    assert prefix_ratio("--url", fake_server.url, *SMALL, *words) == 1
    assert "no request succeeded at 001-prefix-ratio=0.9" in capsys.readouterr().err
    found = summary()
    assert found["prefix_ratios"] == [0.5, 0.9, 1.0]
    for name in ("ttft_values", "throughput_values", "measured_hit_rates"):
        assert [value is None for value in found[name]] == [False, True, False], name
    assert found["itl_p50_values"][1] is None  # the others where their tokens came in several reads
    assert list(found["failures"]) == ["0.9"] and "503" in found["failures"]["0.9"]


def test_what_was_cut_off_is_gone_on_with(fake_server: FakeServer, other_server: FakeServer) -> None:
    words = ["--concurrency", "2", "--prefix-ratios", "0.25", "0.75", "--output-dir", "out"]
    assert prefix_ratio("--url", fake_server.url, other_server.url, *SMALL, *words) == 0
    whole = summary()
    for path in ("summary.json", "001-prefix-ratio=0.75/summary.json"):
        (Path("out") / path).unlink()
    (records,) = Path("out/001-prefix-ratio=0.75/segments/0000/server-001").glob("records-*.jsonl")
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:2]))
    fake_server.reset()
    other_server.reset()
    assert prefix_ratio("--resume", "out", "--no-progress") == 0
    assert (len(measured_prompts(fake_server)), len(measured_prompts(other_server))) == (0, 4)
    assert summary()["prefix_ratios"] == whole["prefix_ratios"]


def test_a_dry_run_tells_the_cost_and_where_a_token_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    assert prefix_ratio("--dry-run") == 0
    shown = capsys.readouterr().out
    assert "5 points: 1,000 requests, 13,999,800 prompt tokens, 200,000 output tokens" in shown
    assert "ratio 0.9 of --isl 14,000 is 12,600 and 1,399 tokens, 1 less together" in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--prefix-ratios", "2"], "--prefix-ratios takes numbers in [0, 1]"),
        (["--url", "http://a:1", "--base-url", "http://a:1"], "--url names the servers already"),
        (["--url", "http://a:1", "http://a:1/"], "--url names a server twice"),
        (["--gsp-num-groups", "4"], "--gsp-num-groups"),
        (["--isl-stddev", "2"], "--isl-stddev must lie in [0, 1]"),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prefix_ratio(*words, "--dry-run") == 2
    assert complaint in capsys.readouterr().err


def test_servers_that_differ_are_refused(
    fake_server: FakeServer, other_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    other_server.behaviour.page_size = 32
    assert prefix_ratio("--url", fake_server.url, other_server.url, *SMALL) == 2
    assert "has page size 16" in capsys.readouterr().err
