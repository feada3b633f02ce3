from __future__ import annotations

import gzip
import json
import signal
import sys
from pathlib import Path

import pytest

from prefixlab.bench.loadgen.driver import Progress
from prefixlab.bench.report.progress import ProgressBar
from prefixlab.cli.main import main
from tests.bench.fake_server import FakeServer


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    lines = [
        {"timestamp": 10 * i, "input_length": 40 + i, "output_length": 8, "hash_ids": [0, 1 + i // 2, 10 + i]}
        for i in range(6)
    ]
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return path


def test_a_trace_is_replayed_and_reported(
    fake_server: FakeServer, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    words = ["--base-url", fake_server.url, "--num-prompts", "4", "--output-file", str(output), "--strict"]
    words += ["--speedup", "0.2"]  # 50 ms apart: an answer is there before the next question
    assert main(["bench", "trace", str(trace), *words]) == 0
    shown = capsys.readouterr().out
    assert "Trace:                                   trace.jsonl.gz" in shown
    assert "Block size (tokens):                     16" in shown
    assert "Successful requests:                     4" in shown
    assert "Time to First Token from Schedule" in shown
    assert "Verdict:                                 consistent" in shown
    stamps = "kernel" if sys.platform.startswith("linux") else "process"
    assert f"Arrival stamps:                          {stamps}" in shown
    (row,) = map(json.loads, output.read_text().splitlines())
    assert (row["client"]["stamps"], row["client"]["clock_steps"]) == (stamps, 0)
    # By hand: nothing, then blocks 0 and 1, then block 0, then blocks 0 and 2.
    assert row["expected_cached_tokens"] == row["cached_tokens"] == 0 + 32 + 16 + 32
    assert (row["dataset_name"], row["num_prompts"], row["speedup"]) == ("trace", 4, 0.2)


def test_zero_prompts_means_all(
    fake_server: FakeServer, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base-url", fake_server.url, "--num-prompts", "0", "--speedup", "10"]
    assert main(["bench", "trace", str(trace), *words]) == 0
    assert "Successful requests:                     6" in capsys.readouterr().out


def test_strict_turns_a_mismatch_into_exit_code_3(fake_server: FakeServer, trace: Path) -> None:
    fake_server.behaviour.reports_cached = False
    words = ["--base-url", fake_server.url, "--strict", "--speedup", "10"]
    assert main(["bench", "trace", str(trace), *words]) == 3


def test_a_dry_run_says_what_would_be_sent(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "trace", str(trace), "--port", "9", "--dry-run", "--speedup", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert shown == (
        "trace.jsonl.gz: 6 requests over 0.1 s, 255 prompt tokens and 48 output tokens, longest 53, "
        "blocks of 16\n"
    )


def test_a_dry_run_says_how_the_trace_was_scaled_and_cut(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dry-run", "--num-prompts", "1", "--block-size", "16", "--max-len", "6"]
    assert main(["bench", "trace", str(trace), *words]) == 0, "the embedded engine's scale"
    shown = capsys.readouterr().out
    assert "1 request over 0.0 s" in shown
    assert shown.endswith("blocks of 4, lengths scaled by 0.25, 1 request cut to 6\n")


def test_what_finished_before_an_interrupt_is_shown(
    fake_server: FakeServer,
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([1])  # once is enough: a second Ctrl-C does not wait for anything

    def interrupt(bar: ProgressBar, progress: Progress) -> None:
        if progress.finished and next(times, None):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "update", interrupt)
    output = tmp_path / "out.jsonl"
    # Slow enough that the interrupt comes long before the second request is due.
    words = ["--base-url", fake_server.url, "--speedup", "0.001", "--output-file", str(output)]
    assert main(["bench", "trace", str(trace), *words]) == 130
    shown = capsys.readouterr().out
    assert "Successful requests:                     1" in shown
    assert "Cancelled or unsent requests:            5" in shown
    assert "note: interrupted" in shown
    assert not output.exists()


def test_nothing_succeeding_is_exit_code_1(
    fake_server: FakeServer, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.break_after(3)
    assert main(["bench", "trace", str(trace), "--base-url", fake_server.url]) == 1
    assert "no request of the trace succeeded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speedup", "0"], "--speedup"),
        (["--speedup", "inf"], "--speedup"),
        (["--length-scale", "2"], "--length-scale"),
        (["--length-scale", "0.3"], "--length-scale"),
        (["--block-size", "0"], "--block-size"),
        (["--max-len", "1"], "--max-len"),
        (["--num-prompts", "-1"], "--num-prompts"),
        (["--seed", "-1"], "--seed"),
        (["--block-size", "8"], "trace.jsonl.gz:1: 40 tokens are 5 full blocks of 8, but 3 hash ids"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_name(
    trace: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "trace", str(trace), "--port", "9", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "--port must lie in 1 … 65535, not 99999"),
        (["--port", "0"], "--port must lie in 1 … 65535, not 0"),
        (["--base-url", "localhost:30000"], "--base-url must start with http://"),
        (["--base-url", "http://localhost:abc"], "--base-url 'http://localhost:abc': Port could not be cast"),
        (["--base-url", "http://localhost:99999"], "--base-url 'http://localhost:99999': Port out of range"),
        (["--base-url", "http://[::1"], "--base-url 'http://[::1': Invalid IPv6 URL"),
        (["--base-url", "http://"], "names no server"),
        (["--base-url", "http://localhost:1/v1?x=1"], "must end before any ? or #"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_before_anything_is_sent(
    trace: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "trace", str(trace), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_file_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "trace"]) == 2
    assert "FILE" in capsys.readouterr().err
