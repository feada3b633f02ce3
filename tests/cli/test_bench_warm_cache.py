from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.loadgen.driver import Progress
from prefixlab.bench.report.progress import ProgressBar
from prefixlab.cli.main import main
from tests.bench.fake_server import FakeServer

SEED_KEYS = {
    "backend", "dataset_name", "request_rate", "max_concurrency", "shared_prefix_pct", "prefix_len",
    "suffix_len", "total_tokens", "num_prompts", "output_len", "completed", "benchmark_duration",
    "total_input", "total_output", "total_output_retokenized",
    "request_throughput", "input_throughput", "output_throughput",
    *(f"{s}_{m}_ms" for s in ("mean", "median", "std", "p90", "p99") for m in ("ttft", "tpot", "itl")),
    *(f"{s}_e2e_latency_ms" for s in ("mean", "median", "std", "p99")), "concurrency",
}  # fmt: skip
OUR_KEYS = {"client", "page_size", "expected_cached_tokens", "cached_tokens", "verdict", "repeat"}
SMALL = ["--total-tokens", "100", "--num-prompts", "4", "--output-len", "2", "--pcts", "0,90"]


def warm_cache(server: FakeServer, *words: str) -> int:
    return main(["bench", "warm-cache", "--base-url", server.url, *SMALL, *words])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_a_sweep_prints_blocks_tables_and_the_setting(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warm_cache(fake_server, "--strict") == 0
    captured = capsys.readouterr()
    assert captured.out.count("Serving Benchmark Result") == 2
    assert "Cached tokens: intended, page-aligned expected, measured" in captured.out
    assert "4 prompts of 100 tokens · 2 output tokens · concurrency 4 · page size 16" in captured.out
    assert f"server at {fake_server.url}" in captured.out
    assert "90 % shared, repeat 1" in captured.err
    assert "Serving" not in captured.err


def test_lines_carry_the_seeds_keys_and_ours(fake_server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert warm_cache(fake_server, "--output-file", str(path), "--repeats", "2") == 0
    assert warm_cache(fake_server, "--output-file", str(path)) == 0
    made = rows(path)
    assert len(made) == 6, "appended, one per point and repeat"
    for row in made:
        assert set(row) >= SEED_KEYS | OUR_KEYS
        assert row["request_rate"] is None
    last = made[-1]
    assert (last["shared_prefix_pct"], last["prefix_len"], last["suffix_len"]) == (90, 90, 10)
    assert (last["expected_cached_tokens"], last["cached_tokens"]) == (320, 320)
    assert (last["verdict"], last["cold_start"], last["page_size"]) == ("consistent", "proven", 16)
    assert [row["repeat"] for row in made[:4]].count(1) == 2


def test_unreported_hits_are_null_in_the_file(fake_server: FakeServer, tmp_path: Path) -> None:
    fake_server.behaviour.reports_cached = False
    path = tmp_path / "out.jsonl"
    assert warm_cache(fake_server, "--output-file", str(path)) == 0
    assert {row["cached_tokens"] for row in rows(path)} == {None}


def test_strict_turns_a_mismatch_into_exit_code_3(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.reports_cached = False
    assert warm_cache(fake_server) == 0
    assert warm_cache(fake_server, "--strict") == 3
    assert "--strict: cached tokens not reported at 0 %, 90 %" in capsys.readouterr().err


def test_failed_requests_are_counted_as_each_point_is_done_and_by_strict(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    # The trial, two probes before the flush, one after it, one prompt; the other three fail.
    fake_server.break_after(5)
    assert warm_cache(fake_server, "--pcts", "0", "--strict") == 3
    progress, strict = capsys.readouterr().err.splitlines()[-2:]
    assert "consistent, cold start proven, 3 of 4 FAILED: HTTP 503 from /generate" in progress
    assert "--strict: 3 of 4 requests failed at 0 %: HTTP 503 from /generate" in strict
    assert "queue is full" in progress
    assert "queue is full" in strict
    assert "consistent" not in strict


def test_points_measured_before_a_failure_are_kept_and_shown(
    fake_server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.jsonl"
    # The trial, two probes before the flush, one after it, four prompts of the first point; then the end.
    fake_server.break_after(8)
    assert warm_cache(fake_server, "--output-file", str(path)) == 1
    assert [row["shared_prefix_pct"] for row in rows(path)] == [0]
    captured = capsys.readouterr()
    assert captured.out.count("Serving Benchmark Result") == 1
    assert "ended early: 1 of 2" in captured.err
    assert "request failed, of random token ids below 4,096 (as the server says): HTTP 503" in captured.err


def test_an_interrupted_point_is_shown_but_not_written(
    fake_server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([1])
    told = ProgressBar.update

    def interrupt(bar: ProgressBar, progress: Progress) -> None:
        told(bar, progress)
        if 0 < progress.finished < progress.planned and next(times, None):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "update", interrupt)
    fake_server.behaviour.first_event_s = 0.4
    path = tmp_path / "out.jsonl"
    words = ["--pcts", "0,90", "--max-concurrency", "1", "--output-file", str(path)]
    assert warm_cache(fake_server, *words) == 130
    captured = capsys.readouterr()
    assert captured.out.count("Serving Benchmark Result") == 1
    assert "note: interrupted" in captured.out
    assert "ended early: 0 of 2" in captured.err
    assert not path.exists()


def test_the_engine_in_this_process_is_measured_without_http(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--backend", "in-process", "--model", "sim", "--strict", "--repeats", "1", *SMALL]
    assert main(["bench", "warm-cache", *words]) == 0
    shown = capsys.readouterr().out
    assert "Backend:                                 in-process" in shown
    assert "Arrival stamps:                          target" in shown
    assert "simulated: h200-llama-3.1-8b" in shown and "measured on" not in shown
    assert "note:" not in shown, "nothing to warn of: the engine stamps its own tokens"


def test_a_point_at_which_nothing_succeeded_is_exit_code_1(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.break_after(4)
    assert warm_cache(fake_server, "--pcts", "0") == 1
    captured = capsys.readouterr()
    assert "no request succeeded at 0 %" in captured.err
    assert "HTTP 503" in captured.err
    assert "Failed requests:                         4" in captured.out


def test_the_picture_is_written_and_named(
    fake_server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.png"
    assert warm_cache(fake_server, "--plot", str(path)) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"picture: {path}" in capsys.readouterr().out


def test_salted_prompts_are_said_to_be(fake_server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake_server.behaviour.flush = "lies"
    assert warm_cache(fake_server) == 0
    shown = capsys.readouterr().out
    assert "prompts were salted: the flush said yes" in shown
    assert "→ LYING RESET" in shown


def test_strict_takes_no_cause_for_consistent(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.caching_off = True
    assert warm_cache(fake_server, "--strict") == 3
    assert "cached tokens no hits at 0 %" in capsys.readouterr().err


def test_a_dry_run_asks_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--port", "9", "--page-size", "64", "--dry-run"]
    assert main(["bench", "warm-cache", *words]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[3] for line in shown.splitlines()[2:3]] == ["6,976"]
    assert "896 requests" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pcts", "0,x"], "--pcts must be whole numbers"),
        (["--pcts", "100"], "--pcts takes 0 to 99"),
        (["--pcts", "5,5"], "names a point twice"),
        (["--num-prompts", "0"], "--num-prompts must be at least 1"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--host", "x"], "--base-url already names the server"),
        (["--extra-request-body", "[1]"], "--extra-request-body is not a JSON object"),
        (["--extra-request-body", "{"], "--extra-request-body is not a JSON object"),
        (["--read-timeout-s", "0"], "--read-timeout-s"),
        (["--read-timeout-s", "inf"], "--read-timeout-s"),
        (["--plot", "/nowhere/p.png"], "--plot /nowhere/p.png: there is no folder"),
        (["--plot", "p.txt"], "must end in one of .png"),
        (["--output-file", "/nowhere/o"], "--output-file /nowhere/o"),
        (["--dtype", "float32"], "--dtype is for the embedded engine"),
        (["--force-miss"], "--force-miss is for the embedded engine"),
        (["--vocab-size", "4"], "the vocabulary has 4"),
        (["--page-size", "0"], "--page-size must be at least 1"),
        (["--backend", "openai-chat"], "give --tokenizer"),
        (["--tokenizer", "/nowhere"], "/nowhere"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_name(
    fake_server: FakeServer, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warm_cache(fake_server, *words) in (1, 2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_dry_run_of_the_embedded_engine_knows_its_page_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "warm-cache", "--dry-run", "--page-size", "64"]) == 0
    assert "1,792" in capsys.readouterr().out
    assert main(["bench", "warm-cache", "--dry-run"]) == 0
    assert "1,840" in capsys.readouterr().out


def test_where_the_vocabulary_comes_from_is_said(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warm_cache(fake_server) == 0
    assert "prompts made of random token ids below 4,096 (as the server says)" in capsys.readouterr().out
    fake_server.behaviour.info = {"vocab_size": None}
    assert warm_cache(fake_server) == 0
    assert "prompts made of random token ids below 32,000 (assumed" in capsys.readouterr().out
    assert warm_cache(fake_server, "--vocab-size", "500") == 0
    assert "prompts made of random token ids below 500 (as --vocab-size says)" in capsys.readouterr().out
    assert warm_cache(fake_server, "--tokenizer", "byte") == 0
    assert "special tokens" in capsys.readouterr().out


def test_a_base_url_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "warm-cache", "--base-url", "localhost:30000"]) == 2
    assert "must start with http://" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "warm-cache", "--port", "9", *SMALL]) == 1
    error = capsys.readouterr().err
    assert "could not connect (http://127.0.0.1:9/" in error
    assert "is it running at http://127.0.0.1:9" in error


def test_a_base_url_of_the_openai_api_is_explained(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "warm-cache", "--base-url", fake_server.url + "/v1", *SMALL]) == 1
    assert "leave out /v1 of --base-url" in capsys.readouterr().err


def test_another_model_than_our_server_serves_is_refused_with_both_names(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.info = {"prefixlab_version": "1.0"}
    assert warm_cache(fake_server, "--model", "nope") == 2
    assert "--model nope: the server serves fake" in capsys.readouterr().err
    assert warm_cache(fake_server, "--model", "fake") == 0


def test_sglang_is_reported_under_its_own_name_with_a_note(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warm_cache(fake_server, "--model", "some/tokenizer") == 0
    shown = capsys.readouterr().out
    assert "Model:                                   fake" in shown
    assert "note: --model some/tokenizer is not sent" in shown


def test_chat_with_the_byte_tokenizer_is_exact(fake_server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    words = ["--backend", "openai-chat", "--tokenizer", "byte", "--total-tokens", "400", "--strict"]
    assert warm_cache(fake_server, *words, "--output-file", str(path)) == 0
    assert [row["cached_tokens"] for row in rows(path)] == [0, 4 * 352]


@pytest.mark.parametrize("variable", ["PREFIXLAB_API_KEY", "OPENAI_API_KEY"])
def test_the_key_may_come_from_the_environment(
    fake_server: FakeServer, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "sesame")
    monkeypatch.setenv("PREFIXLAB_HOST", "elsewhere")  # the server's setting, not ours
    assert warm_cache(fake_server) == 0
    assert set(fake_server.keys) == {"Bearer sesame"}
