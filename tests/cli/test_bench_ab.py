from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.saved.saved_run import find_runs
from prefixlab.cli.main import main
from tests.bench.fake_server import FakeServer, running

SMALL = ["--shared-len", "80", "--shared-output-len", "4", "--rounds", "6", "--disable-tqdm"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def other_server() -> Iterator[FakeServer]:
    with running(FakeServer()) as server:
        yield server


def ab(*words: str) -> int:
    return main(["bench", "ab", *SMALL, *words])


def summary() -> dict[str, Any]:
    (folder,) = Path("runs").iterdir()
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_on_any_server_the_worth_of_hits_is_told(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ab("--base-url", fake_server.url) == 0
    shown = capsys.readouterr()
    assert "what hits are worth (hit against miss): median TTFT" in shown.out
    assert "there is no arm off: --off-url" in shown.out and "cannot be told to miss" in shown.out
    data = summary()
    assert data["finished"] and data["rounds"] == 6
    arms = {arm["name"]: arm for arm in data["arms"]}
    assert arms["hit"]["cached_tokens"] == 24 * 32 and arms["miss"]["cached_tokens"] == 0
    assert {arm["verdict"] for arm in data["arms"]} == {"consistent"}
    assert [run.path.name for run in find_runs(Path("runs"))] == ["hit", "miss"]


def test_a_server_of_ours_is_told_to_miss_and_one_that_hits_all_the_same_is_named(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.info = {"prefixlab_version": "1"}
    assert ab("--base-url", fake_server.url, "--no-run-dir") == 0
    assert sum(bool(body.get("force_miss")) for body in fake_server.bodies) >= 6 * 5
    assert "note: miss: 768 tokens were served from a cache, and none should have been" in (
        capsys.readouterr().out
    )


def test_a_second_server_is_the_arm_off(
    fake_server: FakeServer, other_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    other_server.behaviour.force_miss = True
    assert ab("--base-url", fake_server.url, "--off-url", other_server.url) == 0
    assert "what the code path costs (miss against off)" in capsys.readouterr().out
    assert [arm["verdict"] for arm in summary()["arms"]] == ["consistent"] * 3
    assert other_server.bodies


def test_two_urls_are_two_arms_that_send_the_same(
    fake_server: FakeServer, other_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["--arm", f"a:base-url={fake_server.url}", "--arm", f"b:base-url={other_server.url}"]
    assert ab(*arms, "--style", "json", "--seed", "5") == 0
    data = json.loads(capsys.readouterr().out)
    assert [found["about"] for found in data["differences"]] == ["b against a"] * 5
    sent = [
        {tuple(body["input_ids"]) for body in server.bodies if body["sampling_params"]["max_new_tokens"] == 4}
        for server in (fake_server, other_server)
    ]
    assert sent[0] == sent[1] and len(sent[0]) == 24


def test_arms_of_other_loads_and_forms_share_a_server(fake_server: FakeServer) -> None:
    arms = ["--arm", "ids:max-concurrency=2", "--arm", "text:max-concurrency=2,prompt-form=text"]
    assert ab("--base-url", fake_server.url, *arms, "--rounds", "2") == 0
    texts = [body for body in fake_server.bodies if "text" in body]
    assert len(texts) >= 2 * 8
    assert [arm["name"] for arm in summary()["arms"]] == ["ids", "text"]


def test_a_dry_run_shows_the_arms_and_their_turns(capsys: pytest.CaptureFixture[str]) -> None:
    assert ab("--model", "sim", "--until-ci", "3%", "--rounds", "6", "--dry-run") == 2
    assert main(["bench", "ab", "--model", "sim", "--until-ci", "3%", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "off (there is no cache), in each round: 4 requests" in shown
    assert "at most 1000 rounds, until median TTFT is known to ±3%; turns by seed" in shown
    assert "at most 12,000 requests" in shown and "some 256 min with a server that takes 10 ms" in shown


def test_what_should_be_known_before_is_said_before(capsys: pytest.CaptureFixture[str]) -> None:
    twice = ["--model", "sim", "--arm", "a", "--arm", "b", "--dry-run"]
    assert ab(*twice, "--rounds", "2") == 0
    shown = capsys.readouterr().out
    assert "note: a and b do not differ: an A/A trial" in shown
    assert "note: 2 rounds are 8 requests of each arm: too few for an interval of median TTFT" in shown


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["--arm", "a:max-concurency=3", "--arm", "b"],
            "--arm a: unknown option '--max-concurency'; did you",
        ),
        (["--arm", "a:repeats=3", "--arm", "b"], "--arm a: unknown option '--repeats'"),
        (["--num-prompts", "5"], "unknown option '--num-prompts'"),
        (["--random-input-len", "256"], "lengths of their own (--shared-len), and without"),
        (["--arm", "a:port=1", "--arm", "b"], "arm a: could not connect"),
        (["--cache", "none", "--model", "sim"], "leave out what lets every request miss"),
        (["--restart-every", "6", "--port", "1"], "--restart-every is for embedded engines"),
    ],
)
def test_what_cannot_be_done_says_why(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ab(*words) in (1, 2)
    assert why in capsys.readouterr().err
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_a_finished_one_is_not_gone_on_with(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ab("--base-url", fake_server.url, "--run-dir", "done") == 0
    assert main(["bench", "ab", "--resume", "done"]) == 2
    assert "that run is finished" in capsys.readouterr().err


def test_a_server_that_goes_away_ends_it_and_says_how_to_go_on(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.break_after(30)  # in a request that only brings a prefix, or in one that counts
    code = ab("--base-url", fake_server.url, "--run-dir", "broken")
    shown = capsys.readouterr()
    fake_server.behaviour.fault = None
    fake_server.reset()
    if code == 0:
        assert "requests failed; neither they nor their pairs count" in shown.out
    else:
        assert code == 1 and "to go on: prefixlab bench ab --resume broken" in shown.err
        assert main(["bench", "ab", "--resume", "broken", "--disable-tqdm"]) == 0
    assert json.loads(Path("broken/summary.json").read_text())["finished"]


@pytest.mark.service
def test_the_embedded_engine_is_started_with_and_without_a_cache() -> None:
    words = ["--model", "sim", "--page-size", "16", "--sim-step-ms", "2", "--shared-len", "256"]
    assert ab(*words, "--scrape-interval", "0") == 0
    data = summary()
    assert [(arm["name"], arm["verdict"]) for arm in data["arms"]] == [
        ("hit", "consistent"),
        ("miss", "consistent"),
        ("off", "consistent"),
    ]
    assert data["arms"][0]["cached_tokens"] == 24 * 128
    assert {found["about"] for found in data["differences"]} == {"hits", "code path", "together"}
