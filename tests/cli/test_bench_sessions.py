"""`bench sessions`, and what the real scheduler and cache make of sessions."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.loadgen.driver import Progress
from prefixlab.bench.report.progress import ProgressBar
from prefixlab.cli.bench_point import given_settings, point_config
from prefixlab.cli.embedded import embedded_server
from prefixlab.cli.main import main, make_parser
from prefixlab.core.errors import ConfigError
from tests.bench.fake_server import FakeServer

SIMULATED = ["--model", "sim", "--sim-speedup", "1000"]
BACKENDS = ["in-process", "sglang", "vllm", "openai"]
IN_ORDER = ["--concurrency", "1"]
QUIETLY = ["--disable-tqdm", "--no-run-dir"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sessions(backend: str, engine: list[str], *words: str) -> dict[str, Any]:
    """What a run on the simulated model, with its real scheduler and cache, has to say."""
    path = Path("result.jsonl")
    path.unlink(missing_ok=True)
    asked = ["bench", "sessions", "--backend", backend, "--output-file", str(path), *QUIETLY, *words]
    if backend == "in-process":
        assert main([*asked, *SIMULATED, *engine]) == 0
    else:
        with embedded_server([*SIMULATED, *engine]) as url:
            told = ["--vocab-size", "32000", *engine[:2]]  # what vLLM's and OpenAI's APIs do not say
            assert main([*asked, "--base-url", url, *told]) == 0
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def parsed(*words: str) -> argparse.Namespace:
    from prefixlab.cli import bench_sessions

    return make_parser(bench_sessions, ["prefixlab", "bench", "sessions"]).parse_strictly(words)


def test_names_that_users_of_multi_turn_scripts_know_are_taken() -> None:
    words = ["--num-rounds", "10", "--request-length", "2048", "--output-length", "1", "--max-parallel", "3"]
    config = point_config(given_settings(parsed(*words)) | {"dataset_name": "sessions"})
    assert (config.sessions.num_turns, config.sessions.turn_len, config.sessions.turn_output_len) == (
        10,
        2048,
        1,
    )
    assert config.load.max_concurrency == 3 and not config.load.open_loop
    assert vars(parsed("--max-active-conversations", "7"))["max_concurrency"] == 7
    with pytest.raises(ConfigError, match="--num-clients is how many sessions there are at once to vLLM"):
        parsed("--num-clients", "4")


def test_options_of_other_data_sets_are_not_offered() -> None:
    for word in (
        "--gsp-num-groups",
        "--num-prompts",
        "--hit-rate",
        "--custom-output-len",
        "--fixed-schedule",
    ):
        with pytest.raises(ConfigError, match=word):
            parsed(word, "3")


def test_a_dry_run_says_how_many_sessions_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--num-sessions", "3", "--num-turns", "4", "--turn-len", "100", "--turn-output-len", "10"]
    assert main(["bench", "sessions", "--dry-run", "--concurrency", "2", *words]) == 0
    assert capsys.readouterr().out == (
        "12 requests of 3 sessions, closed loop, 2 in flight; 3,180 prompt tokens, 120 output tokens\n"
    )


def test_options_of_traces_are_for_sessions_of_a_file_and_the_other_way_round() -> None:
    def config(**given: Any) -> None:
        point_config({"dataset_name": "sessions", **given})

    with pytest.raises(ConfigError, match="--length-scale is for sessions of a file"):
        config(length_scale=0.5)
    with pytest.raises(ConfigError, match="--system-len is for made-up sessions"):
        config(dataset_path="x.jsonl", system_len=5)
    with pytest.raises(ConfigError, match="--think-time replaces them"):
        config(dataset_path="x.jsonl", speedup=2.0, think_time=1.0)


AGENTIC = Path(os.environ.get("PREFIXLAB_TRACES", "../shared/traces")) / "agentic_claude_code_weka.jsonl.gz"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def two_agents(tmp_path: Path) -> Path:
    """The first two sessions of the agentic trace."""
    path = AGENTIC if AGENTIC.is_absolute() else ROOT / AGENTIC
    if not path.exists():
        pytest.skip(f"no {path}: PREFIXLAB_TRACES says where traces are")
    with gzip.open(path, "rt") as lines:
        short = tmp_path / "two.jsonl"
        short.write_text("".join(next(lines) for _ in range(2)))
    return short


@pytest.mark.service
@pytest.mark.parametrize("backend", BACKENDS)
def test_recorded_sessions_share_on_the_real_cache_what_the_trace_says(
    two_agents: Path, backend: str
) -> None:
    words = ["--dataset-path", str(two_agents), "--length-scale", "0.0625", "--num-turns", "12"]
    result = sessions(backend, ["--page-size", "1"], *words, *IN_ORDER, "--delay", "0", "--ignore-eos")
    assert (result["completed"], result["completed_sessions"], result["verdict"]) == (24, 2, "consistent")
    assert result["fidelity"]["sharing"]["num_exact"] == 24
    assert [turn["completed"] for turn in result["turns"]] == [2] * 12
    for turn in result["turns"]:
        assert turn["hit_rate"] == turn["expected_hit_rate"]


@pytest.mark.service
@pytest.mark.parametrize(("page_size", "cached"), [(1, 92_196), (64, 92_160)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ten_rounds_of_2048_tokens_hit_on_the_real_cache_as_they_must(
    backend: str, page_size: int, cached: int
) -> None:
    engine = ["--page-size", str(page_size), "--num-pages", str(200_000 // page_size)]
    words = ["--num-sessions", "1", "--num-rounds", "10", "--turn-len", "2048", "--turn-output-len", "1"]
    result = sessions(backend, [*engine, "--max-model-len", "32768"], *words, *IN_ORDER, "--ignore-eos")
    assert (result["cached_tokens"], result["total_input_tokens"]) == (cached, 112_685)
    assert result["verdict"] == "consistent" and result["verdict_detail"] == ""
    if page_size == 1:
        assert round(result["measured_hit_rate"], 6) == 0.818175


@pytest.mark.service
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_live_sessions_hit_what_was_said_before_through_every_api(backend: str, page_size: int) -> None:
    words = ["--num-sessions", "5", "--num-turns", "4", "--turn-len", "70", "--turn-output-len", "9"]
    words += ["--system-len", "33", "--turn-range-ratio", "0.5", "--ignore-eos"]
    result = sessions(backend, ["--page-size", str(page_size)], *words, *IN_ORDER)
    assert (result["completed"], result["completed_sessions"], result["verdict"]) == (20, 5, "consistent")
    assert result["verdict_detail"] == "", "the server counts just as many prompt tokens"


@pytest.mark.service
def test_on_chat_sessions_go_on_and_what_cannot_be_checked_is_said() -> None:
    words = ["--num-sessions", "2", "--num-turns", "3", "--turn-len", "90", "--turn-output-len", "9"]
    result = sessions("openai-chat", ["--page-size", "1"], *IN_ORDER, *words, "--tokenizer", "byte")
    assert (result["completed"], result["completed_sessions"]) == (6, 2)
    assert any(note.startswith("4 later turns on chat: not checked") for note in result["notes"])
    rates = [turn["hit_rate"] for turn in result["turns"]]
    assert rates[0] < rates[1] < rates[2], "each turn finds what was said before"


@pytest.mark.service
def test_conversations_of_a_file_are_held_again_on_chat_with_the_servers_own_answers() -> None:
    said = [("human", "What is a page?"), ("gpt", "so many tokens"), ("human", "And a block, please?")]
    talk = [{"from": who, "value": words} for who, words in said]
    Path("talks.json").write_text(json.dumps([{"conversations": talk}] * 3))
    words = ["--dataset-path", "talks.json", "--turn-output-len", "12", "--num-sessions", "2"]
    result = sessions("openai-chat", ["--page-size", "1"], *IN_ORDER, *words)
    assert (result["completed"], result["completed_sessions"]) == (4, 2)
    first, later = result["turns"]
    assert later["mean_prompt_tokens"] > first["mean_prompt_tokens"] + len(said[2][1])
    assert later["hit_rate"] > 0.3, "it finds what was said before"


@pytest.mark.service
@pytest.mark.parametrize("backend", ["in-process", "sglang"])
def test_an_answer_that_ends_early_makes_all_behind_it_shorter(backend: str) -> None:
    words = ["--num-sessions", "6", "--num-turns", "4", "--turn-len", "50", "--turn-output-len", "40"]
    engine = ["--page-size", "1", "--sim-eos-rate", "0.05"]
    result = sessions(backend, engine, *words, *IN_ORDER, "--no-ignore-eos")
    assert result["total_output_tokens"] < 24 * 40
    assert (result["verdict"], result["verdict_detail"]) == ("consistent", "")


@pytest.mark.service
def test_sessions_arrive_at_a_rate_and_are_swept_over_concurrency() -> None:
    words = ["--num-turns", "3", "--turn-len", "40", "--turn-output-len", "4"]
    result = sessions("in-process", [], "--num-sessions", "8", "--request-rate", "200", *words)
    assert (result["loop"], result["completed"], result["completed_sessions"]) == ("open", 24, 8)
    sweep = ["bench", "sweep", "--dataset-name", "sessions", "--backend", "in-process", "--num-sessions", "4"]
    sweep += ["--max-concurrency", "1,2", "--output-file", "s.jsonl"]
    assert main([*sweep, *words, *SIMULATED, *QUIETLY]) == 0
    lines = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert [line["completed_sessions"] for line in lines] == [4, 4]


@pytest.mark.parametrize("verb", ["sessions", "serve"])
def test_an_interrupted_run_goes_on_by_the_verb_that_was_typed(
    verb: str, fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupts = iter([signal.SIGINT])

    def interrupt(bar: ProgressBar, progress: Progress) -> None:
        for once in interrupts:
            signal.raise_signal(once)

    fake_server.behaviour.first_event_s = 0.3
    monkeypatch.setattr(ProgressBar, "update", interrupt)
    words = ["--num-sessions", "8", "--num-turns", "1"] if verb == "sessions" else ["--num-prompts", "8"]
    words += ["--max-concurrency", "1", "--base-url", fake_server.url, "--backend", "sglang"]
    assert main(["bench", verb, *words, "--run-dir", "run"]) == 130
    assert f"to go on: prefixlab bench {verb} --resume run\n" in capsys.readouterr().err
