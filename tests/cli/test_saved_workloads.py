"""What --save-workload wrote is sent again exactly: the bodies that reach the server are the same."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prefixlab.cli.main import main
from tests.bench.fake_server import FakeServer

QUIET = ["--no-progress", "--no-run-dir"]
SAVE_AGAIN = ["--save-workload", "again.jsonl"]
CONVERSATIONS = [
    {
        "conversations": [
            {"from": "human", "value": f"question {n}, please"},
            {"from": "gpt", "value": "yes " * n},
        ]
    }
    for n in range(1, 7)
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("talk.json").write_text(json.dumps(CONVERSATIONS))


def bodies_of(server: FakeServer, *words: str) -> list[dict[str, Any]]:
    """Of one run, sorted: several are under way at once."""
    server.reset()
    assert main(["bench", "serve", "--base-url", server.url, *QUIET, *words]) == 0
    return sorted(server.bodies, key=json.dumps)


def lines(path: str) -> list[dict[str, Any]]:
    data = Path(path).read_bytes()
    return [
        json.loads(line) for line in (gzip.decompress(data) if path.endswith(".gz") else data).splitlines()
    ]


RANDOM = [
    "--num-prompts",
    "9",
    "--random-input-len",
    "40",
    "--random-prefix-len",
    "33",
    "--random-output-len",
    "4",
]
ONE_OF_A_RATIO = ["--isl", "40", "--osl", "4", "--requests", "3", "--concurrency", "1"]
BYTES = ["--tokenizer", "byte"]
SHAREGPT = ["--dataset-name", "sharegpt", "--dataset-path", "talk.json", *BYTES]
SHARING = [
    *("--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "2", "--gsp-prompts-per-group", "4"),
    *("--gsp-system-prompt-len", "64", "--gsp-question-len", "40", "--gsp-output-len", "4"),
]


@pytest.mark.parametrize(
    ("backend", "asked"),
    [
        (["--backend", "sglang"], RANDOM),
        (["--backend", "openai", "--model", "fake"], RANDOM),
        (["--backend", "openai", "--model", "fake"], [*RANDOM, "--prompt-form", "text"]),
        (["--backend", "openai-chat", "--model", "fake"], RANDOM),
        (["--backend", "openai-chat", "--model", "fake"], SHAREGPT),
        (["--backend", "openai", "--model", "fake"], SHAREGPT),
        (["--backend", "openai-chat", "--model", "fake"], [*SHARING, *BYTES]),
    ],
    ids=["native", "ids", "text", "chat", "sharegpt-chat", "sharegpt-text", "tokens-chat"],
)
def test_what_was_saved_is_sent_again_byte_for_byte(
    fake_server: FakeServer, backend: list[str], asked: list[str]
) -> None:
    sent = bodies_of(fake_server, *backend, *asked, "--save-workload", "w.jsonl.gz")
    saved = [*backend, "--dataset-name", "saved", "--dataset-path", "w.jsonl.gz"]
    assert bodies_of(fake_server, *saved, *(BYTES if "byte" in asked else []), *SAVE_AGAIN) == sent
    requests = lines("w.jsonl.gz")[1:]
    assert lines("again.jsonl")[1:] == requests
    is_known = "byte" in asked or "token_ids" in requests[0]
    assert ("expected_cached_tokens" in requests[0]) == is_known
    Path("again.jsonl").unlink()
    assert bodies_of(fake_server, *saved, *SAVE_AGAIN) == sent
    for request in requests:
        if "token_ids" not in request:  # without the tokenizer nobody knows what is due
            request.pop("expected_cached_tokens", None)
    assert lines("again.jsonl")[1:] == requests


def test_what_the_cache_should_serve_is_found_anew_for_its_page_size(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies_of(fake_server, "--max-concurrency", "1", *RANDOM, "--save-workload", "w.jsonl")
    head, *requests = lines("w.jsonl")
    assert (head["page_size"], head["requests"], head["seed"]) == (16, 9, 42)
    assert [request.get("expected_cached_tokens") for request in requests] == [0, *[32] * 8]
    fake_server.reset()
    fake_server.behaviour.page_size = 1
    saved = ["--dataset-name", "saved", "--dataset-path", "w.jsonl", "--output-file", "out.jsonl"]
    words = ["bench", "serve", "--base-url", fake_server.url, "--max-concurrency", "1", *QUIET, *saved]
    assert main(words) == 0
    (result,) = lines("out.jsonl")
    assert result["expected_cached_tokens"] == result["cached_tokens"] == 8 * 33
    assert result["verdict"] == "consistent"


def test_texts_that_were_counted_say_with_which_tokenizer_where_it_is_not_given_again(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies_of(fake_server, "--backend", "openai-chat", *SHAREGPT, "--save-workload", "w.jsonl")
    saved = ["--backend", "openai-chat", "--dataset-name", "saved", "--dataset-path", "w.jsonl"]
    hint = "its texts were counted with --tokenizer byte: give it again"
    assert hint not in capsys.readouterr().out
    bodies_of(fake_server, *saved)
    assert hint in capsys.readouterr().out
    bodies_of(fake_server, *saved, *BYTES)
    assert hint not in capsys.readouterr().out


def test_saved_times_are_kept_with_a_fixed_schedule(fake_server: FakeServer) -> None:
    rate = ["--request-rate", "200", "--burstiness", "inf"]
    bodies_of(fake_server, *rate, *RANDOM, "--save-workload", "w.jsonl")
    assert [request["offset_s"] for request in lines("w.jsonl")[1:]] == pytest.approx(
        [n / 200 for n in range(9)]
    )
    saved = ["--dataset-name", "saved", "--dataset-path", "w.jsonl"]
    bodies_of(fake_server, *saved, "--fixed-schedule", "--save-workload", "again.jsonl")
    assert lines("again.jsonl")[1:] == lines("w.jsonl")[1:]
    bodies_of(fake_server, *saved, "--max-concurrency", "2", "--save-workload", "without.jsonl")
    assert "offset_s" not in lines("without.jsonl")[1]


def test_points_and_repeats_have_files_of_their_own(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "bench",
        "sweep",
        "--base-url",
        fake_server.url,
        *QUIET,
        "--max-concurrency",
        "1,2",
        "--repeats",
        "2",
    ]
    assert main([*words, *RANDOM, "--save-workload", "w.jsonl"]) == 0
    names = sorted(path.name for path in Path().glob("w*.jsonl"))
    assert names == [
        f"w-00{number}-max-concurrency={number + 1}-repeat{repeat}.jsonl"
        for number in (0, 1)
        for repeat in (0, 1)
    ]
    assert len({json.dumps(lines(name)[1:]) for name in names}) == 4, "repeats send other prompts"
    before = lines(names[0])
    fake_server.reset()
    assert main([*words, *RANDOM, "--save-workload", "w.jsonl"]) == 2
    assert f"--save-workload {names[0]} is there already" in capsys.readouterr().err
    assert lines(names[0]) == before and not fake_server.bodies


def test_a_file_that_is_there_is_not_overwritten(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("w.jsonl").write_text("mine")
    words = ["bench", "serve", "--base-url", fake_server.url, *QUIET, *RANDOM, "--save-workload", "w.jsonl"]
    assert main(words) == 2
    assert "--save-workload w.jsonl is there already" in capsys.readouterr().err
    assert Path("w.jsonl").read_text() == "mine"


def test_a_session_is_saved_with_what_it_waits_for(fake_server: FakeServer) -> None:
    talk = ["--dataset-name", "sessions", "--num-sessions", "2", "--num-turns", "2", "--turn-len", "20"]
    words = [*talk, "--turn-output-len", "4", "--max-concurrency", "1"]
    sent = bodies_of(fake_server, *words, "--save-workload", "w.jsonl")
    turns = lines("w.jsonl")[1:]
    assert [(turn.get("after"), turn.get("continues", False)) for turn in turns].count((None, False)) == 2
    again = ["--dataset-name", "saved", "--dataset-path", "w.jsonl", "--max-concurrency", "1"]
    assert bodies_of(fake_server, *again, "--save-workload", "again.jsonl") == sent
    assert lines("again.jsonl")[1:] == turns


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--save-workload", "gone/w.jsonl"], "--save-workload gone/w.jsonl: its folder is not there"),
        (["--dataset-name", "saved"], "--dataset-name saved reads a file: give --dataset-path"),
        (["--dataset-name", "saved", "--dataset-path", "talk.json"], "line 1: not a workload"),
        (["--dataset-name", "saved", "--dataset-path", "w", "--no-shuffle"], "--no-shuffle is for"),
        (["--sharegpt-output-len", "4"], "--sharegpt-output-len is for --dataset-name sharegpt or openai"),
        (["--url", "http://a", "http://b"], "--url is one server, but with --dataset-name prefix-ratio"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    words: list[str], complaint: str, fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [] if "--url" in words else ["--base-url", fake_server.url]
    assert main(["bench", "serve", *where, *QUIET, *words]) == 2
    assert complaint in capsys.readouterr().err
    assert not fake_server.bodies


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["serve", *RANDOM], ["w.jsonl.gz"]),
        (["serve", *RANDOM, "--repeats", "2"], ["w-repeat0.jsonl.gz", "w-repeat1.jsonl.gz"]),
        (["sweep", *RANDOM, "--max-concurrency", "2"], ["w.jsonl.gz"]),
        (
            ["sweep", *RANDOM, "--max-concurrency", "1,2"],
            ["w-000-max-concurrency=1.jsonl.gz", "w-001-max-concurrency=2.jsonl.gz"],
        ),
        (["trace", "t.jsonl", "--speedup", "4"], ["w.jsonl.gz"]),
        (["sessions", "--num-sessions", "2", "--num-turns", "2", "--max-concurrency", "1"], ["w.jsonl.gz"]),
        (["prefix-ratio", *ONE_OF_A_RATIO, "--prefix-ratios", "0.5"], ["w.jsonl.gz"]),
    ],
)
def test_one_point_is_in_the_file_that_was_named_and_every_verb_says_where_it_is(
    words: list[str], files: list[str], fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"timestamp": 0, "input_length": 40, "output_length": 4, "hash_ids": [0, 1, 2]}
    Path("t.jsonl").write_text(json.dumps(line) + "\n")
    save = ["--save-workload", "w.jsonl.gz"]
    assert main(["bench", *words, "--base-url", fake_server.url, *QUIET, *save]) == 0
    assert sorted(path.name for path in Path().glob("w*")) == files
    told = capsys.readouterr().out
    assert all(f"the workload is in {file}\n" in told for file in files)
