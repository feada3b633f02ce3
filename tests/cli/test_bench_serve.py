from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from prefixlab.bench.loadgen.driver import Progress
from prefixlab.bench.report.progress import ProgressBar
from prefixlab.cli.bench_point import given_settings, point_config
from prefixlab.cli.main import main
from prefixlab.core.clock import MonotonicClock, sleep
from tests.bench.fake_server import FakeServer

SMALL = ["--num-prompts", "12", "--random-input-len", "40", "--random-output-len", "4", "--disable-tqdm"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("OPENAI_API_KEY", "PREFIXLAB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


def serve(server: FakeServer, *words: str) -> int:
    return main(["bench", "serve", "--base-url", server.url, *words])


def test_strict_turns_a_mismatch_into_exit_code_3(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(fake_server, *SMALL, "--flush-cache", "--strict") == 0
    fake_server.behaviour.reports_cached = False
    assert serve(fake_server, *SMALL, "--flush-cache", "--strict") == 3
    assert (
        "--strict: this run: cached tokens not reported, 0 of 12 requests failed" in capsys.readouterr().err
    )


def test_vllms_command_line_works_unchanged_and_its_keys_are_in_the_file(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.is_vllm = True
    words = ["--backend", "openai", "--model", "fake", "--dataset-name", "random", "--ignore-eos"]
    words += ["--random-input-len", "32", "--random-output-len", "8", "--num-prompts", "10"]
    words += ["--max-concurrency", "4", "--save-result", "--result-dir", "out", "--result-filename", "r.json"]
    words += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"]
    words += ["--trust-remote-code", "--disable-tqdm", "--endpoint", "/v1/completions", "--metadata", "tp=1"]
    words += ["--goodput", "ttft:10000", "e2el:20000", "--label", "x y", "--header", "X-A=b"]
    assert serve(fake_server, *words) == 0
    result = json.loads(Path("out/r.json").read_text())
    assert (result["completed"], result["total_input_tokens"], result["total_output_tokens"]) == (10, 320, 80)
    for key in (
        "mean_ttft_ms",
        "median_itl_ms",
        "p99_itl_ms",
        "p50_tpot_ms",
        "std_e2el_ms",
        "request_goodput",
    ):
        assert result[key] is not None, key
    assert (result["tp"], result["model_id"], result["max_concurrency"]) == ("1", "fake", 4)
    assert result["request_rate"] == "inf"
    assert "Successful requests:                     10" in capsys.readouterr().out
    trial, *measured = fake_server.bodies
    assert len(trial["prompt"]) == 2 and {len(body["prompt"]) for body in measured} == {32}
    assert all(body["ignore_eos"] and body["model"] == "fake" for body in fake_server.bodies)


def test_sglangs_command_line_works_unchanged_and_appends_a_line(fake_server: FakeServer) -> None:
    words = ["--backend", "sglang", "--dataset-name", "random-ids", "--random-input", "32"]
    words += ["--random-output", "8", "--random-range-ratio", "0.5", "--num-prompts", "8", "--seed", "1"]
    words += ["--request-rate", "500", "--warmup-requests", "2", "--flush-cache", "--tokenize-prompt"]
    words += [
        "--output-file",
        "out.jsonl",
        "--extra-request-body",
        '{"x": 1}',
        "--disable-tqdm",
        "--cache-report",
    ]
    for _ in range(2):
        assert serve(fake_server, *words) == 0
    first, second = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert first["completed"] == second["completed"] == 8
    assert second["verdict"] == "consistent", "flushed, so the second run is as cold as the first"
    assert fake_server.num_flushes == 2
    lengths = {len(body["input_ids"]) for body in fake_server.bodies if "x" in body and "input_ids" in body}
    assert all(16 <= length <= 64 for length in lengths)
    assert all(body["sampling_params"]["ignore_eos"] for body in fake_server.bodies)


def test_a_second_run_on_a_warm_cache_is_found_out(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert serve(fake_server, *SMALL, "--max-concurrency", "4") == 0
    shown = capsys.readouterr().out
    assert "MORE THAN EXPECTED: WARM CONTAMINATION" in shown
    assert "Empty it first (--flush-cache), or make other prompts (--seed)" in shown


@pytest.mark.parametrize(
    ("kind", "backend"),
    [({"is_vllm": True}, "vllm"), ({}, "sglang"), ({"known_endpoints": frozenset({"models"})}, "openai")],
)
def test_a_server_nobody_named_is_asked_in_its_own_way(
    fake_server: FakeServer, kind: dict[str, object], backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in kind.items():
        setattr(fake_server.behaviour, name, value)
    assert serve(fake_server, *SMALL, "--max-concurrency", "4", "--no-run-dir") == 0
    assert f"is asked as --backend {backend}" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_everything_is_kept_in_a_folder_named_after_the_run(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--backend", "sglang", "--request-rate", "400", "--label", "try", "--api-key", "hidden"]
    assert serve(fake_server, *SMALL, *words) == 0
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"try-sglang-400qps-fake-\d{8}-\d{6}", folder.name)
    assert f"kept in {Path('runs') / folder.name}" in capsys.readouterr().err
    assert "hidden" not in (folder / "config.json").read_text()
    assert json.loads((folder / "summary.json").read_text())["finished"] is True
    assert len((folder / "requests.jsonl").read_text().splitlines()) == 12
    assert main(["bench", "serve", "--resume", str(folder), "--api-key", "hidden"]) == 2
    assert "that run is finished" in capsys.readouterr().err


def test_our_own_server_is_recorded_as_ours_and_what_was_found_is_kept(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.info = {"prefixlab_version": "1"}
    monkeypatch.setattr(sys, "argv", ["prefixlab", "bench", "serve", "--api-key", "sk-1", "--header=A=b"])
    for words in (["--backend", "sglang"], []):
        assert serve(fake_server, *SMALL, *words) == 0
        assert "is a prefixlab server" in capsys.readouterr().err
    for folder in Path("runs").iterdir():
        assert folder.name.startswith("prefixlab-")
        config = json.loads((folder / "config.json").read_text())
        assert config["resolved"] == {"backend": "prefixlab", "base_url": fake_server.url, "model": "fake"}
        assert config["command"] == "prefixlab bench serve --api-key '***' '--header=***'"


def test_styles_say_the_same(fake_server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--max-concurrency", "4", "--no-run-dir", "--style"]
    assert serve(fake_server, *words, "json") == 0
    assert json.loads(capsys.readouterr().out)["completed"] == 12
    assert serve(fake_server, *words, "table") == 0
    assert "12 planned = 12 ok + 0 failed" in capsys.readouterr().out


def test_an_interrupt_shows_what_was_measured_and_the_run_goes_on_later(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupts = iter([signal.SIGINT])

    def interrupt(bar: ProgressBar, progress: Progress) -> None:
        if progress.finished:
            for once in interrupts:
                os.kill(os.getpid(), once)

    fake_server.behaviour.first_event_s = 0.3
    words = [
        "--num-prompts",
        "400",
        "--max-concurrency",
        "4",
        "--isl",
        "20",
        "--osl",
        "2",
        "--run-dir",
        "run",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "update", interrupt)
        assert serve(fake_server, *words) == 130
    shown = capsys.readouterr().out
    done = int(re.search(r"Successful requests: +(\d+)", shown)[1])  # type: ignore[index]
    assert 0 < done < 400 and "note: interrupted" in shown
    fake_server.behaviour.first_event_s = 0.0
    num_before = len(fake_server.bodies)
    assert main(["bench", "serve", "--resume", "run", "--disable-tqdm"]) == 0
    shown = capsys.readouterr().out
    assert "Successful requests:                     400" in shown
    assert len(fake_server.bodies) - num_before == 400 - done
    assert_only_what_belongs_is_in(Path("run"), num_segments=2)


def test_a_run_whose_server_is_gone_still_gets_its_report(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(fake_server, *SMALL, "--max-concurrency", "1", "--run-dir", "run") == 0
    Path("run/summary.json").unlink()
    (records,) = Path("run/segments/0000").glob("records-*.jsonl")
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:5]))
    config = Path("run/config.json")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        gone = f"http://127.0.0.1:{unused.getsockname()[1]}"
        config.write_text(config.read_text().replace(fake_server.url, gone))
        capsys.readouterr()
        assert main(["bench", "serve", "--resume", "run", "--disable-tqdm"]) == 1
    shown = capsys.readouterr()
    assert "Successful requests:                     5" in shown.out and "note: not all was sent" in shown.out
    assert "could not connect" in shown.err and "--resume run" in shown.err
    assert json.loads(Path("run/summary.json").read_text())["finished"] is False


def test_a_run_killed_with_all_its_processes_goes_on_with_every_finished_request_kept(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.first_event_s = 0.05
    words = [
        "--num-prompts",
        "300",
        "--max-concurrency",
        "6",
        "--isl",
        "20",
        "--osl",
        "2",
        "--num-workers",
        "2",
    ]
    command = [sys.executable, "-m", "prefixlab.cli.main", "bench", "serve", "--base-url", fake_server.url]
    process = subprocess.Popen(
        [*command, *words, "--run-dir", "run", "--disable-tqdm"],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: sum(map(count_lines, Path("run").glob("segments/0000/records-*.jsonl"))) >= 20)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    Path("run/segments/0001.json.new").write_text("half a no")
    kept = sum(map(count_lines, Path("run").glob("segments/0000/records-*.jsonl")))
    fake_server.behaviour.first_event_s = 0.0
    assert main(["bench", "serve", "--resume", "run", "--disable-tqdm"]) == 0
    shown = capsys.readouterr().out
    assert "Successful requests:                     300" in shown
    assert "Planned requests:                        300" in shown
    lines = [msgspec.json.decode(line) for line in Path("run/requests.jsonl").read_bytes().splitlines()]
    assert len({line["id"] for line in lines}) == 300
    assert sum(line.get("segment", 0) == 0 for line in lines) >= kept - 2  # torn lines are no records
    assert_only_what_belongs_is_in(Path("run"), num_segments=2)


def assert_only_what_belongs_is_in(run_dir: Path, num_segments: int) -> None:
    """No plan, which may hold a key, no capture, no draft."""
    segments = run_dir / "segments"
    numbers = [f"{number:04}" for number in range(num_segments)]
    assert {path.name for path in segments.iterdir()} == {*numbers, *(f"{number}.json" for number in numbers)}
    for number in numbers:
        names = {re.sub(r"\d+", "N", path.name) for path in (segments / number).iterdir()}
        assert names - {"metrics.parquet"} == {"job.json", "start.json", "records-N.jsonl"}
    assert not list(run_dir.rglob("*.new"))


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def wait_for(happened: object, timeout_s: float = 60.0) -> None:
    clock = MonotonicClock()
    deadline_s = clock.now() + timeout_s
    while not happened():  # type: ignore[operator]
        assert clock.now() < deadline_s
        sleep(0.02)


def test_resume_takes_no_other_settings_and_only_its_own_runs(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", "--resume", "nowhere"]) == 2
    assert "there is no run" in capsys.readouterr().err
    Path("run").mkdir()
    Path("run/config.json").write_text('{"verb": "bench serve"}')
    assert main(["bench", "serve", "--resume", "run", "--num-prompts", "3"]) == 2
    assert "leave out --num-prompts" in capsys.readouterr().err
    Path("run/config.json").write_text('{"verb": "bench sweep"}')
    assert main(["bench", "serve", "--resume", "run"]) == 2
    assert "prefixlab bench sweep --resume run" in capsys.readouterr().err


def test_nothing_succeeding_is_exit_code_1(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.break_after(0)
    assert serve(fake_server, *SMALL, "--max-concurrency", "4") == 1
    captured = capsys.readouterr()
    assert "no request succeeded: HTTP 503" in captured.err
    assert "Failed requests:                         12" in captured.out


def test_token_ids_the_model_does_not_know_are_told_before_the_run(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.is_vllm = True
    fake_server.behaviour.vocab_size = 1_000
    words = [*SMALL, "--backend", "vllm", "--max-concurrency", "4"]
    assert serve(fake_server, *words) == 1
    shown = capsys.readouterr()
    assert "Token id 31999 is out of vocabulary" in shown.err and "give --vocab-size" in shown.err
    assert not shown.out and not Path("runs").exists()
    assert len(fake_server.bodies) == 1
    assert serve(fake_server, *words, "--vocab-size", "1000") == 0
    assert "Measured cached tokens:                  0" in capsys.readouterr().out
    assert len(fake_server.bodies) == 1 + 1 + 12


def test_a_wrong_model_is_told_before_the_run_with_the_names_there_are(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.is_vllm = True
    assert serve(fake_server, *SMALL, "--backend", "vllm", "--model", "fakd") == 2
    assert "--model fakd: the server serves fake; did you mean 'fake'?" in capsys.readouterr().err
    assert not fake_server.bodies and not Path("runs").exists()
    words = [
        "--backend",
        "vllm",
        "--model",
        "path/to/it",
        "--served-model-name",
        "fakd",
        "--max-concurrency",
        "4",
    ]
    assert serve(fake_server, *SMALL, *words) == 0, "that name is sent all the same"
    assert fake_server.bodies[0]["model"] == "fakd"


def test_a_server_that_is_not_there_is_told_and_waited_for_when_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "serve", "--port", "9", *SMALL]) == 1
    assert "is it running at" in capsys.readouterr().err
    assert main(["bench", "serve", "--port", "9", *SMALL, "--ready-check-timeout-sec", "0.1"]) == 1
    assert "the server was not ready within 0.1 s" in capsys.readouterr().err


def test_a_ready_server_is_sent_no_prompt_by_the_check(fake_server: FakeServer) -> None:
    words = ["--ready-check-timeout-sec", "5", "--max-concurrency", "4"]
    assert serve(fake_server, *SMALL, *words) == 0
    assert len(fake_server.bodies) == 12


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--dataset-name", "custom", "--dataset-path", "nope.jsonl"], "--dataset-path nope.jsonl"),
        (["--dataset-name", "custom", "--dataset-path", "torn.jsonl"], "torn.jsonl, line 1: that is no JSON"),
        (["--dataset-name", "custom", "--dataset-path", "long.jsonl"], "the server takes at most"),
        (["--dataset-name", "custom", "--dataset-path", "talk.jsonl"], "rows hold conversations"),
        (["--isl", "10000000"], "the server takes at most"),
        (["--tokenizer", "nowhere/at/all"], "nowhere"),
        (["--save-result", "--result-filename", "nosuch/r.json"], "--result-filename nosuch/r.json"),
    ],
)
def test_a_run_that_cannot_start_leaves_no_folder(
    fake_server: FakeServer, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.info = {"max_model_len": 500}
    Path("torn.jsonl").write_text("{")
    Path("long.jsonl").write_text('{"prompt": [1, 2, 3], "output_tokens": 500}')
    Path("talk.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}')
    assert serve(fake_server, "--disable-tqdm", *words) != 0
    assert complaint in capsys.readouterr().err
    assert not Path("runs").exists() and not Path("nosuch").exists()
    assert not fake_server.bodies


def test_a_dry_run_says_what_would_be_sent(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--port", "9", "--dry-run", "--isl", "40", "--osl", "4", "--request-rate", "5"]
    words += ["--burstiness", "inf", "--duration", "10", "--repeats", "2"]
    assert main(["bench", "serve", *words]) == 0
    assert capsys.readouterr().out == (
        "2 times 50 requests over 9.8 s, open loop, constant, 5 req/s, nothing after 10 s; 2,000 prompt "
        "tokens, 200 output tokens\n"
    )


def test_chat_needs_no_tokenizer(fake_server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backend", "openai-chat", "--max-concurrency", "4"]
    assert serve(fake_server, *SMALL, *words) == 0
    assert "prompts in words are not as long as asked" in capsys.readouterr().out


def test_prompts_of_a_file_are_sent(fake_server: FakeServer) -> None:
    Path("rows.jsonl").write_text(
        '{"prompt": "hello", "output_tokens": 3}\n{"messages": [{"role": "user", "content": "x"}]}'
    )
    words = ["--backend", "openai-chat", "--dataset-name", "custom", "--dataset-path", "rows.jsonl"]
    assert serve(fake_server, *words, "--max-concurrency", "1", "--disable-shuffle", "--disable-tqdm") == 0
    assert [body["messages"][0]["content"] for body in fake_server.bodies] == ["hello", "x"]
    assert [body["max_completion_tokens"] for body in fake_server.bodies] == [3, 256]


def test_where_only_a_backend_is_named_the_port_is_the_one_its_users_know() -> None:
    for backend, port in (("vllm", 8000), ("openai-chat", 8000), ("sglang", 30000)):
        config = point_config(given_settings(argparse.Namespace(backend=backend)))
        assert config.target.url == f"http://127.0.0.1:{port}"


def test_the_key_comes_from_where_openais_users_keep_it(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hidden")
    assert serve(fake_server, *SMALL, "--max-concurrency", "4") == 0
    assert set(fake_server.keys) == {"Bearer hidden"}


def test_an_engine_setting_is_refused_where_there_is_no_engine(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(fake_server, *SMALL, "--num-pages", "5") == 2
    assert "--num-pages is for the embedded engine" in capsys.readouterr().err


def test_the_simulated_engine_is_measured_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backend", "in-process", "--model", "sim", "--max-concurrency", "4", "--flush-cache"]
    assert main(["bench", "serve", *SMALL, *words]) == 0
    shown = capsys.readouterr().out
    assert "Successful requests:                     12" in shown
    assert "note: cold start proven" in shown
    assert "note: simulated: h200-llama-3.1-8b\n" in shown
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("in-process-concurrency4-sim-")
