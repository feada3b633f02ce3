from __future__ import annotations

import csv
import gzip
import json
import signal
import sys
from pathlib import Path

import pytest

from prefixlab.bench.loadgen.driver import Progress
from prefixlab.bench.report.progress import ProgressBar
from prefixlab.cli import bench_trace
from prefixlab.cli.main import main, make_parser
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


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of runs are made where one stands."""
    monkeypatch.chdir(tmp_path)


def test_a_trace_is_replayed_and_reported(
    fake_server: FakeServer, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    words = ["--base-url", fake_server.url, "--num-prompts", "4", "--output-file", str(output), "--strict"]
    words += ["--speedup", "0.2", "--run-dir", "kept"]  # 50 ms apart: an answer is there before the next
    assert main(["bench", "trace", str(trace), *words]) == 0
    shown = capsys.readouterr().out
    assert "Successful requests:                     4" in shown
    assert "Pacing:                                  open loop, times of the trace, speedup 0.2" in shown
    assert "Time to First Token from Schedule" in shown
    assert "Cache verdict:                           consistent" in shown
    assert "Prompts of exact sharing:                4 of 4" in shown
    assert "Recorded duration (s):                   0.03" in shown
    assert "Scheduled duration (s):                  0.15" in shown
    assert "note: cold start proven" in shown
    assert "note: the first 4 requests of trace.jsonl.gz" in shown
    assert "note: fidelity: prompts 4 of 4 exact, 166 tokens; outputs 4 of 4 exact" in shown
    stamps = "kernel" if sys.platform.startswith("linux") else "process"
    assert f"Arrival stamps:                          {stamps}" in shown
    (row,) = map(json.loads, output.read_text().splitlines())
    assert (row["client"]["stamps"], row["client"]["clock_steps"]) == (stamps, 0)
    # By hand: nothing, then blocks 0 and 1, then block 0, then blocks 0 and 2.
    assert row["expected_cached_tokens"] == row["cached_tokens"] == 0 + 32 + 16 + 32
    assert (row["dataset_name"], row["num_prompts"], row["speedup"]) == ("trace", 4, 0.2)
    assert (row["trace"], row["block_size"], row["length_scale"], row["num_cut"]) == (
        *("trace.jsonl.gz", 16),
        *(1.0, 0),
    )
    assert (row["page_size"], row["cold_start"], row["salt"]) == (16, "proven", None)
    assert row["fidelity"]["sharing"]["sent"] == row["fidelity"]["sharing"]["fitted"] == 80 / 166
    assert Path("kept", "report.txt").read_text() == shown
    assert json.loads(Path("kept", "summary.json").read_text()) == {"finished": True, "points": 1}


def test_several_speeds_are_points_side_by_side_each_from_a_cold_cache(
    fake_server: FakeServer, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base-url", fake_server.url, "--speedup", "0.2,0.5", "1", "--run-dir", "kept"]
    assert main(["bench", "trace", str(trace), *words]) == 0
    shown = capsys.readouterr().out
    assert "speedup" in shown and shown.count("fidelity: ") == 3
    assert "speedup 0.2: fidelity: prompts 6 of 6 exact" in shown
    assert "note: cold start proven" in shown
    rows = [json.loads(line) for line in Path("kept", "sweep.jsonl").read_text().splitlines()]
    assert [row["speedup"] for row in rows] == [0.2, 0.5, 1.0]
    assert {row["expected_cached_tokens"] for row in rows} == {32 + 16 + 32 + 16 + 32}
    with Path("kept", "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["speedup"] for row in table] == ["0.2", "0.5", "1.0"]
    assert table[0]["fidelity"].startswith("prompts 6 of 6 exact")
    # what a point was asked is in its folder, and bench serve can read it
    point = json.loads(Path("kept", "001-speedup=0.5", "config.json").read_text())
    assert (point["verb"], point["trace"]["speedup"]) == ("bench serve", 0.5)


def test_a_time_scale_is_the_other_way_round(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--port", "9", "--dry-run", "--time-scale", "0.5", "4"]
    assert main(["bench", "trace", str(trace), *words]) == 0
    shown = capsys.readouterr().out
    assert "000-time-scale=0.5: 6 requests over 0.0 s" in shown
    assert "001-time-scale=4.0: 6 requests over 0.2 s" in shown
    assert "note: replayed 2 times as fast" in shown and "note: replayed 0.25 times as fast" in shown


def test_the_order_alone_is_replayed_without_the_schedule(
    fake_server: FakeServer, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base-url", fake_server.url, "--no-fixed-schedule", "--max-concurrency", "1", "--strict"]
    assert main(["bench", "trace", str(trace), *words]) == 0
    shown = capsys.readouterr().out
    assert "Pacing:                                  closed loop" in shown
    assert "the trace's order only, not its times" in shown
    assert "Recorded duration" not in shown


def test_a_rate_takes_the_place_of_the_schedule_and_not_both(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "trace", str(trace), "--port", "9", "--dry-run", "--request-rate", "100"]
    assert main(words) == 0
    assert "6 requests over" in (shown := capsys.readouterr().out) and "Poisson, 100 req/s" in shown
    assert main([*words, "--fixed-schedule"]) == 2
    assert "--request-rate and --fixed-schedule both say when" in capsys.readouterr().err


def test_a_replay_may_have_a_cap(fake_server: FakeServer, trace: Path) -> None:
    words = ["--base-url", fake_server.url, "--max-concurrency", "1", "--run-dir", "kept"]
    fake_server.behaviour.first_event_s = 0.05
    assert main(["bench", "trace", str(trace), *words]) == 0
    (row,) = map(json.loads, Path("kept", "sweep.jsonl").read_text().splitlines())
    assert (row["loop"], row["max_concurrency"], fake_server.peak_in_flight) == ("open", 1, 1)


def test_windows_filters_and_bounds_choose_requests_and_say_so(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--port", "9", "--dry-run", "--slice-start", "0.01", "--slice-duration", "0.03"]
    words += ["--min-isl", "42", "--max-osl", "3", "--num-prompts", "1"]
    assert main(["bench", "trace", str(trace), *words]) == 0
    shown = capsys.readouterr().out
    assert "1 request over 0.0 s" in shown or "1 request, " in shown
    assert "42 prompt tokens, 3 output tokens" in shown
    assert "note: of 6 requests the 3 from 0.01 s to 0.04 s" in shown
    assert "note: 1 requests with prompts outside 42" in shown
    assert "note: the first 1 of 2 requests" in shown


def test_an_odd_file_is_mended_as_it_is_read_without_making_points_of_the_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"input_length": 40, "output_length": 8, "hash_ids": [0, 1, 2], "mine": 1, "of others": 2}
    odd = tmp_path / "odd.jsonl"
    odd.write_text("\n".join(json.dumps({"timestamp": time, **line}) for time in (10, 0)))
    words = [str(odd), "--port", "9", "--dry-run", "--block-size", "16"]
    assert main(["bench", "trace", *words]) == 2
    assert "--ignore-fields mine passes it over" in capsys.readouterr().err
    assert main(["bench", "trace", *words, "--ignore-fields", "mine,of others"]) == 2
    assert "are put in order by --sort" in capsys.readouterr().err
    assert main(["bench", "trace", *words, "--ignore-fields", "mine,of others", "--sort"]) == 0
    assert "1 point: 2 requests" in capsys.readouterr().out


def test_all_requests_are_replayed_but_on_the_embedded_engine_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"input_length": 40, "output_length": 8, "hash_ids": [0, 1, 2]}
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps({"timestamp": time, **line}) for time in range(60)))
    words = ["bench", "trace", str(path), "--dry-run", "--block-size", "16"]
    assert main([*words, "--port", "9"]) == 0
    shown = capsys.readouterr()
    assert "1 point: 60 requests" in shown.out and "the first" not in shown.out and shown.err == ""
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "1 point: 50 requests" in shown.out
    assert "note: the first 50 requests of many.jsonl" in shown.out
    assert "at most 50 requests are sent (--num-prompts 0 sends all), lengths are scaled" in shown.err
    for number, requests in (("0", 60), ("55", 55)):
        assert main([*words, "--num-prompts", number]) == 0
        shown = capsys.readouterr()
        assert f"1 point: {requests} requests" in shown.out and "--num-prompts" not in shown.err


@pytest.mark.parametrize("words", [[], ["--preset", "qwen", "--trace-format", "mooncake", "--port", "9"]])
def test_no_number_is_named_that_nobody_gave(trace: Path, words: list[str]) -> None:
    given = vars(make_parser(bench_trace, ("bench", "trace")).parse_args([str(trace), *words]))
    assert {point.config.dataset.num_prompts for point in bench_trace.planned_points(given)} == {None}


def test_zero_prompts_means_all(
    fake_server: FakeServer, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base-url", fake_server.url, "--num-prompts", "0", "--speedup", "10"]
    assert main(["bench", "trace", str(trace), *words]) == 0
    assert "Successful requests:                     6" in capsys.readouterr().out


def test_a_trace_of_fewer_requests_than_asked_for_is_told(
    fake_server: FakeServer, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base-url", fake_server.url, "--num-prompts", "7", "--speedup", "10"]
    assert main(["bench", "trace", str(trace), *words]) == 0
    assert "note: the trace has 6 requests for --num-prompts 7" in capsys.readouterr().out


def test_strict_turns_a_mismatch_into_exit_code_3(
    fake_server: FakeServer, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.reports_cached = False
    words = ["--base-url", fake_server.url, "--strict", "--speedup", "10"]
    assert main(["bench", "trace", str(trace), *words]) == 3
    assert "--strict: 000: cached tokens not reported, 0 of 6 requests failed" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_sent(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "trace", str(trace), "--port", "9", "--dry-run", "--speedup", "0.5"]) == 0
    assert capsys.readouterr().out == (
        "000: 6 requests over 0.1 s, open loop, times of the trace, speedup 0.5; 255 prompt tokens, "
        "48 output tokens\n"
        "1 point: 6 requests, 255 prompt tokens, 48 output tokens, at least 0 s of arrivals; besides, up to "
        "3 short probes at each point\n"
        "note: replayed 0.5 times as fast as recorded\n"
    )


def test_the_embedded_engine_gets_shorter_requests_and_that_is_said(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dry-run", "--num-prompts", "1", "--block-size", "16", "--max-len", "6"]
    assert main(["bench", "trace", str(trace), *words]) == 0
    shown = capsys.readouterr()
    assert "lengths are scaled by 0.25 (--length-scale 1 leaves them)" in shown.err
    assert "note: lengths and blocks scaled by 0.25: blocks of 4 tokens" in shown.out
    assert "note: 1 of 1 requests cut to 6 tokens" in shown.out
    assert main(["bench", "trace", str(trace), *words, "--length-scale", "0.5"]) == 0
    shown = capsys.readouterr()
    assert not shown.err or "scaled" not in shown.err
    assert "note: lengths and blocks scaled by 0.5" in shown.out


def test_a_preset_is_a_set_of_options_that_others_overrule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"chat_id": i, "parent_chat_id": -1, "timestamp": float(i), "input_length": 20, "output_length": 4}
        | {"type": "text", "turn": 1, "hash_ids": [0, 1 + i]}
        for i in range(1200)
    ]
    path = tmp_path / "qwen.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    words = ["bench", "trace", str(path), "--preset", "qwen", "--port", "9", "--dry-run"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    for number, scale in enumerate((0.4, 0.5, 0.6, 0.7, 0.8, 1.6)):
        assert f"00{number}-time-scale={scale}: 1,000 requests over {999 * scale:,.1f} s" in shown
    assert main([*words, "--speedup", "100", "--num-prompts", "10"]) == 0
    assert "000: 10 requests over 0.1 s" in capsys.readouterr().out


def test_what_finished_before_an_interrupt_is_shown_and_the_rest_sent_by_resume(
    fake_server: FakeServer,
    trace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([1])  # once is enough: a second Ctrl-C does not wait for anything

    def interrupt(bar: ProgressBar, progress: Progress) -> None:
        if progress.finished and next(times, None):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "update", interrupt)
    # Slow enough that the interrupt comes long before the second request is due.
    words = ["--base-url", fake_server.url, "--speedup", "0.02", "--run-dir", "kept", "--strict"]
    assert main(["bench", "trace", str(trace), *words]) == 130
    shown = capsys.readouterr()
    assert "Successful requests:                     1" in shown.out
    assert "note: interrupted" in shown.out
    assert "to go on: prefixlab bench trace --resume kept" in shown.err
    # strict it stays, and a verdict on a part is not one on the whole
    assert main(["bench", "trace", "--resume", "kept"]) == 3
    shown = capsys.readouterr()
    assert "--strict: 000: cached tokens consistent (1 of 6 requests checked), 0 of 6" in shown.err
    assert "Expected cached tokens:                  0" in shown.out
    assert "Measured of those checked:               0" in shown.out
    assert "Successful requests:                     6" in shown.out
    assert "resumed: 1 request had ended before" in shown.out


def test_nothing_succeeding_is_exit_code_1(
    fake_server: FakeServer, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.break_after(3)
    assert main(["bench", "trace", str(trace), "--base-url", fake_server.url]) == 1
    assert "no request succeeded at 000: HTTP 503" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["trace", "mooncake", "timed_trace", "burstgpt", "agentic-trace"])
def test_bench_serve_replays_a_trace_under_every_name_it_has(
    name: str, fake_server: FakeServer, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base-url", fake_server.url, "--dataset-name", name, "--dataset-path", str(trace)]
    words += [
        "--mooncake-slowdown-factor",
        "2",
        "--use-trace-timestamps",
        "--mooncake-workload",
        "conversation",
    ]
    assert main(["bench", "serve", *words]) == 0
    shown = capsys.readouterr().out
    assert "Pacing:                                  open loop, times of the trace, time scale 2" in shown
    assert "Scheduled duration (s):                  0.10" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speedup", "0"], "--speedup"),
        (["--speedup", "inf"], "--speedup"),
        (["--length-scale", "2"], "--length-scale"),
        (["--length-scale", "0.3"], "--length-scale 0.3 makes 4.8 tokens of a block of 16"),
        (["--speedup", "2", "--time-scale", "2"], "--speedup and --time-scale both say how fast"),
        (["--speedup", "1,2,1"], "--speedup holds a value twice"),
        (["--speedup", "fast"], "--speedup: 'fast' is not a number"),
        (["--time-scale", "-1"], "--time-scale must be a positive number"),
        (["--slice-start", "9"], "none of its 6 requests is left"),
        (["--slice-duration", "0"], "--slice-duration"),
        (["--min-isl", "9", "--max-isl", "8"], "--min-isl 9 is more than --max-isl 8"),
        (["--max-osl", "0"], "--max-osl must be at least 1"),
        (["--agentic-max-turns", "2"], "has no sessions to count turns of (--agentic-max-turns)"),
        (["--session-interval", "-1"], "--session-interval"),
        (["--dataset-name", "random"], "unknown option '--dataset-name'"),
        (["--shuffle"], "unknown option '--shuffle'"),
        (["--block-size", "0"], "--block-size"),
        (["--max-len", "1"], "--max-len"),
        (["--num-prompts", "-1"], "--num-prompts must be at least 1"),
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


def test_of_a_broken_trace_nothing_is_said_but_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jsonl").write_text("{nonsense\n")
    assert main(["bench", "trace", "broken.jsonl"]) == 2
    told = capsys.readouterr().err
    assert "broken.jsonl:1: " in told and "embedded engine" not in told
